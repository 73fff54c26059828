"""If: conditions that are known, branches that are equal, outputs that nobody reads."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import onnx_ir as ir

from graphopt.passes.control_flow._equal import are_equal
from graphopt.passes.control_flow._rebuild import rebuild
from graphopt.passes.control_flow._splice import splice, substitute
from graphopt.passes.control_flow._step import Scope, Step, flag_of

__all__ = ["simplify"]


def simplify(node: ir.Node, scope: Scope, known: Mapping[ir.Value, bool]) -> Step:
    """Put a branch in the place of the If where only one can matter; else drop unused outputs."""
    condition = node.inputs[0]
    then_branch, else_branch = (node.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    taken = flag_of(condition)
    if taken is None and condition is not None:
        taken = known.get(condition)
    if taken is None and are_equal(then_branch, else_branch):
        taken = True
    if taken is not None:
        return _inline(node, then_branch if taken else else_branch, scope)
    unused = [i for i, v in enumerate(node.outputs) if not (v.uses() or v.is_graph_output())]
    if not unused or len(unused) == len(node.outputs):
        return Step()
    for branch in (then_branch, else_branch):
        for index in reversed(unused):
            branch.outputs.pop(index)
    new = rebuild(node, node.inputs, [i for i in range(len(node.outputs)) if i not in unused])
    return Step(collections.Counter({"dropped outputs": len(unused)}), [new])


def _inline(node: ir.Node, branch: ir.Graph, scope: Scope) -> Step:
    if branch.inputs or len(branch.outputs) < len(node.outputs):
        return Step(refusal="its branches are damaged")
    nodes, outputs = splice(branch, [], node, scope.names, as_nodes=scope.needs_nodes(node))
    substitute(node, outputs, scope.names)
    return Step(collections.Counter({"inlined branches": 1}), nodes)
