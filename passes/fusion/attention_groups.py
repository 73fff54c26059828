"""Attention takes keys and values of fewer heads than the queries have (grouped-query attention).

Query heads share key and value heads in groups (Ainslie et al., arXiv:2305.13245). Exporters repeat these for
every query head: ``[batch, heads, length, size]`` gets an axis by Unsqueeze, Expand repeats it, and Reshape
joins it to the heads. Attention repeats in the same order by itself, without making the copies.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from graphopt.analyses.dims import same
from graphopt.graph import describe
from graphopt.rewrite import Context, Rule, producer

__all__ = ["AttentionGroups"]


class Repeat(NamedTuple):
    """What is repeated, with its new axis, repeated along it, and joined to the heads."""

    source: ir.Value
    apart: ir.Value
    repeated: ir.Value
    joined: ir.Value


class Match(NamedTuple):
    """An Attention and where its keys and values come from."""

    node: ir.Node
    keys: Repeat
    values: Repeat


class AttentionGroups(Rule[Match]):
    """Attention of four axes with repeated keys and values: Attention with fewer heads of these."""

    name = "attention-groups"
    roots = ("Attention",)

    def match(self, node: ir.Node) -> Match | None:
        """An Attention without past, of four axes, both of whose keys and values are repeated."""
        if any(v is not None for v in node.inputs[4:]) or "q_num_heads" in node.attributes:
            return None
        if any(o.uses() for o in node.outputs[1:]):
            return None
        keys, values = (_repeat(v, node) for v in node.inputs[1:3])
        return None if keys is None or values is None else Match(node, keys, values)

    def check(self, match: Match, context: Context) -> str | None:
        """Every head is repeated as often, all copies of one after those of the other."""
        counts = []
        for repeat in (match.keys, match.values):
            count = _count(repeat, context)
            if count is None:
                return f"'{repeat.joined.name}' may be no repetition of the heads of '{repeat.source.name}'"
            counts.append(count)
        if counts[0] != counts[1]:
            return f"keys and values of {describe(match.node)} are repeated {counts[0]} and {counts[1]} times"
        return None

    def rewrite(self, match: Match, context: Context) -> None:
        """The Attention, of what was repeated."""
        node = match.node
        inputs = [node.inputs[0], match.keys.source, match.values.source, *node.inputs[3:]]
        context.replace(node.outputs[0], "Attention", inputs, node.attributes.values(), like=node)


def _repeat(value: ir.Value | None, user: ir.Node) -> Repeat | None:
    join = producer(value, user, "Reshape")
    expand = None if join is None else producer(join.inputs[0], user, "Expand")
    apart = None if expand is None else producer(expand.inputs[0], user, "Unsqueeze", "Reshape")
    if join is None or expand is None or apart is None or apart.inputs[0] is None:
        return None
    return Repeat(apart.inputs[0], apart.outputs[0], expand.outputs[0], join.outputs[0])


def _count(repeat: Repeat, context: Context) -> int | None:
    """How often heads are repeated; None where it may be something else."""
    shapes = [context.infer(v).shape for v in repeat]
    if any(s is None for s in shapes):
        return None
    source, apart, repeated, joined = (list(s or ()) for s in shapes)
    if (len(source), len(apart), len(repeated), len(joined)) != (4, 5, 5, 4):
        return None
    heads, count = source[1], repeated[2]
    if not isinstance(heads, int) or not isinstance(count, int):
        return None
    fits = (
        _all_same(apart, [*source[:2], 1, *source[2:]])
        and _all_same(repeated, [*source[:2], count, *source[2:]])
        and _all_same(joined, [source[0], heads * count, *source[2:]])
    )
    return count if fits else None


def _all_same(left: list[int | ir.SymbolicDim], right: list[int | ir.SymbolicDim]) -> bool:
    return all(map(same, left, right))
