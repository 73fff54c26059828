"""Attention of four axes takes over heads of tensors whose first axis is the sequence.

torch.nn.MultiheadAttention works on ``[length, batch, heads * size]`` inside, also where its inputs have the
batch first. After the layout has been simplified this is what its exports hold:

- each of Q, K and V: Reshape to ``[length, batch, heads, size]``, Transpose by (1, 2, 0, 3);
- or all three out of one product ``[length, batch, 3 * heads * size]``: in front of these a Reshape to
  ``[length, batch, 3, heads * size]``, a Transpose by (2, 0, 1, 3) and a Gather for each;
- the result: Transpose by (2, 0, 1, 3), then mostly a Reshape that merges the heads.

With its heads side by side Attention wants the batch first. What is left is one Transpose by (1, 0, 2) on
every side, which mostly meets the model's own and goes with it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._attention_masks import number_of
from graphopt.passes.fusion._attention_parts import Head, is_transpose, split_product, transpose_behind
from graphopt.rewrite import Context, Rule, input_at, is_exclusive, is_op, producer

__all__ = ["AttentionLateHeads"]

_LATE_TO_HEADS: Final = (1, 2, 0, 3)
_HEADS_TO_LATE: Final = (2, 0, 1, 3)
_PARTS_FIRST: Final = (2, 0, 1, 3)
_SWAP: Final = (1, 0, 2)
_PARTS: Final = 3
_PICKING: Final = ("Gather", "Squeeze", "Slice")


class Match(NamedTuple):
    """An Attention, the Reshapes that split the heads of its operands, the Transpose behind it.

    Attributes:
        node: The Attention.
        splits: The Reshapes of Q, K and V.
        parts: Which part of the product each of them splits; empty where there is no such product.
        apart: The Reshape that takes the product apart.
        end: The Transpose.
    """

    node: ir.Node
    splits: tuple[ir.Node, ir.Node, ir.Node]
    parts: tuple[int, ...]
    apart: ir.Node | None
    end: ir.Node


class AttentionLateHeads(Rule[Match]):
    """Attention of four axes between heads of ``[length, batch, width]``: Attention of three axes."""

    name = "attention-late-heads"
    roots = ("Attention",)

    def match(self, node: ir.Node) -> Match | None:
        """An Attention without past or second output between Transposes."""
        end = transpose_behind(node, _HEADS_TO_LATE)
        if end is None:
            return None
        splits = [s for v in node.inputs[:3] if (s := _split(v, node)) is not None]
        if len(splits) != 3:
            return None
        q, k, v = splits
        found = [p for s in splits if (p := _part(s)) is not None]
        if len(found) == 3 and len({apart for apart, _ in found}) == 1:
            return Match(node, (q, k, v), tuple(part for _, part in found), found[0][0], end)
        if any(producer(s.inputs[0], s, *_PICKING) for s in splits):  # parts in a form still to be simplified
            return None
        return Match(node, (q, k, v), (), None, end)

    def check(self, match: Match, context: Context) -> str | None:
        """The Reshapes split the last axis, and leave sequence and batch alone."""
        for split in match.splits:
            if _sizes(split, 2, context) is None:
                return f"{describe(split)} may do something else than splitting heads"
        if match.apart is None:
            return None
        if sorted(match.parts) != [0, 1, 2]:
            return f"Q, K and V of {describe(match.node)} are not the three parts of one product"
        sizes = _sizes(match.apart, 2, context)
        if sizes is None or sizes[0] != _PARTS:
            return f"{describe(match.apart)} may do something else than taking three parts apart"
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """One Attention between Transposes of three axes."""
        node, end = match.node, match.end
        inputs = [*self._operands(match, context), *node.inputs[3:4]]
        heads, kv_heads = (_counts(s, context) for s in match.splits[:2])
        attributes = [
            *node.attributes.values(),
            ir.AttrInt64("q_num_heads", heads[0]),
            ir.AttrInt64("kv_num_heads", kv_heads[0]),
        ]
        dtype, shape = context.infer(node.outputs[0]).dtype, context.infer(end.outputs[0]).shape
        assert shape is not None
        length, batch, count, size = shape
        assert isinstance(count, int)
        assert isinstance(size, int)
        known, like = Inferred(dtype, ir.Shape([batch, length, count * size])), node.outputs[0]
        value = context.add(
            "Attention", inputs, attributes, before=end, like=like, known=known, name=node.name
        )
        value = _swapped(value, end, context)
        users = list(end.outputs[0].consumers())
        merge = users[0] if is_exclusive(end.outputs[0]) and is_op(users[0], "Reshape") else None
        if merge is not None and merge.graph is end.graph and _reads_no_axes(merge):
            kept = list(merge.attributes.values())
            context.replace(merge.outputs[0], "Reshape", [value, merge.inputs[1]], kept, like=merge)
            return
        target = context.constant("heads", np.array([0, 0, count, size], np.int64))
        context.replace(end.outputs[0], "Reshape", [value, target], like=end)

    def _operands(self, match: Match, context: Context) -> list[ir.Value]:
        """Q, K and V as ``[batch, length, heads * size]``."""
        if match.apart is None:
            return [_swapped(s.inputs[0], match.node, context) for s in match.splits]
        source, dims = match.apart.inputs[0], context.infer(match.apart.outputs[0]).shape
        assert dims is not None
        whole = _swapped(source, match.node, context)
        shape = ir.Shape([dims[1], dims[0], dims[3]])
        outputs = split_product(whole, -1, shape, Head(match.apart, 0), match.node, context)
        return [outputs[part] for part in match.parts]


def _split(value: ir.Value | None, user: ir.Node) -> ir.Node | None:
    """The Reshape behind one operand."""
    node = producer(value, user, "Transpose")
    split = None if node is None else producer(node.inputs[0], node, "Reshape")
    return split if is_transpose(node, _LATE_TO_HEADS) and split is not None and split.inputs[0] else None


def _part(split: ir.Node) -> tuple[ir.Node, int] | None:
    """The Reshape that takes a product apart, and which part of it is split into heads."""
    gather = producer(split.inputs[0], split, "Gather")
    index = None if gather is None else input_at(gather, 1)
    number, tensor = number_of(index), constant_of(index)
    if gather is None or number is None or tensor is None or len(tensor.shape) != 0:
        return None
    turn = producer(gather.inputs[0], gather, "Transpose")
    apart = None if turn is None else producer(turn.inputs[0], turn, "Reshape")
    fits = is_transpose(turn, _PARTS_FIRST) and gather.attributes.get_int("axis", 0) == 0
    return (apart, int(number)) if fits and apart is not None and apart.inputs[0] is not None else None


def _sizes(reshape: ir.Node, kept: int, context: Context) -> tuple[int, ...] | None:
    """What a Reshape splits the last axis into, behind as many axes that it keeps."""
    source = reshape.inputs[0]
    before = context.infer(source).shape if source is not None else None
    after = context.infer(reshape.outputs[0]).shape
    if before is None or after is None or len(before) != kept + 1 or len(after) != kept + 2:
        return None
    inner = [d for d in after[kept:] if isinstance(d, int) and d > 0]
    fits = len(inner) == 2 and before[kept] == inner[0] * inner[1]
    return tuple(inner) if fits and all(map(same, before[:kept], after[:kept])) else None


def _counts(split: ir.Node, context: Context) -> tuple[int, ...]:
    """Heads and their size."""
    sizes = _sizes(split, 2, context)
    assert sizes is not None
    return sizes


def _swapped(value: ir.Value | None, before: ir.Node, context: Context) -> ir.Value:
    """The value with sequence and batch in each other's place."""
    assert value is not None
    known = context.infer(value)
    shape = None if known.shape is None else ir.Shape([known.shape[axis] for axis in _SWAP])
    perm = [ir.AttrInt64s("perm", _SWAP)]
    known = Inferred(known.dtype, shape)
    return context.add("Transpose", [value], perm, before=before, like=value, known=known)


def _reads_no_axes(reshape: ir.Node) -> bool:
    """Whether the target of a Reshape is constant and copies no axis of the input."""
    tensor = constant_of(reshape.inputs[1])
    return tensor is not None and not np.any(tensor.numpy() == 0)
