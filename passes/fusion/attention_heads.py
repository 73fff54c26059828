"""Attention of four axes takes over the splitting and merging of heads around it.

With ``q_num_heads`` and ``kv_num_heads`` Attention reads Q, K and V as ``[batch, sequence, heads * size]``
and writes its result so. That is what exporters write around it:

- each of Q, K and V: Reshape to ``[batch, sequence, heads, size]``, Transpose by (0, 2, 1, 3);
- or all three out of one product ``[batch, sequence, 3 * heads * size]``: Reshape to ``[batch, sequence, 3,
  heads, size]``, Transpose by (2, 0, 3, 1, 4), and the three parts of the first axis taken out. One Split of
  the product does the same;
- Q and K: a RotaryEmbedding behind that, which takes heads side by side as well;
- the result: Transpose by (0, 2, 1, 3), then mostly a Reshape that merges the heads.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import same_dims
from graphopt.analyses.shapes import Inferred
from graphopt.graph import constant_of, describe
from graphopt.passes.fusion._attention_parts import (
    Head,
    dims_of,
    head_of,
    refuse_split,
    split_product,
    transpose_behind,
)
from graphopt.rewrite import Context, Rule, is_exclusive, is_op

__all__ = ["AttentionHeads"]

_TO_HEADS: Final = (0, 2, 1, 3)
_TOGETHER: Final = 3


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
        behind = transpose_behind(node, _TO_HEADS)
        if behind is None:
            return None
        heads = [head_of(value, node) for value in node.inputs[:3]]
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
            reason = refuse_split(head, context)
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
            found = [h.split.inputs[0] for h in match.heads]
        else:
            parts = _split_product(match, context)
            found = [parts[h.part] for h in match.heads]
        return [
            v if h.rotary is None else _rotated(v, h, match.node, context)
            for v, h in zip(found, match.heads, strict=True)
        ]


def _split_product(match: Match, context: Context) -> list[ir.Value]:
    """A new Split of the product that Q, K and V are parts of."""
    head = match.heads[0]
    source = head.split.inputs[0]
    assert source is not None
    batch, length, _, heads, size = dims_of(head, context)
    assert isinstance(heads, int)
    assert isinstance(size, int)
    return split_product(source, -1, ir.Shape([batch, length, heads * size]), head, match.node, context)


def _rotated(value: ir.Value | None, head: Head, before: ir.Node, context: Context) -> ir.Value:
    """The RotaryEmbedding of four axes as one of three."""
    node, dims = head.rotary, dims_of(head, context)
    assert value is not None
    assert node is not None
    heads, size = dims[-2:]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    known = Inferred(context.infer(node.outputs[0]).dtype, ir.Shape([*dims[:2], heads * size]))
    attributes = [*node.attributes.values(), ir.AttrInt64("num_heads", heads)]
    inputs = [value, *node.inputs[1:]]
    like = node.outputs[0]
    return context.add("RotaryEmbedding", inputs, attributes, before=before, like=like, known=known)


def _name_after(value: ir.Value, node: ir.Node) -> None:
    made_by = value.producer()
    assert made_by is not None
    made_by.name = node.name


def _count(head: Head, context: Context) -> int:
    count = dims_of(head, context)[-2]
    assert isinstance(count, int)
    return count


def _merge(transpose: ir.Node) -> ir.Node | None:
    """The Reshape that is the only user of the Transpose."""
    value = transpose.outputs[0]
    if not is_exclusive(value):
        return None
    (user,) = value.consumers()
    fits = is_op(user, "Reshape") and user.graph is transpose.graph and user.inputs[0] is value
    return user if fits else None


def _equal(left: ir.Shape | None, right: ir.Shape) -> bool:
    return left is not None and same_dims(left.dims, right.dims)


def _reads_no_axes(reshape: ir.Node) -> bool:
    """Whether the target of a Reshape is constant and copies no axis of the input."""
    tensor = constant_of(reshape.inputs[1])
    return tensor is not None and not np.any(tensor.numpy() == 0)
