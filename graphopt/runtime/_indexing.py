"""What the operators that take indices index: which axis of which value, and how large it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, is_default_domain

__all__ = [
    "MOST_ELEMENTS",
    "IndexedAxis",
    "indexed",
    "integer_attribute",
    "integers_of",
    "size_of_axis",
]

#: Constants larger than this are not looked into.
MOST_ELEMENTS = 1 << 20


def integers_of(value: ir.Value | None) -> np.ndarray | None:
    """A constant's elements, at least one, where they are integers and not too many to look at."""
    tensor = constant_of(value)
    if tensor is None or not tensor.dtype.is_integer() or not 0 < tensor.size <= MOST_ELEMENTS:
        return None
    return tensor.numpy()


def integer_attribute(node: ir.Node, name: str) -> int:
    """An attribute with the default 0; also 0 where a function leaves it to its caller."""
    attribute = node.attributes.get(name)
    return 0 if attribute is None or attribute.is_ref() else attribute.as_int()


class IndexedAxis(NamedTuple):
    """An axis of a value, that something indexes."""

    value: ir.Value | None
    axis: int


Targets = Sequence[int | IndexedAxis]


def indexed(node: ir.Node, index: int) -> Targets:
    """What this input of the node indexes: axes of values, or a number of rows."""
    domain = "" if is_default_domain(node) else node.domain
    lookup = _LOOKUPS.get((domain, node.op_type))
    return () if lookup is None else lookup(node, index)


def _along_axis(node: ir.Node, index: int) -> Targets:
    return [IndexedAxis(node.inputs[0], integer_attribute(node, "axis"))] if index == 1 else []


def _along_gather_axis(node: ir.Node, index: int) -> Targets:
    return [IndexedAxis(node.inputs[0], integer_attribute(node, "gather_axis"))] if index == 1 else []


def _along_leading_axes(node: ir.Node, index: int) -> Targets:
    """GatherND and ScatterND: the last axis of the indices holds one index for each leading axis."""
    if index != 1:
        return []
    data, indices = node.inputs[:2]
    depth = indices.shape[-1] if indices is not None and indices.shape else None
    first = integer_attribute(node, "batch_dims")
    rank = len(data.shape) if data is not None and data.shape is not None else 0
    last = min(first + depth, rank) if isinstance(depth, int) else rank
    return [IndexedAxis(data, axis) for axis in range(first, last)]


def _one_hot_depth(node: ir.Node, index: int) -> Targets:
    depth = integers_of(node.inputs[1]) if index == 0 else None
    return [] if depth is None else [int(depth.reshape(-1)[0])]


def _table_of(tables: dict[int, int]) -> Callable[[ir.Node, int], Targets]:
    """An operator whose input ``index`` selects rows of its input ``tables[index]``."""

    def lookup(node: ir.Node, index: int) -> Targets:
        table = tables.get(index, len(node.inputs))
        return [IndexedAxis(node.inputs[table], 0)] if table < len(node.inputs) else []

    return lookup


_LOOKUPS: dict[tuple[str, str], Callable[[ir.Node, int], Targets]] = {
    ("", "Gather"): _along_axis,
    ("", "GatherElements"): _along_axis,
    ("", "ScatterElements"): _along_axis,
    ("", "GatherND"): _along_leading_axes,
    ("", "ScatterND"): _along_leading_axes,
    ("", "OneHot"): _one_hot_depth,
    ("", "RotaryEmbedding"): _table_of({3: 1}),
    ("com.microsoft", "RotaryEmbedding"): _table_of({1: 2}),
    ("com.microsoft", "EmbedLayerNormalization"): _table_of({0: 2, 1: 4, 8: 3}),
    ("com.microsoft", "QEmbedLayerNormalization"): _table_of({0: 2, 1: 4}),
    ("com.microsoft", "GatherBlockQuantized"): _along_gather_axis,
}


def size_of_axis(value: ir.Value | None, axis: int) -> int | tuple[str, int] | None:
    """The size of an axis: known, that of a graph input, or None."""
    if value is None:
        return None
    tensor = constant_of(value)
    if tensor is not None:
        shape = tensor.shape.numpy()
        return int(shape[axis]) if -len(shape) <= axis < len(shape) else None
    if value.shape is not None and -len(value.shape) <= axis < len(value.shape):
        dim = value.shape[axis]
        if isinstance(dim, int) and dim >= 0:
            return dim
        if value.is_graph_input() and value.name and value.producer() is None:
            return value.name, axis % len(value.shape)
    return _size_of_source(value, axis)


def _size_of_source(value: ir.Value, axis: int) -> int | tuple[str, int] | None:
    """Through operators that keep the shape: a table may be dequantized or cast before it is used."""
    node = value.producer()
    if node is None or node.op_type not in ("DequantizeLinear", "Cast", "Identity"):
        return None
    return size_of_axis(node.inputs[0], axis)
