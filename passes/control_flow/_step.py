"""What the modules of simplify-control-flow tell each other."""

from __future__ import annotations

import collections
import dataclasses

import onnx_ir as ir

from graphopt.graph import array_of
from graphopt.passes.control_flow._splice import ScopeNames

__all__ = ["Scope", "Step", "flag_of"]


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where a node is.

    Attributes:
        top: The main graph, or a function's.
        opset: Version of the standard operators.
        in_function: Whether ``top`` belongs to a function, which has no initializers.
        names: The names that are taken.
        max_iterations: Largest trip count to unroll.
    """

    top: ir.Graph
    opset: int
    in_function: bool
    names: ScopeNames
    max_iterations: int

    def needs_nodes(self, node: ir.Node) -> bool:
        """Whether constants beside ``node`` must be Constant nodes."""
        return self.in_function and node.graph is self.top


@dataclasses.dataclass
class Step:
    """What was done to a node.

    Attributes:
        done: What was done, and how often.
        nodes: Nodes that moved to the place of the node and have not been looked at there.
        refusal: Why something was left alone.
    """

    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    refusal: str = ""

    def __add__(self, other: Step) -> Step:
        return Step(self.done + other.done, self.nodes + other.nodes, self.refusal or other.refusal)


def flag_of(value: ir.Value | None) -> bool | None:
    """The truth of a constant condition; None where it is not constant or not one element."""
    array = array_of(value)
    return bool(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
