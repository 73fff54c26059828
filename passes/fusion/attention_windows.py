"""Attention in windows, some of which are masked (shifted windows), becomes the operator Attention.

Swin Transformer (Liu et al., arXiv:2103.14030) attends inside ``W`` windows of each image, which lie in the
first axis: scores are ``[batch * W, heads, n, n]``. A mask that differs from window to window is added to
them as ``[batch, W, heads, n, n]``, between two Reshapes. Attention has no such axis, but the windows may
stand beside the heads: with Q, K and V as ``[batch, W * heads, n, size]``, which is the order that they have
in memory anyway, the mask is ``[1, W * heads, n, n]`` and the same for the whole batch.

Where Q, K and V are the three parts of one product, split by Reshape, Transpose and Gather, a Transpose that
brings these parts beside the windows leaves one Split of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Inferred
from graphopt.graph import describe
from graphopt.passes.fusion._attention_masks import Constants, floor_of, lowest_of
from graphopt.passes.fusion._attention_parts import (
    Keys,
    behind,
    dims_of,
    head_of,
    operands_of,
    refuse_operator,
    refuse_scale,
    refuse_split,
    scores_of,
    split_product,
    to_heads,
)
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, producer

__all__ = ["AttentionWindows"]

#: batch, windows, queries or keys, part, heads, size -> batch, part, windows, heads, queries or keys, size
_PARTS_BESIDE_WINDOWS = (0, 3, 1, 4, 2, 5)
_PARTS = 3


class Match(NamedTuple):
    """One attention in windows: its operands, what is added to the scores of four axes, and of five."""

    softmax: ir.Node
    product: ir.Node
    q: ir.Value
    keys: Keys
    v: ir.Value
    scale: float
    biases: tuple[ir.Value, ...]
    mask: ir.Value
    spread: ir.Value
    masked: ir.Value


class Sizes(NamedTuple):
    """Windows of an image, heads, queries and keys of a window."""

    windows: int
    heads: int
    queries: int
    keys: int


class AttentionWindows(Rule[Match]):
    """``Softmax(scale Q K^T + bias + mask of the window) V``: one Attention (opset 23)."""

    name = "attention-windows"
    roots = ("Softmax",)

    def __init__(self) -> None:
        self._constants = Constants()

    def match(self, node: ir.Node) -> Match | None:
        """From Softmax up to the Add between two Reshapes and on to Q K^T, and down to the product with V."""
        after = behind(node)
        masked = _added(node)
        if after is None or after[1] or masked is None or node.attributes.get_int("axis", -1) not in (-1, 3):
            return None
        add, spread, mask = masked
        biases, value, user = [], input_at(spread, 0), add
        while (found := scores_of(value, user)) is None:
            bias = producer(value, user, "Add")
            if bias is None or value is None or not is_exclusive(value):
                return None
            value, other = _product_first(bias)
            if other is None:
                return None
            biases.append(other)
            user = bias
        operands = operands_of(found[0], after[0])
        if operands is None:
            return None
        q, keys, v, scale = operands
        five = (mask, spread.outputs[0], add.outputs[0])
        return Match(node, after[0], q, keys, v, scale * found[1], tuple(biases), *five)

    def check(self, match: Match, context: Context) -> str | None:
        """The operator exists, all axes but the batch are known, and no row can be masked as a whole."""
        dtype = context.infer(match.q).dtype
        sizes = _sizes(match, context)
        reason = refuse_operator(dtype, context) or (sizes if isinstance(sizes, str) else None)
        if reason is not None or dtype is None or isinstance(sizes, str):
            return reason
        if match.keys.through is not None:
            return f"'{match.keys.value.name}' is transposed by way of three axes"
        if sum(map(floor_of, (match.mask, *match.biases))) <= lowest_of(dtype):
            return f"'{match.mask.name}' may mask a whole row, of which Attention makes another thing"
        return refuse_scale(match.scale, dtype)

    def rewrite(self, match: Match, context: Context) -> None:
        """One Attention of windows beside heads, the mask of each, and a Reshape back."""
        sizes, before = _sizes(match, context), match.product
        assert isinstance(sizes, Sizes)
        mask = self._mask(match, sizes, context)
        operands = self._parts(match, sizes, context) or self._operands(match, sizes, context)
        like, dtype = match.softmax.outputs[0], context.infer(match.q).dtype
        five, depth = context.infer(match.masked).shape, _depth(match.v, context)
        assert five is not None
        beside = sizes.windows * sizes.heads
        known = Inferred(dtype, ir.Shape([five[0], beside, sizes.queries, depth]))
        scale = [ir.AttrFloat32("scale", match.scale)]
        attended = context.add(
            "Attention",
            [*operands, mask],
            scale,
            before=before,
            like=like,
            known=known,
            name=match.softmax.name,
        )
        target = self._target(context, before, [-1, sizes.heads, sizes.queries, depth])
        context.replace(before.outputs[0], "Reshape", [attended, target], like=before)

    def _mask(self, match: Match, sizes: Sizes, context: Context) -> ir.Value:
        """All that is added to the scores, as ``[1, windows * heads, queries, keys]``."""
        value, before, wanted = match.mask, match.product, (1, *sizes)
        dtype, shape = context.infer(match.mask).dtype, _aligned(match.mask, context)
        for bias in match.biases:
            shape = tuple(map(max, shape, _aligned(bias, context)))
            known = Inferred(dtype, ir.Shape(shape))
            value = context.add("Add", [value, bias], before=before, like=value, known=known)
        if shape != wanted:
            known, target = Inferred(dtype, ir.Shape(wanted)), self._target(context, before, wanted)
            value = context.add("Expand", [value, target], before=before, like=value, known=known)
        together = [1, sizes.windows * sizes.heads, sizes.queries, sizes.keys]
        return self._reshape(value, together, ir.Shape(together), before, context)

    def _operands(self, match: Match, sizes: Sizes, context: Context) -> list[ir.Value]:
        """Q, K and V, each with its windows beside the heads."""
        before, keys = match.product, match.keys.value
        if match.keys.early:
            keys = to_heads(keys, before, context)
        found = []
        for value, length in ((match.q, sizes.queries), (keys, sizes.keys), (match.v, sizes.keys)):
            target = [-1, sizes.windows * sizes.heads, length, _depth(value, context)]
            shape = ir.Shape([ir.SymbolicDim(None), *target[1:]])
            found.append(self._reshape(value, target, shape, before, context))
        return found

    def _parts(self, match: Match, sizes: Sizes, context: Context) -> list[ir.Value] | None:
        """Q, K and V out of a Split, where they are the three parts of one product."""
        heads = [head_of(v, match.product) for v in (match.q, match.keys.value, match.v)]
        parts = [h.part for h in heads if h is not None]
        if (
            match.keys.early
            or sorted(parts) != [0, 1, 2]
            or len({h.split for h in heads if h is not None}) != 1
        ):
            return None
        head = heads[0]
        assert head is not None
        source, dims, before = head.split.inputs[0], dims_of(head, context), match.product
        if source is None or refuse_split(head, context) is not None or dims[1] != sizes.queries:
            return None
        size = dims[-1]
        assert isinstance(size, int)
        batch, dtype = ir.SymbolicDim(None), context.infer(source).dtype
        split = [sizes.windows, sizes.queries, _PARTS, sizes.heads, size]
        value = self._reshape(source, [-1, *split], ir.Shape([batch, *split]), before, context)
        dims = [batch, *split]
        shape = ir.Shape([dims[axis] for axis in _PARTS_BESIDE_WINDOWS])
        perm = [ir.AttrInt64s("perm", _PARTS_BESIDE_WINDOWS)]
        value = context.add(
            "Transpose", [value], perm, before=before, like=value, known=Inferred(dtype, shape)
        )
        beside = sizes.windows * sizes.heads
        target = [-1, _PARTS * beside, sizes.queries, size]
        value = self._reshape(value, target, ir.Shape([batch, *target[1:]]), before, context)
        outputs = split_product(value, 1, ir.Shape([batch, beside, *target[2:]]), head, before, context)
        return [outputs[part] for part in parts]

    def _reshape(
        self, value: ir.Value, target: Sequence[int], shape: ir.Shape, before: ir.Node, context: Context
    ) -> ir.Value:
        inputs = [value, self._target(context, before, target)]
        known = Inferred(context.infer(value).dtype, shape)
        return context.add("Reshape", inputs, before=before, like=value, known=known)

    def _target(self, context: Context, before: ir.Node, target: Sequence[int]) -> ir.Value:
        return self._constants.get(context, before, "windows", np.array(target, np.int64))


def _added(softmax: ir.Node) -> tuple[ir.Node, ir.Node, ir.Value] | None:
    """The Add between two Reshapes in front of Softmax, the Reshape in front of it, the other operand."""
    back = producer(softmax.inputs[0], softmax, "Reshape")
    add = None if back is None else producer(back.inputs[0], softmax, "Add")
    if back is None or add is None or not all(map(is_exclusive, (back.outputs[0], add.outputs[0]))):
        return None
    for side in (0, 1):
        there, mask = producer(add.inputs[side], add, "Reshape"), add.inputs[1 - side]
        if there is None or mask is None or there.inputs[0] is None or not is_exclusive(there.outputs[0]):
            continue
        scores = producer(there.inputs[0], there, "Add", "MatMul", "Mul", "Div")
        if scores is not None and is_exclusive(there.inputs[0]):
            return add, there, mask
    return None


def _product_first(add: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The operands of an Add, that which may be the scores first."""
    left, right = add.inputs
    if producer(left, add, "Add", "MatMul", "Mul", "Div") is None:
        left, right = right, left
    return left, right


