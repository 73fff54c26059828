"""Edits that a rewrite makes besides its new nodes: constants come, what nothing uses any more goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir as ir

from graphopt.graph import is_used, subgraphs_of, use_count

__all__ = ["add_constant_node", "is_gone", "remove_unused", "unname_twins"]


def add_constant_node(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape)
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name=name)
    graph.insert_before(graph[0], node)
    return value


def is_gone(value: ir.Value) -> bool:
    node = value.producer()
    return node.graph is None if node is not None else not value.is_initializer()


class Removed(NamedTuple):
    """What :func:`remove_unused` did: how many nodes went, and the values that lost a use."""

    nodes: int
    released: list[ir.Value]


def remove_unused(nodes: Iterable[ir.Node]) -> Removed:
    """Remove those nodes that nothing uses, then the nodes and initializers that only they used."""
    pending = list(nodes)
    gone: set[ir.Node] = set()
    by_graph: dict[ir.Graph, list[ir.Node]] = {}
    released: dict[ir.Value, None] = {}
    while pending:
        node = pending.pop()
        graph = node.graph
        if graph is None or node in gone or any(map(is_used, node.outputs)):
            continue
        inputs: list[ir.Value] = []
        for dead in (node, *(inner for body in subgraphs_of(node) for inner in body.all_nodes())):
            assert dead.graph is not None
            inputs += (value for value in dead.inputs if value is not None)
            for index in range(len(dead.inputs)):
                dead.replace_input_with(index, None)
            gone.add(dead)
            by_graph.setdefault(dead.graph, []).append(dead)
        for value in inputs:
            made_by = value.producer()
            released[value] = None
            if made_by is not None:
                pending.append(made_by)
            elif value.is_initializer() and not use_count(value):
                _remove_initializer(value)
    for owner, unused in by_graph.items():
        owner.remove(unused)
    return Removed(len(gone), list(released))


def unname_twins(nodes: Iterable[ir.Node]) -> None:
    """Leave a node name to the first that has it: onnxruntime refuses a graph with two nodes of one name."""
    named: dict[str, ir.Node] = {}
    for node in nodes:
        name = node.name
        if name and node.graph is not None and named.setdefault(name, node) is not node:
            node.name = None


def _remove_initializer(value: ir.Value) -> None:
    graph, name = value.graph, value.name
    if graph is not None and name is not None and not (value.is_graph_input() or value.is_graph_output()):
        graph.initializers.pop(name)
