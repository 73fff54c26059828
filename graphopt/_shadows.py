"""Names in subgraphs that hide names of the graphs around them."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.graph import subgraphs_below, subgraphs_of

__all__ = ["unshadow"]


def unshadow(model: ir.Model) -> int:
    """Rename values of subgraphs that are called like a value of a graph around them; their number.

    ONNX forbids this, but its checker and onnxruntime accept it for inputs and initializers of subgraphs and
    for outer values that are made later. A pass that lets a subgraph use the outer value would then change
    its meaning as soon as the model is written, for a file knows values by their names.
    """
    return sum(_Walk(top).run() for top in (model.graph, *(f.graph for f in model.functions.values())))


class _Walk:
    """One walk down the subgraphs of a main graph or function."""

    def __init__(self, top: ir.Graph) -> None:
        self._top = top
        self._visible: collections.Counter[str] = collections.Counter()
        self._taken: set[str] = set()
        self._renamed = 0

    def run(self) -> int:
        inside = subgraphs_below(self._top)
        if inside:
            for graph in (self._top, *inside):
                self._taken.update(v.name for v in _own_values(graph) if v.name)
            self._visit(self._top)
        return self._renamed

    def _visit(self, graph: ir.Graph) -> None:
        for value in list(_own_values(graph)):
            if value.name and self._visible[value.name]:
                value.name = self._fresh(value.name)
                self._renamed += 1
        names = [v.name for v in _own_values(graph) if v.name]
        self._visible.update(names)
        for node in graph:
            for inner in subgraphs_of(node):
                self._visit(inner)
        self._visible.subtract(names)

    def _fresh(self, wanted: str) -> str:
        count = 1
        while f"{wanted}_{count}" in self._taken:
            count += 1
        self._taken.add(f"{wanted}_{count}")
        return f"{wanted}_{count}"


def _own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that the graph itself defines, each once."""
    yield from graph.inputs
    yield from (v for v in graph.initializers.values() if not v.is_graph_input())
    yield from (value for node in graph for value in node.outputs)
