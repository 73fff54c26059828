"""Constant operands and selections of entries, as the rules of this package read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of
from graphopt.rewrite import Context, input_at, is_op

__all__ = [
    "LARGEST_INDEX",
    "Cut",
    "axes_input",
    "axes_of",
    "cuts_of",
    "entries",
    "ints_at",
    "normal_axis",
    "selection_of",
]

#: Constants with more numbers are no axes, bounds or targets.
_FEW: Final = 4096
#: An index of more entries would inflate the model.
LARGEST_INDEX: Final = 1024
#: Since then the bounds of a Slice are inputs, and a Gather takes negative indices (11).
_SLICE_OPSET: Final = 10

Indices = np.ndarray[Any, np.dtype[np.int64]]


class Cut(NamedTuple):
    """What a Slice does to one axis, in Slice's own terms; the axis counts from the front."""

    start: int
    end: int
    step: int


def ints_at(node: ir.Node, index: int, attribute: str | None = None) -> tuple[int, ...] | None:
    """The numbers of a constant integer input, or of an attribute that older opsets have; else None."""
    if attribute is not None and attribute in node.attributes:
        return tuple(node.attributes.get_ints(attribute, ()))
    array = array_of(input_at(node, index))
    if array is None or array.size > _FEW or array.dtype.kind not in "iu":
        return None
    return tuple(int(number) for number in array.flat)


def normal_axis(axis: int, value: ir.Value | None, context: Context) -> int | None:
    """The axis from the front; None where it counts from the end of an unknown number of axes."""
    if axis >= 0 or value is None:
        return axis if axis >= 0 else None
    rank = context.rank(value)
    return None if rank is None else axis + rank


def axes_of(node: ir.Node, context: Context) -> tuple[int, ...] | None:
    """The constant axes of a Squeeze, from the front; None where not known or left out."""
    axes = ints_at(node, 1, "axes")
    found = [normal_axis(axis, node.inputs[0], context) for axis in axes or ()]
    return tuple(a for a in found if a is not None) if axes and None not in found else None


def cuts_of(node: ir.Node, context: Context) -> dict[int, Cut] | None:
    """What a Slice does, by axis; None where a bound is not constant."""
    starts, ends = ints_at(node, 1), ints_at(node, 2)
    if context.opset < _SLICE_OPSET or starts is None or ends is None:
        return None
    count = len(starts)
    axes = ints_at(node, 3) if input_at(node, 3) is not None else tuple(range(count))
    steps = ints_at(node, 4) if input_at(node, 4) is not None else (1,) * count
    if axes is None or steps is None or not count == len(ends) == len(axes) == len(steps):
        return None
    normal = [normal_axis(axis, node.inputs[0], context) for axis in axes]
    if None in normal or len(set(normal)) != count:
        return None
    cuts = map(Cut, starts, ends, steps)
    return {axis: cut for axis, cut in zip(normal, cuts, strict=True) if axis is not None}


def selection_of(node: ir.Node | None, context: Context) -> tuple[int, Indices] | None:
    """The one axis that a Slice or Gather selects entries of, and which; None where that is not constant."""
    if node is None or not is_op(node, "Slice", "Gather") or node.inputs[0] is None:
        return None
    if node.op_type == "Gather":
        return _gathered(node, context)
    cuts = cuts_of(node, context)
    if cuts is None or len(cuts) != 1:
        return None
    ((axis, cut),) = cuts.items()
    whole = entries(node.inputs[0], axis, context)
    if whole is None or cut.step == 0:
        return None
    return axis, whole[slice(*_python_bounds(cut, whole.size))]


def entries(value: ir.Value | None, axis: int, context: Context) -> Indices | None:
    """The indices of all entries of an axis; None where its size is not fixed."""
    size = _size(value, axis, context)
    return None if size is None else np.arange(size, dtype=np.int64)


def _python_bounds(cut: Cut, size: int) -> tuple[int, int | None, int]:
    """The bounds for a Python slice, which takes a clamped -1 for the last entry."""
    end = cut.end + size if cut.end < 0 else cut.end
    if cut.step < 0 and end < 0:
        return cut.start, None, cut.step
    return cut.start, max(end, 0), cut.step


def _gathered(node: ir.Node, context: Context) -> tuple[int, Indices] | None:
    axis = normal_axis(node.attributes.get_int("axis", 0), node.inputs[0], context)
    indices = array_of(input_at(node, 1))
    size = None if axis is None else _size(node.inputs[0], axis, context)
    if axis is None or indices is None or size is None or indices.ndim != 1 or indices.size > _FEW:
        return None
    if np.any(indices < -size) or np.any(indices >= size):
        return None  # an error that stays one
    return axis, np.where(indices < 0, indices + size, indices).astype(np.int64)


def _size(value: ir.Value | None, axis: int, context: Context) -> int | None:
    shape = None if value is None else context.infer(value).dims
    size = shape[axis] if shape is not None and axis < len(shape) else None
    return size if isinstance(size, int) else None


def axes_input(numbers: Iterable[int]) -> ir.TensorProtocol:
    """Axes, bounds or paddings as the tensor that an operator reads."""
    return ir.Tensor(np.array(list(numbers), np.int64))
