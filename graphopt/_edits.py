"""Edits that a rewrite makes besides its new nodes: constants come, what nothing uses any more goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir as ir

from graphopt.graph import has_subgraphs, is_used, use_count

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
    pending, count = list(nodes), 0
    released: dict[ir.Value, None] = {}
    while pending:
        node = pending.pop()
        graph = node.graph
        if graph is None or any(map(is_used, node.outputs)):
            continue
        if has_subgraphs(node):
            continue  # its body uses outer values; dead-code elimination knows how to take it out
        inputs = [value for value in node.inputs if value is not None]
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        graph.remove(node)
        count += 1
        for value in inputs:
            made_by = value.producer()
            released[value] = None
            if made_by is not None:
                pending.append(made_by)
            elif value.is_initializer() and not use_count(value):
                _remove_initializer(value)
    return Removed(count, list(released))


def unname_twins(nodes: Iterable[ir.Node]) -> None:
    """Leave a node name to the first that has it: onnxruntime refuses a graph with two nodes of one name."""
    named: set[str] = set()
    for node in dict.fromkeys(nodes):
        if node.graph is None or not node.name:
            continue
        if node.name in named:
            node.name = None
        else:
            named.add(node.name)


def _remove_initializer(value: ir.Value) -> None:
    graph, name = value.graph, value.name
    if graph is not None and name is not None and not (value.is_graph_input() or value.is_graph_output()):
        graph.initializers.pop(name)