def _sizes(match: Match, context: Context) -> Sizes | str:
    """The inner axes of the scores, or why windows cannot stand beside heads."""
    name, five = match.masked.name, context.infer(match.masked).shape
    inner = [d for d in (five or ())[1:] if isinstance(d, int) and d > 0]
    if five is None or len(five) != 5 or len(inner) != 4:
        return f"'{name}' is {five}; windows, heads, queries and keys must be known"
    sizes = Sizes(*inner)
    depth = _depth(match.q, context)
    keys = (sizes.keys, sizes.heads) if match.keys.early else (sizes.heads, sizes.keys)
    wanted = (
        (match.q, (sizes.heads, sizes.queries, depth)),
        (match.keys.value, (*keys, depth)),
        (match.v, (sizes.heads, sizes.keys, _depth(match.v, context))),
        (match.softmax.outputs[0], sizes[1:]),
        (match.spread, sizes),
    )
    batch = {str((context.infer(v).shape or [None])[0]) for v, _ in wanted[:3]}
    for value, dims in wanted:
        shape = context.infer(value).shape
        if shape is None or len(shape) != 1 + len(dims) or tuple(shape[1:]) != tuple(dims):
            return f"'{value.name}' is {shape}, where {dims} is wanted behind the first axis"
    if len(batch) != 1 or batch == {"None"}:
        return f"the first axes of the operands of {describe(match.softmax)} may differ"
    return _refuse_masks(match, sizes, context) or sizes


def _depth(value: ir.Value, context: Context) -> int:
    shape = context.infer(value).shape
    last = shape[-1] if shape else None
    return last if isinstance(last, int) else 0


def _refuse_masks(match: Match, sizes: Sizes, context: Context) -> str | None:
    """Why something that is added to the scores differs along the batch, or has unknown axes."""
    for value in (match.mask, *match.biases):
        have = _aligned(value, context)
        allowed = (1, 1, *sizes[1:]) if value is not match.mask else (1, *sizes)
        if not have or any(h not in (1, a) for h, a in zip(have, allowed, strict=True)):
            return f"'{value.name}' is {context.infer(value).shape}, where {allowed} is wanted"
    return None


def _aligned(value: ir.Value, context: Context) -> tuple[int, ...]:
    """The shape by five axes; empty where an axis is not known or there are more."""
    shape = context.infer(value).shape
    if shape is None or len(shape) > 5 or not all(isinstance(d, int) and d > 0 for d in shape):
        return ()
    return (1,) * (5 - len(shape)) + tuple(int(d) for d in shape if isinstance(d, int))
