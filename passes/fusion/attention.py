"""Attention written out becomes the operator Attention, which exists since opset 23.

::

    Attention(Q, K, V, mask) = Softmax(scale Q K^T + mask) V       (Vaswani et al., arXiv:1706.03762)

The scale may stand at Q, at K, at both or at their product, and multiply or divide. The mask may be added, or
select (Where). Newer exports set NaN behind Softmax to zero, which is what Attention does with a row that is
masked as a whole. NaN that comes in with Q or K comes out as NaN.

A second rule takes heads apart and puts them together inside the operator: where Q, K and V are ``[batch,
sequence, heads * size]`` split by Reshape and Transpose, and the result is merged likewise, Attention takes
and gives these three axes itself.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.graph import describe
from graphopt.passes.fusion._attention_masks import Constants, Geometry, Mask, Sizes
from graphopt.passes.fusion._attention_parts import (
    Keys,
    behind,
    masks,
    operands_of,
    refuse_operator,
    refuse_reshapes,
    refuse_scale,
    scores_of,
    to_heads,
)
from graphopt.rewrite import Context, Rule, is_exclusive, producer

__all__ = ["Attention"]


class Match(NamedTuple):
    """One attention: its operands, and the product with V, whose output is the result."""

    softmax: ir.Node
    product: ir.Node
    q: ir.Value
    keys: Keys
    v: ir.Value
    scale: float
    mask: Mask | None


class Attention(Rule[Match]):
    """``Softmax(scale Q K^T + mask) V`` of four axes: one Attention (opset 23)."""

    name = "attention"
    roots = ("Softmax",)

    def __init__(self) -> None:
        self._constants = Constants()

    def match(self, node: ir.Node) -> Match | None:
        """From Softmax up to the product of Q and K, and down to that with V."""
        if node.attributes.get_int("axis", -1) not in (-1, 3):
            return None
        after = behind(node)
        before = _before(node, guarded=after is not None and after[1])
        if after is None or before is None:
            return None
        operands = operands_of(before[0], after[0])
        if operands is None:
            return None
        q, keys, v, scale = operands
        return Match(node, after[0], q, keys, v, scale * before[1], before[2])

    def check(self, match: Match, context: Context) -> str | None:
        """The operator exists, and its inputs have the shapes and types that it takes."""
        dtype = context.infer(match.q).dtype
        reason = refuse_operator(dtype, context)
        geometry = reason or _geometry(match, context)
        if isinstance(geometry, str):
            return geometry
        assert dtype is not None
        reason = refuse_scale(match.scale, dtype) or refuse_reshapes(match.keys, context)
        if reason is None and match.mask is not None:
            reason = match.mask.refuse(context, geometry, dtype)
        return reason

    def rewrite(self, match: Match, context: Context) -> None:
        """One Attention; a Transpose of K where its heads still lie behind, an Expand of a short mask."""
        geometry, dtype = _geometry(match, context), context.infer(match.q).dtype
        assert isinstance(geometry, Geometry)
        assert dtype is not None
        before, keys = match.product, match.keys.value
        sizes = Sizes(self._constants, (match.q, 2), (keys, 1 if match.keys.early else 2))
        inputs: list[ir.Value | None] = []
        if match.mask is not None:
            inputs = [match.mask.build(context, geometry, sizes, before, dtype)]
        if match.keys.early:
            keys = to_heads(keys, before, context)
        inputs = [match.q, keys, match.v, *inputs]
        scale = [ir.AttrFloat32("scale", match.scale)]
        context.replace(match.product.outputs[0], "Attention", inputs, scale, like=match.softmax)


def _before(softmax: ir.Node, *, guarded: bool) -> tuple[ir.Node, float, Mask | None] | None:
    """The product of Q and K, the scale behind it, and the mask."""
    top = softmax.inputs[0]
    plain = scores_of(top, softmax)
    if plain is not None:
        return plain[0], plain[1], None
    node = producer(top, softmax, "Add", "Where")
    if node is None or top is None or not is_exclusive(top):
        return None
    for value, mask in masks(node, guarded=guarded):
        found = scores_of(value, node)
        if found is not None:
            return found[0], found[1], mask
    return None


def _geometry(match: Match, context: Context) -> Geometry | str:
    """The axes of the scores, or why Attention does not take the operands."""
    shapes = [context.infer(v).shape for v in (match.q, match.keys.value, match.v)]
    for value, shape in zip((match.q, match.keys.value, match.v), shapes, strict=True):
        if shape is None or len(shape) != 4:
            rank = "an unknown rank" if shape is None else f"rank {len(shape)}"
            return f"'{value.name}' has {rank}; Attention needs 4"
    q, k, v = (list(s or ()) for s in shapes)
    if match.keys.early:
        k = [k[0], k[2], k[1], k[3]]
    for role, axis in (("batch", 0), ("heads", 1)):
        if not (same(q[axis], k[axis]) and same(q[axis], v[axis])):
            return f"{q[axis]}, {k[axis]} and {v[axis]} {role} of {describe(match.softmax)} may differ"
    if not same(k[2], v[2]):
        return f"the keys of {describe(match.softmax)} are {k[2]}, the values {v[2]}"
    return Geometry(q[0], q[1], q[2], k[2])
