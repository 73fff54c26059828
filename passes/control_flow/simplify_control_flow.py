"""Take If, Loop and Scan apart where their outcome is known, and drop what they carry for nothing."""

from __future__ import annotations

import collections
import dataclasses

import onnx_ir as ir

from graphopt import limits
from graphopt.graph import describe, has_subgraphs, subgraphs_of
from graphopt.options import option
from graphopt.passes.control_flow import _if, _loop, _state
from graphopt.passes.control_flow._splice import ScopeNames
from graphopt.passes.control_flow._step import Scope, Step
from graphopt.registry import Pass, PassResult, Refusal, register
from graphopt.rewrite import is_op

__all__ = ["SimplifyControlFlow"]


@register
@dataclasses.dataclass(eq=False)
class SimplifyControlFlow(Pass):
    """Take If, Loop and Scan apart where their outcome is known, and drop what they carry for nothing.

    1. An If whose condition is constant, or known since it lies in a branch of an If with the same
       condition, becomes its branch; so does an If whose branches are equal node for node.
    2. A Loop of constant trip count up to ``max_iterations`` (and a condition that stays true) is unrolled;
       a Loop that never runs becomes its initial values.
    3. A value that a Loop or Scan carries and never changes becomes a captured outer value.
    4. Outputs that nobody reads are dropped, and values carried only for their own sake.

    The inner values of a branch or body that moves keep their names where these are unique. It does not fire
    where a Loop that never runs has stacked outputs in use (their shape is not known), on Scan before opset
    9, and where unrolling would pass the limit of nodes.
    """

    name = "simplify-control-flow"
    source = "https://onnx.ai/onnx/operators/onnx__Loop.html"

    max_iterations: int = option(
        1, help="Largest trip count that is unrolled.", min=0, max=limits.UNROLL_ITERATIONS
    )

    def call(self, model: ir.Model) -> PassResult:
        """Simplify in the main graph, subgraphs and functions, outer nodes before inner ones."""
        done: collections.Counter[str] = collections.Counter()
        refusals: list[Refusal] = []
        opset = model.opset_imports.get("", 1)
        redefined = any(f.domain in ("", "ai.onnx") for f in model.functions.values())
        if redefined:
            reason = "a function of the model redefines standard operators"
            return PassResult(model, False, "nothing done", [Refusal(self.name, "the model", reason)])
        self._simplify(model.graph, opset, False, done, refusals)
        for function in model.functions.values():
            own = function.opset_imports.get("", opset)
            self._simplify(function.graph, own, True, done, refusals)
        listed = ", ".join(f"{what} {count}" for what, count in done.items())
        return PassResult(model, bool(done), listed or "nothing to simplify", refusals)

    def _simplify(
        self,
        top: ir.Graph,
        opset: int,
        in_function: bool,
        done: collections.Counter[str],
        refusals: list[Refusal],
    ) -> None:
        pending: list[tuple[ir.Node, dict[ir.Value, bool]]] = [
            (node, {}) for node in reversed(top) if has_subgraphs(node)
        ]
        if not pending:
            return
        scope = Scope(top, opset, in_function, ScopeNames(top), self.max_iterations)
        while pending:
            node, known = pending.pop()
            if node.graph is None:
                continue
            step = _simplified(node, scope, known)
            if step.refusal:
                refusals.append(Refusal(self.name, describe(node), step.refusal))
            done.update(step.done)
            pending += ((inner, known) for inner in reversed(step.nodes) if has_subgraphs(inner))
            if node.graph is not None:
                pending += _inside(node, known)


def _simplified(node: ir.Node, scope: Scope, known: dict[ir.Value, bool]) -> Step:
    """Apply what fits to one node; a node that was replaced is in no graph afterwards."""
    if is_op(node, "If"):
        return _if.simplify(node, scope, known)
    if is_op(node, "Loop"):
        step = _loop.simplify(node, scope)
        return step if node.graph is None else step + _state.simplify(node, scope)
    if is_op(node, "Scan") and scope.opset >= 9:
        return _state.simplify(node, scope)
    return Step()


def _inside(node: ir.Node, known: dict[ir.Value, bool]) -> list[tuple[ir.Node, dict[ir.Value, bool]]]:
    """The nodes of the subgraphs, each with the conditions whose value is known there."""
    found = []
    for graph in subgraphs_of(node):
        there = known
        condition = node.inputs[0] if is_op(node, "If") else None
        if condition is not None:
            there = {**known, condition: graph is node.attributes["then_branch"].as_graph()}
        found += [(inner, there) for inner in graph if has_subgraphs(inner)]
    return found
