"""Collapse the arithmetic that exporters write to compute shapes."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import onnx_ir as ir

from graphopt.analyses import shapes
from graphopt.analyses.dims import same_dims
from graphopt.graph import (
    Names,
    add_initializer,
    constant_of,
    describe,
    is_used,
    replace_value,
    subgraphs_below,
    use_count,
)
from graphopt.options import option
from graphopt.passes.cleanup._shape_sources import Sources, VectorKey, key_of
from graphopt.passes.cleanup._shape_targets import (
    BROADCASTING,
    expand_target,
    is_bypassed,
    reshape_target,
)
from graphopt.passes.cleanup._unused import exclusive_nodes
from graphopt.registry import Pass, PassResult, Refusal, register
from graphopt.rewrite import is_op, remove_unused

__all__ = ["SimplifyShapes"]


@register
@dataclasses.dataclass(eq=False)
class SimplifyShapes(Pass):
    """Collapse chains that compute shapes, by the symbolic values of what they compute.

    1. Reshape to a computed target becomes one to constant numbers: numbers stay, the input's own axis at the
       same place becomes 0, one entry that remains becomes -1. Expand likewise, where it asks only for
       numbers and for axes that the input has.
    2. Reshape and Expand to the shape that the tensor has go. So does an Expand whose users broadcast to the
       same shape without it.
    3. Two values of shape arithmetic that are equal at all sizes of the axes become one: the first.
    4. A vector of axes, numbers and earlier vectors is put together anew by Shape, Gather and Concat where
       this takes fewer nodes; from opset 15 on Shape takes just the axes that are wanted.
    5. What these steps leave unused is removed.

    It does not fire where the axes are not known to be equal, inside model-local functions (whose shapes
    differ by call), and on values that a Loop carries. It does not put -1 next to the copy of an axis that
    may be empty, which runtimes refuse, unless the model did.
    """

    name = "simplify-shapes"

    allow_empty: bool = option(
        True, help="Keep what runs on axes of size 0 running: no -1 beside a copied axis."
    )

    def call(self, model: ir.Model) -> PassResult:
        """Simplify the main graph and its subgraphs."""
        if any(f.domain in ("", "ai.onnx") for f in model.functions.values()):
            return PassResult(model, False, "a function takes the place of a standard operator")
        work = _Work(model, self.name, self.allow_empty)
        for graph in (model.graph, *subgraphs_below(model.graph)):
            work.simplify(graph)
        return PassResult(model, work.done.total() > 0, work.summary(), work.refusals)


class _Work:
    """One run over one model."""

    def __init__(self, model: ir.Model, rule: str, allow_empty: bool) -> None:
        self.model = model
        self.allow_empty = allow_empty
        self.rule = rule
        self.opset = model.opset_imports.get("", 1)
        self.known = shapes.infer(model)
        self.done: collections.Counter[str] = collections.Counter()
        self.refusals: list[Refusal] = []
        self._names: Names | None = None
        self._targets: dict[tuple[ir.Graph, tuple[int, ...] | int], ir.Value] = {}

    def summary(self) -> str:
        """What was done, most frequent first."""
        listed = ", ".join(f"{count} {what}" for what, count in self.done.most_common() if count)
        return listed or "nothing to simplify"

    def simplify(self, graph: ir.Graph) -> None:
        """All steps on one graph."""
        unused = [node for node in graph if not any(map(is_used, node.outputs))]
        self.done["unused node"] += remove_unused(unused).nodes
        for node in list(graph):
            if node.graph is not None and is_op(node, "Reshape", "Expand") and len(node.inputs) == 2:
                self.settle(node, graph)
        self.share(graph)
        self.rebuild(graph)

    # Targets.

    def settle(self, node: ir.Node, graph: ir.Graph) -> None:
        """Take a Reshape or Expand out, or give it a constant target."""
        data, target = node.inputs
        if data is None or target is None:
            return
        if self.is_copy(node, data) and replace_value(node.outputs[0], data):
            self.finish(node, "no-op")
        elif node.op_type == "Expand" and self.bypass(node, data):
            self.finish(node, "bypassed Expand")
        elif constant_of(target) is None:
            self.fix(node, target, graph)

    def is_copy(self, node: ir.Node, data: ir.Value) -> bool:
        """Whether the output has the shape of the input."""
        before, after = self.known[data].dims, self.known[node.outputs[0]].dims
        return before is not None and after is not None and same_dims(before, after)

    def bypass(self, node: ir.Node, data: ir.Value) -> bool:
        """Let the users of an Expand read its input, where all of them broadcast it themselves."""
        output = node.outputs[0]
        users = output.consumers()
        if not users or output.is_graph_output():
            return False
        if not all(is_op(u, *BROADCASTING) and is_bypassed(node, u, self.known) for u in users):
            return False
        output.replace_all_uses_with(data)
        return True

    def fix(self, node: ir.Node, target: ir.Value, graph: ir.Graph) -> None:
        """Give the node a constant target."""
        wanted = self.constant_target(node, target)
        if isinstance(wanted, str):
            self.refusals.append(Refusal(self.rule, describe(node), wanted))
            return
        node.replace_input_with(1, self.constant(graph, wanted, f"{node.outputs[0].name}_target"))
        node.attributes.pop("allowzero", None)
        self.finish(node, f"{node.op_type} target", target)

    def constant_target(self, node: ir.Node, target: ir.Value) -> tuple[int, ...] | str:
        """The numbers, or why there are none."""
        data = node.inputs[0]
        assert data is not None
        if node.op_type == "Reshape":
            allowzero = node.attributes.get_int("allowzero", 0) != 0
            output = self.known[node.outputs[0]]
            known = (self.known[data], self.known[target], output)
            return reshape_target(*known, allowzero=allowzero, allow_empty=self.allow_empty)
        found = expand_target(self.known[data], self.known[target])
        return found if found is not None else "the target asks for axes that the input does not have"

    def finish(self, node: ir.Node, what: str, target: ir.Value | None = None) -> None:
        """Count what was done and remove what it left unused."""
        self.done[what] += 1
        made_by = node if target is None else target.producer()
        if made_by is not None:
            remove_unused([made_by])

    def constant(self, graph: ir.Graph, numbers: tuple[int, ...] | int, wanted: str) -> ir.Value:
        """An initializer that holds the numbers, one for each vector and graph."""
        found = self._targets.get((graph, numbers))
        if found is None or not found.is_initializer():
            found = add_initializer(graph, self.fresh(wanted), np.asarray(numbers, np.int64))
            self._targets[graph, numbers] = found
        return found

    def fresh(self, wanted: str) -> str:
        """A name that no value has."""
        if self._names is None:
            self._names = Names(self.model)
        return self._names.fresh(wanted)

    # Values of shape arithmetic.

    def share(self, graph: ir.Graph) -> None:
        """Let equal values be one."""
        first: dict[VectorKey, ir.Value] = {}
        released: list[ir.Node] = []
        for node in graph:
            for output in node.outputs:
                key = key_of(self.known[output])
                equal = first.setdefault(key, output) if key is not None else output
                if equal is not output and use_count(output) and not output.is_graph_output():
                    output.replace_all_uses_with(equal)
                    released.append(node)
        self.done["shared value"] += len(released)
        remove_unused(released)  # only now, since any value may be the first of those that follow

    def rebuild(self, graph: ir.Graph) -> None:
        """Put vectors together anew where that takes fewer nodes."""
        sources = Sources(self.known, self.opset)
        if graph is self.model.graph:
            for value in graph.inputs:
                sources.add(value)
        for node in list(graph):
            if node.graph is None:
                continue
            for output in node.outputs:
                self.rebuild_value(output, sources, graph)
            sources.pass_by(node)

    def rebuild_value(self, output: ir.Value, sources: Sources, graph: ir.Graph) -> None:
        """Put one vector together anew, where something else than shape arithmetic reads it."""
        known = self.known[output]
        key = key_of(known)
        node = output.producer()
        if key is None or node is None or output.is_graph_output() or node.op_type == "Shape":
            return
        if len(node.outputs) > 1:
            return
        if not any(key_of(self.known[o]) is None for user in output.consumers() for o in user.outputs):
            return
        plans = [(exclusive_nodes(node, plan.reads) - plan.cost, plan) for plan in sources.plans(known)]
        saved, plan = max(plans, key=lambda p: p[0], default=(0, None))
        if plan is None or saved <= 0:
            return
        value = plan.build(
            node, lambda numbers: self.constant(graph, numbers, f"{output.name}_part"), self.fresh
        )
        for made, inferred in plan.made:
            self.known[made] = inferred
            sources.remember(made)
        output.replace_all_uses_with(value)
        self.finish(node, "rebuilt vector")
