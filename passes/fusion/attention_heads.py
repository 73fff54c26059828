"""Attention of four axes takes over the splitting and merging of heads around it.

With ``q_num_heads`` and ``kv_num_heads`` Attention reads Q, K and V as ``[batch, sequence, heads * size]``
and writes its result so. That is what exporters write around it:

- each of Q, K and V: Reshape to ``[batch, sequence, heads, size]``, Transpose by (0, 2, 1, 3);
- or all three out of one product ``[batch, sequence, 3 * heads * size]``: Reshape to ``[batch, sequence, 3,
  heads, size]``, Transpose by (2, 0, 3, 1, 4), and the three parts of the first axis taken out. One Split of
  the product does the same;
- the result: Transpose by (0, 2, 1, 3), then mostly a Reshape that merges the heads.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._attention_masks import number_of, same
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, is_op, producer

__all__ = ["AttentionHeads"]

_TO_HEADS: Final = (0, 2, 1, 3)
_PARTS_FIRST: Final = (2, 0, 3, 1, 4)
_TOGETHER: Final = 3


class Head(NamedTuple):
    """Where Q, K or V comes from: the Reshape that splits heads, and its part of the product (-1: all)."""

    split: ir.Node
    part: int


class Match(NamedTuple):
    """An Attention of four axes, its operands before their heads were split, the Transpose behind it."""

    node: ir.Node
    heads: tuple[Head, Head, Head]
    transpose: ir.Node


class AttentionHeads(Rule[Match]):
    """Attention of four axes between split and merged heads: Attention of three axes."""

    name = "attention-heads"
    roots = ("Attention",)

    def match(self, node: ir.Node) -> Match | None:
        """An Attention without past or second output, all four of whose sides are split or merged heads."""
        if (
            len(node.inputs) > 4
            or any(o.uses() for o in node.outputs[1:])
            or "q_num_heads" in node.attributes
        ):
            return None
        if not is_exclusive(node.outputs[0]):
            return None
        (behind,) = node.outputs[0].consumers()
        if not _is_transpose(behind, _TO_HEADS) or behind.graph is not node.graph:
            return None
        heads = [_head(value, node) for value in node.inputs[:3]]
        if any(h is None for h in heads):
            return None
        q, k, v = (h for h in heads if h is not None)
        return Match(node, (q, k, v), behind)

    def check(self, match: Match, context: Context) -> str | None:
        """The Reshapes split the last axis into heads, and leave batch and sequence alone."""
        parts = sorted(h.part for h in match.heads)
        sources = {h.split for h in match.heads}
        if parts != [-1] * 3 and (parts != [0, 1, 2] or len(sources) != 1):
            return f"Q, K and V of {describe(match.node)} are not the three parts of one product"
        for head in match.heads:
            reason = _refuse_split(head, context)
            if reason is not None:
                return reason
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """One Attention; a Split of one product, a Reshape where the merge does something else."""
        node, transpose = match.node, match.transpose
        inputs = [*self._operands(match, context), *node.inputs[3:4]]
        heads = [_count(h, context) for h in match.heads]
        attributes = [
            *node.attributes.values(),
            ir.AttrInt64("q_num_heads", heads[0]),
            ir.AttrInt64("kv_num_heads", heads[1]),
        ]
        shape = context.infer(transpose.outputs[0]).shape
        assert shape is not None
        batch, length, count, size = shape
        assert isinstance(count, int)
        assert isinstance(size, int)
        merged = ir.Shape([batch, length, count * size])
        merge = _merge(transpose)
        if merge is not None and _equal(context.infer(merge.outputs[0]).shape, merged):
            context.replace(merge.outputs[0], "Attention", inputs, attributes, like=node)
            return
        known = Inferred(context.infer(node.outputs[0]).dtype, merged)
        value = context.add(
            "Attention", inputs, attributes, before=transpose, like=node.outputs[0], known=known
        )
        _name_after(value, node)
        if merge is not None and _reads_no_axes(merge):
            kept = list(merge.attributes.values())
            context.replace(merge.outputs[0], "Reshape", [value, merge.inputs[1]], kept, like=merge)
            return
        target = context.constant("heads", np.array([0, 0, count, size], np.int64))
        context.replace(transpose.outputs[0], "Reshape", [value, target], like=transpose)

    def _operands(self, match: Match, context: Context) -> list[ir.Value | None]:
        """Q, K and V with heads side by side."""
        if match.heads[0].part < 0:
            return [h.split.inputs[0] for h in match.heads]
        parts = _split_product(match, context)
        return [parts[h.part] for h in match.heads]


def _split_product(match: Match, context: Context) -> list[ir.Value]:
    """A new Split of the product that Q, K and V are parts of."""
    source = match.heads[0].split.inputs[0]
    assert source is not None
    batch, length, _, heads, size = _split_dims(match.heads[0], context)
    assert isinstance(heads, int)
    assert isinstance(size, int)
    names = [context.fresh_name(f"{source.name}_{role}") for role in "qkv"]
    type_, shape = (
        ir.TensorType(context.infer(source).dtype or ir.DataType.FLOAT),
        [batch, length, heads * size],
    )
    outputs = [ir.Value(name=n, type=type_, shape=ir.Shape(shape)) for n in names]
    attributes = [ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", _TOGETHER)]
    metadata = dict(match.heads[0].split.metadata_props)
    node = ir.Node("", "Split", [source], attributes, outputs=outputs, metadata_props=metadata)
    assert match.node.graph is not None
    match.node.graph.insert_before(match.node, node)
    return outputs


def _name_after(value: ir.Value, node: ir.Node) -> None:
    made_by = value.producer()
    assert made_by is not None
    made_by.name = node.name


def _is_transpose(node: ir.Node | None, perm: tuple[int, ...]) -> bool:
    return (
        node is not None and is_op(node, "Transpose") and tuple(node.attributes.get_ints("perm", ())) == perm
    )


def _head(value: ir.Value | None, user: ir.Node) -> Head | None:
    """The Reshape behind one operand."""
    node = producer(value, user, "Transpose", "Squeeze", "Gather")
    if node is None:
        return None
    if node.op_type == "Transpose":
        split = producer(node.inputs[0], user, "Reshape")
        return Head(split, -1) if split is not None and _is_transpose(node, _TO_HEADS) else None
    picked = _picked(node)
    parts = None if picked is None else producer(picked[0], user, "Transpose")
    if picked is None or parts is None or not _is_transpose(parts, _PARTS_FIRST):
        return None
    split = producer(parts.inputs[0], user, "Reshape")
    return None if split is None else Head(split, picked[1])


def _picked(node: ir.Node) -> tuple[ir.Value, int] | None:
    """What the node takes one part of along axis 0, without keeping that axis, and which."""
    data = node.inputs[0]
    if node.op_type == "Gather":
        index, tensor = number_of(input_at(node, 1)), constant_of(input_at(node, 1))
        scalar = tensor is not None and len(tensor.shape) == 0 and node.attributes.get_int("axis", 0) == 0
        return (data, int(index)) if scalar and index is not None and data is not None else None
    if number_of(input_at(node, 1)) != 0:
        return None
    cut = producer(data, node, "Split", "Slice")
    if cut is None or cut.inputs[0] is None:
        return None
    return _split_part(cut, data) if cut.op_type == "Split" else _slice_part(cut)


def _split_part(cut: ir.Node, part: ir.Value | None) -> tuple[ir.Value, int] | None:
    """One of three outputs of a Split along axis 0; that each has size 1 follows from the Squeeze."""
    source = cut.inputs[0]
    if cut.attributes.get_int("axis", 0) != 0 or len(cut.outputs) != _TOGETHER or source is None:
        return None
    return source, next(i for i, o in enumerate(cut.outputs) if o is part)


def _slice_part(cut: ir.Node) -> tuple[ir.Value, int] | None:
    """One row of axis 0 by a Slice."""
    start, end, axes, steps = (input_at(cut, i) for i in range(1, 5))
    numbers = [number_of(v) for v in (start, end, axes)]
    source, first = cut.inputs[0], numbers[0]
    if source is None or first is None or numbers[1] != first + 1 or numbers[2] != 0 or first < 0:
        return None
    return (source, int(first)) if steps is None or number_of(steps) == 1 else None


def _split_dims(head: Head, context: Context) -> list[int | ir.SymbolicDim]:
    return list(context.infer(head.split.outputs[0]).shape or ())


def _count(head: Head, context: Context) -> int:
    count = _split_dims(head, context)[-2]
    assert isinstance(count, int)
    return count


def _refuse_split(head: Head, context: Context) -> str | None:
    """Why the Reshape does something else than splitting the last of three axes."""
    source = head.split.inputs[0]
    before = None if source is None else context.infer(source).shape
    after = _split_dims(head, context)
    parts = [] if head.part < 0 else [_TOGETHER]
    inner = after[2:]
    whole = len(after) == 4 + len(parts) and after[2 : 2 + len(parts)] == parts
    if (
        before is None
        or len(before) != 3
        or not whole
        or not all(isinstance(d, int) and d > 0 for d in inner)
    ):
        return f"{describe(head.split)} may do something else than splitting heads"
    size = math.prod(d for d in inner if isinstance(d, int))
    if not (same(before[0], after[0]) and same(before[1], after[1]) and before[2] == size):
        return f"{describe(head.split)} may change batch or sequence"
    return None


def _merge(transpose: ir.Node) -> ir.Node | None:
    """The Reshape that is the only user of the Transpose."""
    value = transpose.outputs[0]
    if not is_exclusive(value):
        return None
    (user,) = value.consumers()
    fits = is_op(user, "Reshape") and user.graph is transpose.graph and user.inputs[0] is value
    return user if fits else None


def _equal(left: ir.Shape | None, right: ir.Shape) -> bool:
    return left is not None and len(left) == len(right) and all(map(same, left, right))


def _reads_no_axes(reshape: ir.Node) -> bool:
    """Whether the target of a Reshape is constant and copies no axis of the input."""
    tensor = constant_of(reshape.inputs[1])
    return tensor is not None and not np.any(tensor.numpy() == 0)
