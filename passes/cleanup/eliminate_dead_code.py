"""Remove what no output of the model depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

import onnx_ir as ir

from graphopt.graph import is_default_domain, is_used, scopes, subgraphs_of
from graphopt.passes.cleanup._common import WITH_BY_PRODUCTS
from graphopt.registry import Pass, PassResult, register

__all__ = ["EliminateDeadCode"]

_DEFAULT_DOMAINS: Final = frozenset({"", "ai.onnx"})

#: Since then all trailing outputs of these operators are optional (GRU's were not in opset 1).
_BY_PRODUCTS_OPSET: Final = 7


@register
@dataclasses.dataclass(eq=False)
class EliminateDeadCode(Pass):
    """Remove nodes, initializers, functions and opset imports that nothing uses.

    1. Nodes that no output depends on, in the main graph, in subgraphs and in model-local functions. A node
       with subgraphs is no exception: ONNX has no side effects.
    2. Model-local functions that no remaining node calls, directly or through another function.
    3. Initializers that nothing uses, in every graph.
    4. Trailing optional outputs that nobody reads, of operators where this changes no other output
       (the mask of Dropout, the indices of MaxPool, the last states of LSTM ...).
    5. Opset imports of domains that no remaining node belongs to.

    Never removed: graph inputs and the initializers that are their defaults, graph outputs, the import of the
    default domain.
    """

    name = "eliminate-dead-code"

    def call(self, model: ir.Model) -> PassResult:
        """Remove everything dead in one sweep; a second run finds nothing."""
        live = _live_nodes([model.graph, *(f.graph for f in model.functions.values())])
        counts = {
            "node": _remove_dead_nodes(model, live),
            "function": _remove_unused_functions(model),
            "initializer": sum(_remove_unused_initializers(scope.graph) for scope in scopes(model)),
            "output": sum(_drop_by_products(scope.graph, scope.opset) for scope in scopes(model)),
            "opset import": _remove_unused_imports(model),
        }
        found = [f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count]
        return PassResult(model, bool(found), f"removed {', '.join(found)}" if found else "nothing dead")


def _live_nodes(roots: Iterable[ir.Graph]) -> set[ir.Node]:
    """Every node that an output of one of the graphs depends on, through inputs and captured values."""
    live: set[ir.Node] = set()
    pending: list[ir.Value | None] = [value for graph in roots for value in graph.outputs]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is None or node in live:
            continue
        live.add(node)
        pending.extend(node.inputs)
        for graph in subgraphs_of(node):
            pending.extend(graph.outputs)
    return live


def _remove_dead_nodes(model: ir.Model, live: set[ir.Node]) -> int:
    count = 0
    for graph in [
        scope.graph for scope in scopes(model)
    ]:  # those inside dead nodes too: they use outer values
        dead = [node for node in graph if node not in live]
        for node in dead:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        graph.remove(dead)
        count += len(dead)
    return count


def _remove_unused_functions(model: ir.Model) -> int:
    called: set[ir.OperatorIdentifier] = set()
    pending = [model.graph]
    while pending:
        for node in pending.pop().all_nodes():
            identifier = node.op_identifier()
            if identifier in model.functions and identifier not in called:
                called.add(identifier)
                pending.append(model.functions[identifier].graph)
    unused = model.functions.keys() - called
    for identifier in unused:
        del model.functions[identifier]
    return len(unused)


def _remove_unused_initializers(graph: ir.Graph) -> int:
    unused = [
        name
        for name, value in graph.initializers.items()
        if not is_used(value) and not value.is_graph_input()
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)


def _drop_by_products(graph: ir.Graph, opset: int) -> int:
    if opset < _BY_PRODUCTS_OPSET:
        return 0
    count = 0
    for node in graph:
        if node.op_type not in WITH_BY_PRODUCTS or not is_default_domain(node):
            continue
        wanted = [i for i, value in enumerate(node.outputs) if is_used(value)]
        surplus = [value for value in node.outputs[wanted[-1] + 1 :] if value.name]
        if surplus:
            node.resize_outputs(wanted[-1] + 1)
            count += len(surplus)
    return count


def _remove_unused_imports(model: ir.Model) -> int:
    used = {node.domain for node in model.graph.all_nodes()}
    count = 0
    for function in model.functions.values():
        own = {node.domain for node in function.all_nodes()}
        used |= own | {function.domain}
        count += _remove_imports(function.opset_imports, own)
    return count + _remove_imports(model.opset_imports, used)


def _remove_imports(imports: dict[str, int], used: set[str]) -> int:
    unused = imports.keys() - used - _DEFAULT_DOMAINS
    for domain in unused:
        del imports[domain]
    return len(unused)
