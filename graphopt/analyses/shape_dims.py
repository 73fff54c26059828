"""Dimensions as ``onnx-shape-inference`` handles them: integers, names of axes, expressions of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import onnx_ir as ir

__all__ = [
    "PLACEHOLDER",
    "Dim",
    "Rule",
    "axis_of",
    "is_axis",
    "is_placeholder",
    "renew",
    "same",
    "static_dims",
]

Dim = int | ir.SymbolicDim
#: A rule of the library: reads a node's inputs, sets shape and dtype of its outputs.
Rule = Callable[[Any, ir.Node], None]

#: Name of an element of which nothing is known, not even that it is no negative number.
PLACEHOLDER = "unknown__"
_NAME = re.compile(r"[A-Za-z_][\w.]*")


def is_placeholder(dim: Dim) -> bool:
    """Whether an element is one of which nothing is known."""
    return not isinstance(dim, int) and (dim.value is None or PLACEHOLDER in dim.value)


def is_axis(dim: Dim) -> bool:
    """Whether a dimension is the size of one named axis, hence at least 0."""
    return isinstance(dim, ir.SymbolicDim) and bool(_NAME.fullmatch(dim.value or ""))


def same(left: Dim, right: Dim) -> bool:
    """Whether two dimensions are equal at all sizes of their axes, as far as their text tells."""
    if isinstance(left, int) or isinstance(right, int):
        return left is right or left == right
    return left.value is not None and left.value == right.value


def static_dims(shape: ir.Shape | None) -> tuple[int, ...] | None:
    """The dimensions where all of them are integers."""
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else None


def renew(context: Any, output: ir.Value, axes: Iterable[int]) -> None:
    """Give ``output`` new axes at ``axes``, about which nothing is known."""
    if output.shape is not None:
        dims = list(output.shape.dims)
        for axis in axes:
            dims[axis] = context.new_symbolic_dim()
        output.shape = ir.Shape(dims)


def axis_of(node: ir.Node, default: int) -> int:
    """The attribute ``axis``."""
    attribute = node.attributes.get("axis")
    return default if attribute is None else attribute.as_int()
