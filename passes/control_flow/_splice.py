"""Move the contents of one graph into another, and take out nodes together with their subgraphs."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from graphopt.graph import can_replace, replace_value, subgraphs_of

__all__ = ["ScopeNames", "copy_of", "discard", "identity", "release", "splice", "substitute"]


class ScopeNames:
    """How often each name occurs in a top graph (the main one or a function's body) and its subgraphs.

    Sibling subgraphs may share names, but where a value moves to an outer graph its name must be the only
    one: ONNX forbids shadowing.
    """

    def __init__(self, top: ir.Graph) -> None:
        self._values = _Names()
        self._nodes = _Names()
        self.add(top)

    def add(self, graph: ir.Graph) -> None:
        """Count the names of a graph and its subgraphs."""
        for owner in (graph, *graph.subgraphs()):
            self._values.count.update(v.name for v in _own_values(owner) if v.name)
            self._nodes.count.update(n.name for n in owner if n.name)

    def fresh(self, wanted: str) -> str:
        """``wanted``, or ``wanted_1``, ``wanted_2`` … where a value has that name."""
        return self._values.fresh(wanted)

    def make_unique(self, graph: ir.Graph, *, within: bool = False) -> None:
        """Rename what shares its name with anything else; ``within``: in subgraphs of ``graph`` as well."""
        for owner in (graph, *(graph.subgraphs() if within else ())):
            for value in list(_own_values(owner)):
                self._values.rename(value)
            for node in owner:
                self._nodes.rename(node)


class _Names:
    """How often each name is used, and for each name the last number that made a fresh one of it."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self._last: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        name = wanted
        while self.count[name]:
            self._last[wanted] = self._last.get(wanted, 0) + 1
            name = f"{wanted}_{self._last[wanted]}"
        self.count[name] += 1
        return name

    def rename(self, item: ir.Value | ir.Node) -> None:
        name = item.name
        if name and self.count[name] > 1:
            self.count[name] -= 1
            item.name = self.fresh(name)


def _own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that the graph itself defines."""
    yield from graph.inputs
    yield from (v for v in graph.initializers.values() if not v.is_graph_input())
    yield from (o for node in graph for o in node.outputs)


def _nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of the node and all graphs inside them."""
    for graph in subgraphs_of(node):
        yield graph
        yield from graph.subgraphs()


def release(node: ir.Node) -> None:
    """Let the node, and whatever is inside it, use no value any more."""
    for inner in (node, *(dead for graph in list(_nested_graphs(node)) for dead in graph)):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)


def discard(node: ir.Node) -> None:
    """Remove a node whose outputs nobody uses, with all that it and its subgraphs use."""
    graph = node.graph
    assert graph is not None
    release(node)
    graph.remove(node, safe=True)


def copy_of(body: ir.Graph, names: ScopeNames) -> ir.Graph:
    """A copy of a body under names of its own; it sees the same outer values, tensors are shared."""
    copy = body.clone(allow_outer_scope_values=True)
    names.add(copy)
    names.make_unique(copy, within=True)
    return copy


def splice(
    body: ir.Graph,
    arguments: Sequence[ir.Value | None],
    before: ir.Node,
    names: ScopeNames,
    *,
    as_nodes: bool = False,
) -> tuple[list[ir.Node], list[ir.Value | None]]:
    """Move the nodes and initializers of ``body`` in front of ``before``; the body is empty afterwards.

    Args:
        body: The graph to take apart; it belongs to nothing that is still needed.
        arguments: What stands for each of its inputs; None for an input that the caller leaves out.
        before: The node in front of which the nodes go.
        names: The names around ``before``, those of ``body`` included.
        as_nodes: Whether initializers become Constant nodes, as they must at the top of a function.

    Returns:
        The nodes, and the values that stand for the body's outputs.
    """
    target = before.graph
    assert isinstance(target, ir.Graph)
    names.make_unique(body)
    stands_for = dict(zip(body.inputs, arguments, strict=True))
    outputs = [stands_for.get(v, v) for v in body.outputs]
    body.outputs.clear()
    for parameter, argument in stands_for.items():
        for user, index in parameter.uses():
            user.replace_input_with(index, argument)
    nodes = list(body)
    body.remove(nodes)
    target.insert_before(before, nodes)
    lifted = _lift_initializers(body, target, before=nodes[0] if nodes else before, as_nodes=as_nodes)
    return nodes, [lifted.get(v, v) if v is not None else None for v in outputs]


def _lift_initializers(
    body: ir.Graph, target: ir.Graph, *, before: ir.Node, as_nodes: bool
) -> dict[ir.Value, ir.Value]:
    """Move the initializers to ``target``; the values of those that became nodes."""
    lifted: dict[ir.Value, ir.Value] = {}
    for name, value in list(body.initializers.items()):
        del body.initializers[name]
        if not as_nodes:
            target.register_initializer(value)
            continue
        constant = ir.node("Constant", [], {"value": value.const_value})
        lifted[value] = constant.outputs[0]
        lifted[value].name = value.name
        target.insert_before(before, constant)
        value.replace_all_uses_with(lifted[value])
    return lifted


def identity(value: ir.Value, before: ir.Node, name: str) -> ir.Value:
    """A copy of ``value`` under the name ``name``, made in front of ``before``."""
    node = ir.node("Identity", [value])
    node.outputs[0].name = name
    node.outputs[0].type = value.type
    graph = before.graph
    assert graph is not None
    graph.insert_before(before, node)
    return node.outputs[0]


def substitute(node: ir.Node, values: Iterable[ir.Value | None], names: ScopeNames) -> None:
    """Let ``values`` stand for the outputs of ``node``, then remove it; graph outputs keep name and type.

    Where a graph output would have to be a graph input, an initializer, a value of an outer graph or another
    output, an Identity makes it.
    """
    for old, new in zip(node.outputs, values, strict=False):
        if new is None or not (old.uses() or old.is_graph_output()):
            continue
        if not can_replace(old, new):
            new = identity(new, node, names.fresh(new.name or "copy"))
        if new.type is None:
            new.type = old.type
        replace_value(old, new)
    discard(node)
