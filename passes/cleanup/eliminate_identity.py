"""Remove nodes that return their input."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.graph import can_replace, describe, replace_value, scopes, subgraphs_below
from graphopt.passes.cleanup._common import inherit_type, redirect
from graphopt.passes.cleanup._no_ops import Facts, copied_value
from graphopt.registry import Pass, PassResult, Refusal, register

__all__ = ["EliminateIdentity"]


@register
@dataclasses.dataclass(eq=False)
class EliminateIdentity(Pass):
    """Remove nodes that do nothing, by what they mean, not only by the name Identity.

    1. Identity; Dropout outside training whose mask nobody reads; Concat, Sum, Max, Min, Mean of one tensor;
       Split into one.
    2. Cast and CastLike to the type that the tensor has, and Cast back from a type that holds every value
       of the first one (float16 to float32 and back, not float32 to float16 and back).
    3. Transpose that keeps the order, Pad by nothing, Tile once, Slice of everything, Reshape, Flatten,
       Squeeze, Unsqueeze and Expand to the shape that the tensor has, symbolic axes included.
    4. Adding or subtracting 0, multiplying with, dividing by or raising to the power of 1, And with true, Or
       with false, where the constant's shape does not change the result's.

    It does not fire where a graph output would have to be a graph input, an initializer, a value of an outer
    graph or another graph output itself; such a node stays, and only what else reads it is moved to its
    input. Unknown are constants that a caller may override and, in functions, types, shapes and attributes
    that a call fills in.
    """

    name = "eliminate-identity"

    def call(self, model: ir.Model) -> PassResult:
        """Remove them in the main graph, subgraphs and functions, in one walk in node order."""
        facts = Facts(model)
        removed: collections.Counter[str] = collections.Counter()
        refusals: list[Refusal] = []
        called = {g for f in model.functions.values() for g in (f.graph, *subgraphs_below(f.graph))}
        moved = False
        for graph, facts.opset in scopes(model):
            facts.typed = graph not in called
            gone = []
            for node, value in _copies(graph, facts):
                if can_replace(node.outputs[0], value):
                    inherit_type(value, node.outputs[0])
                    replace_value(node.outputs[0], value)
                    gone.append(node)
                else:
                    moved |= redirect(node.outputs[0], value)
                    refusals.append(
                        Refusal(self.name, describe(node), "a graph output needs a node of its own")
                    )
            graph.remove(gone, safe=True)
            removed.update(node.op_type for node in gone)
        return PassResult(model, bool(removed) or moved, _summary(removed), refusals)


def _copies(graph: ir.Graph, facts: Facts) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in graph:
        value = copied_value(node, facts)
        if value is not None:
            yield node, value


def _summary(removed: collections.Counter[str]) -> str:
    if not removed:
        return "removed 0 nodes"
    listed = ", ".join(f"{count} {op_type}" for op_type, count in removed.most_common())
    return f"removed {removed.total()} node{'s' if removed.total() > 1 else ''} ({listed})"
