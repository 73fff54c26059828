"""Small helpers on onnx_ir graphs that every pass needs, and that respect scopes and interfaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

__all__ = [
    "Names",
    "Scope",
    "add_initializer",
    "all_nodes",
    "array_of",
    "can_replace",
    "captured_values",
    "constant_of",
    "describe",
    "has_subgraphs",
    "is_default_domain",
    "is_used",
    "release",
    "replace_value",
    "scopes",
    "subgraphs_below",
    "subgraphs_of",
    "use_count",
]


_TENSOR: Final = ir.AttributeType.TENSOR
_GRAPH: Final = ir.AttributeType.GRAPH
_GRAPH_TYPES: Final = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_DEFAULT_DOMAINS: Final = frozenset({"", "ai.onnx"})


class Scope(NamedTuple):
    """One graph of a model with the standard opset that holds in it."""

    graph: ir.Graph
    opset: int


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Every graph of the model: the main one, the functions' bodies, and all subgraphs of these."""
    opset = model.opset_imports.get("", 1)
    yield Scope(model.graph, opset)
    yield from (Scope(graph, opset) for graph in subgraphs_below(model.graph))
    for function in model.functions.values():
        own = function.opset_imports.get("", opset)
        yield Scope(function.graph, own)
        yield from (Scope(graph, own) for graph in subgraphs_below(function.graph))


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the model, those of subgraphs and functions included."""
    for scope in scopes(model):
        yield from scope.graph


def is_default_domain(node: ir.Node) -> bool:
    """Whether the node's operator belongs to the standard ONNX domain."""
    return node.domain in _DEFAULT_DOMAINS


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a value that no caller can override: an initializer that is not a graph input,
    or the output of a Constant node that holds a tensor or numbers. None for anything else.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or not is_default_domain(node):
        return None
    return _constant_node_tensor(node)


_CONSTANT_DTYPES = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


#: Where the attribute of a Constant node keeps the tensor that was made of its numbers.
_KEPT: Final = "graphopt.tensor"


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    attributes = node.attributes.data
    if len(attributes) != 1:
        return None
    attribute = next(iter(attributes.values()))
    if attribute.is_ref():
        return None
    if attribute.name == "value":  # not as_tensor(): its protocol check costs more than all else here
        return attribute.value if attribute.type == _TENSOR else None
    if attribute.name in _CONSTANT_DTYPES:
        kept = attribute.meta.get(_KEPT)
        if kept is None:
            array = np.asarray(attribute.value, _CONSTANT_DTYPES[attribute.name])
            kept = attribute.meta[_KEPT] = ir.Tensor(array)
        return kept
    return None  # strings and sparse tensors are nothing that arithmetic is done with


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The numpy array of :func:`constant_of`, read-only by agreement; None where there is none."""
    tensor = constant_of(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def use_count(value: ir.Value) -> int:
    """How often nodes read the value; ``len(value.uses())`` would copy them all, and there may be many."""
    return len(value._uses)


def is_used(value: ir.Value) -> bool:
    """Whether a node reads the value or a graph returns it."""
    return bool(value._uses) or value.is_graph_output()


def release(tensor: ir.TensorProtocol | None) -> None:
    """Unmap the file of a tensor that lies in one; it maps again when it is next read."""
    if isinstance(tensor, ir.ExternalTensor):
        try:
            tensor.release()
        except BufferError:  # someone still holds an array of it: the map closes with that
            tensor.raw = None


class Names:
    """Fresh value names. ONNX forbids shadowing, so a name must be new in every scope of the model."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}
        for graph, _ in scopes(model):
            self._taken.update(v.name for v in graph.inputs if v.name)
            self._taken.update(graph.initializers)
            self._taken.update(o.name for node in graph for o in node.outputs if o.name)

    def fresh(self, wanted: str) -> str:
        """``wanted``, or ``wanted_1``, ``wanted_2`` … where it is taken."""
        if wanted not in self._taken:
            self._taken.add(wanted)
            return wanted
        count = self._last.get(wanted, 0) + 1
        while f"{wanted}_{count}" in self._taken:
            count += 1
        self._last[wanted] = count
        self._taken.add(f"{wanted}_{count}")
        return f"{wanted}_{count}"


def add_initializer(graph: ir.Graph, name: str, data: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """Register ``data`` as an initializer of ``graph``; ``name`` must be fresh (see :class:`Names`)."""
    tensor = ir.Tensor(np.asarray(data, order="C"), name=name) if isinstance(data, np.ndarray) else data
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether every use of ``old`` can become a use of ``new`` without renaming the interface.

    It cannot where ``old`` is a graph output while ``new`` is a graph input, an initializer, another graph
    output, or lives in another scope; and ``new`` must be another value than ``old``.
    """
    if old is new or not old.is_graph_output():
        return old is not new
    producer = new.producer()
    if producer is None or new.is_graph_output() or new.is_graph_input():
        return False
    return producer.graph is old.graph


def replace_value(old: ir.Value, new: ir.Value) -> bool:
    """Make every use of ``old`` a use of ``new``; a graph output keeps its name and type.

    Returns False, with nothing changed, where :func:`can_replace` says no.
    """
    if not can_replace(old, new):
        return False
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return True
    name, type_, shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name, new.type, new.shape = name, type_, shape
    return True


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that the node's attributes hold (branches, loop bodies), not those nested inside them."""
    for attribute in node.attributes.data.values():
        if attribute.type in _GRAPH_TYPES and not attribute.is_ref():
            yield from (attribute.as_graph(),) if attribute.type == _GRAPH else attribute.as_graphs()


def has_subgraphs(node: ir.Node) -> bool:
    """Whether an attribute of the node holds a graph."""
    attributes = node.attributes.data
    return bool(attributes) and next(subgraphs_of(node), None) is not None


def subgraphs_below(graph: ir.Graph) -> list[ir.Graph]:
    """All graphs inside of ``graph``, nested ones too, each before those that it holds."""
    found: dict[ir.Graph, None] = {}
    _collect_below(graph, found)
    return list(found)


def _collect_below(graph: ir.Graph, found: dict[ir.Graph, None]) -> None:
    for node in graph:
        if node.attributes.data:  # most nodes have none, and this walk is taken often
            for inner in subgraphs_of(node):
                found[inner] = None
                _collect_below(inner, found)


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values of outer scopes that the node's subgraphs use, each once, in order of first use."""
    found: dict[ir.Value, None] = {}
    for graph in subgraphs_of(node):
        _collect_captures(graph, set(), found)
    return list(found)


def _collect_captures(graph: ir.Graph, defined: set[ir.Value], found: dict[ir.Value, None]) -> None:
    defined = defined | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        defined.update(node.outputs)
    for node in graph:
        for value in (*node.inputs, *captured_values(node)):
            if value is not None and value not in defined:
                found[value] = None
    for output in graph.outputs:
        if output not in defined:
            found[output] = None


def describe(node: ir.Node) -> str:
    """A node as messages name it: ``Conv 'block1/conv'``, by its first output where it has no name."""
    if node.name:
        return f"{node.op_type} '{node.name}'"
    output = next((o.name for o in node.outputs if o.name), "?")
    return f"{node.op_type} (output '{output}')"
