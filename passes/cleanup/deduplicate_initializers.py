"""Keep one of several initializers that hold the same tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

import onnx_ir as ir

from graphopt.graph import subgraphs_of
from graphopt.passes.cleanup._content import HEAD_BYTES, content, head
from graphopt.registry import Pass, PassResult, register

__all__ = ["DeduplicateInitializers"]


class _Candidate(NamedTuple):
    """An initializer with the graphs it can be seen from, its own first."""

    value: ir.Value
    tensor: ir.TensorProtocol
    chain: tuple[ir.Graph, ...]

    @property
    def signature(self) -> Hashable:
        return self.tensor.dtype, tuple(self.tensor.shape)


@register
@dataclasses.dataclass(eq=False)
class DeduplicateInitializers(Pass):
    """Keep one of several initializers that hold the same tensor: dtype, shape and every bit.

    1. Equal initializers of one graph become the one of the shortest name, so that the file never grows.
    2. An initializer of a subgraph that equals one of an enclosing graph becomes that one.

    It does not fire on initializers that are graph inputs (a caller may override them) or graph outputs, nor
    between sibling subgraphs. A tensor whose dtype and shape no other has is never read; others are
    compared by their first bytes, then by SHA-256, and external data is read piece by piece. One that is
    computed from large external data whenever it is read (a scaled weight) is left alone.
    """

    name = "deduplicate-initializers"

    def call(self, model: ir.Model) -> PassResult:
        """Merge equal initializers in the main graph and all subgraphs."""
        candidates = [c for graph in _roots(model) for c in _candidates(graph, ())]
        count, size = 0, 0
        for equal in _equal(candidates):
            for duplicate in _merge(equal):
                count += 1
                size += duplicate.tensor.nbytes
        what = f"merged {count} initializer{'s' if count > 1 else ''} ({size:,} bytes)"
        return PassResult(model, bool(count), what if count else "no duplicates")


def _roots(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from (function.graph for function in model.functions.values())


def _candidates(graph: ir.Graph, outer: tuple[ir.Graph, ...]) -> Iterator[_Candidate]:
    """The constant initializers of a graph, then those of its subgraphs."""
    chain = (graph, *outer)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.LazyTensor):
            continue
        if not value.is_graph_input() and not value.is_graph_output():
            yield _Candidate(value, tensor, chain)
    for node in graph:
        for subgraph in subgraphs_of(node):
            yield from _candidates(subgraph, chain)


def _equal(candidates: list[_Candidate]) -> Iterator[list[_Candidate]]:
    for same_signature in _groups(candidates, lambda c: c.signature):
        for same_head in _groups(same_signature, lambda c: head(c.tensor)):
            if same_head[0].tensor.nbytes <= HEAD_BYTES:
                yield same_head
            else:
                yield from _groups(same_head, lambda c: content(c.tensor))


def _groups(items: Iterable[_Candidate], key: Callable[[_Candidate], Hashable]) -> list[list[_Candidate]]:
    """The items by key, in order, without those whose key no other has."""
    groups: dict[Hashable, list[_Candidate]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def _merge(equal: list[_Candidate]) -> Iterator[_Candidate]:
    """Replace each initializer by an equal one that its graph sees; yields those that went."""
    kept: dict[ir.Graph, ir.Value] = {}
    for candidate in sorted(equal, key=lambda c: (len(c.chain), len(str(c.value.name)))):
        keeper = next((kept[graph] for graph in candidate.chain if graph in kept), None)
        if keeper is None:
            kept[candidate.chain[0]] = candidate.value
            continue
        candidate.value.replace_all_uses_with(keeper)
        del candidate.chain[0].initializers[str(candidate.value.name)]
        yield candidate
