"""What is known of the elements of small tensors while shapes are inferred.

Whatever is computed from constants is computed by our own kernels. Vectors of axes, such as the target of a
Reshape, go through the same kernels as indices into what is known of their elements, so that every operator
that only moves elements is covered. Comparisons of axes are decided where they can be (an axis is never
negative), which lets the exporters' ``Where(Equal(shape, -1), ...)`` through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses import kernels
from graphopt.analyses.shape_dims import PLACEHOLDER, Dim, is_axis, is_placeholder, same, static_dims

__all__ = ["LARGE_CONSTANT", "Guard", "constant_array", "propagate"]

#: Constants larger than this are not looked into: no shape is computed from so many numbers.
LARGE_CONSTANT = 64 * 1024
#: Largest result that is computed here, in bytes, and longest vector of axes that is followed.
_RESULT_BYTES = 8 * 1024
_VECTOR = 64


class Guard:
    """The library's context as one of its rules sees it: values that the rule sets are only noted."""

    def __init__(self, context: Any, node: ir.Node) -> None:
        self._context = context
        self._takes_any_size = node.op_type in ("Reshape", "Expand")
        self.noted: dict[ir.Value, Sequence[Dim]] = {}
        self.minted: set[str | None] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def new_symbolic_dim(self) -> ir.SymbolicDim:
        """A new axis, remembered as one that the rule made up."""
        dim: ir.SymbolicDim = self._context.new_symbolic_dim()
        self.minted.add(dim.value)
        return dim

    def set_symbolic_value(self, value: ir.Value, data: Sequence[Dim]) -> None:
        """Note what the rule thinks of the elements of ``value``."""
        self.noted[value] = data

    def get_symbolic_value(self, value: ir.Value) -> list[Dim] | None:
        """The elements of ``value``; unknown ones only to rules that take any size, as new axes."""
        found: list[Dim] | None = self._context.get_symbolic_value(value)
        if found is None or not any(map(is_placeholder, found)):
            return found
        if not self._takes_any_size:
            return None
        return [self._context.new_symbolic_dim() if is_placeholder(d) else d for d in found]


#: Which inputs an operator moves elements of; all of them where the tuple is empty.
_MOVED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice", "Split", "Squeeze", "Unsqueeze"), (0,)),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Identity", "Expand", "Tile"), (0,)),
    "Concat": (),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}
#: Those of them that keep all elements in their order.
_KEEPING = frozenset({"Squeeze", "Unsqueeze"})
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "Equal": lambda a, b: bool(a == b),
    "Less": lambda a, b: bool(a < b),
    "Greater": lambda a, b: bool(a > b),
    "LessOrEqual": lambda a, b: bool(a <= b),
    "GreaterOrEqual": lambda a, b: bool(a >= b),
}
#: Operators whose arithmetic on axes is the library's.
_TRUSTED = frozenset({"Shape", "Size", "Add", "Sub", "Mul", "Div", "Min", "Max", "Neg"})
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


def propagate(context: Any, node: ir.Node, guard: Guard) -> None:
    """Compute the outputs of ``node``, or what can be known of their elements."""
    if node.op_type in _KEEPING and _keep(context, node):
        return
    if kernels.has_kernel(node) and node.op_type != "Constant":
        arrays = [constant_array(v) for v in node.inputs]
        if _all_known(node, arrays) and _compute(context, node, arrays):
            return
        if node.op_type in _MOVED and _move(context, node, arrays):
            return
        if node.op_type in _COMPARED:
            _compare(context, node)
            return
    if node.op_type == "Cast":
        _cast(context, node)
    elif node.op_type in _TRUSTED and len(guard.noted) == 1:
        (output, elements), *_ = guard.noted.items()
        if not any(isinstance(d, ir.SymbolicDim) and d.value in guard.minted for d in elements):
            _store(context, output, elements)


def _keep(context: Any, node: ir.Node) -> bool:
    """Squeeze and Unsqueeze, the most frequent of all, leave known elements as they are: no kernel needed."""
    data, output = node.inputs[0], node.outputs[0]
    if data is None or data.const_value is not None or static_dims(output.shape) is None:
        return False
    found = _elements(context, data)
    if found is None:
        return False
    _store(context, output, found[0])
    return True


def _all_known(node: ir.Node, arrays: Sequence[np.ndarray | None]) -> bool:
    return all(a is not None or v is None for a, v in zip(arrays, node.inputs, strict=True))


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a value that is known as a whole and not large."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size > LARGE_CONSTANT or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def _compute(context: Any, node: ir.Node, arrays: Sequence[np.ndarray | None]) -> bool:
    try:
        if (kernels.output_bytes(node, arrays, context.opset) or 0) > _RESULT_BYTES:
            return False
        results = kernels.evaluate_node(node, arrays, context.opset)
    except kernels.Refused:
        return False
    for output, result in zip(node.outputs, results or (), strict=True):
        _store_array(output, result)
    return True


def _store_array(output: ir.Value, array: np.ndarray) -> None:
    output.const_value = ir.Tensor(array)
    output.shape = ir.Shape(array.shape)
    if output.type is None:
        output.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))


def _store(context: Any, output: ir.Value, elements: Sequence[Dim]) -> None:
    """Keep what is known of a small integer tensor, where it has one element per place of its shape."""
    dims = static_dims(output.shape)
    if output.dtype not in _INTEGERS or dims is None or math.prod(dims) != len(elements):
        return
    if all(isinstance(d, int) for d in elements):
        _store_array(output, np.asarray(elements, output.dtype.numpy()).reshape(dims))
    elif len(elements) <= _VECTOR:
        context.set_symbolic_value(output, list(elements))


def _elements(context: Any, value: ir.Value | None) -> tuple[list[Dim], tuple[int, ...]] | None:
    """What is known of the elements of an integer tensor, in order, and its shape."""
    if value is None or value.dtype not in _INTEGERS:
        return None
    array = constant_array(value)
    if array is not None:
        return ([int(n) for n in array.reshape(-1)], array.shape) if array.size <= _VECTOR else None
    dims, known = static_dims(value.shape), context.get_symbolic_value(value)
    if dims is None or known is None or math.prod(dims) != len(known):
        return None
    return known, dims


def _unknown_elements(context: Any, value: ir.Value | None) -> tuple[list[Dim], tuple[int, ...]] | None:
    dims = static_dims(value.shape) if value is not None and value.dtype in _INTEGERS else None
    if dims is None or math.prod(dims) > _VECTOR:
        return None
    names = (f"{PLACEHOLDER}{context.new_symbolic_dim().value}" for _ in range(math.prod(dims)))
    return [ir.SymbolicDim(n) for n in names], dims


def _move(context: Any, node: ir.Node, arrays: list[np.ndarray | None]) -> bool:
    """Send indices through the kernel, and read off where each known element went."""
    pool: list[Dim] = []
    for i in _MOVED[node.op_type] or range(len(node.inputs)):
        value = node.inputs[i] if i < len(node.inputs) else None
        found = _elements(context, value)
        if found is None and node.op_type in ("Concat", "ScatterElements", "ScatterND"):
            found = _unknown_elements(context, value)
        if found is None:
            return False
        arrays[i] = np.arange(len(pool), len(pool) + len(found[0])).reshape(found[1])
        pool.extend(found[0])
    reduction = node.attributes.get("reduction")
    if reduction is not None and (reduction.is_ref() or reduction.as_string() != "none"):
        return False
    if not _all_known(node, arrays):
        return False
    try:
        if (kernels.output_bytes(node, arrays, context.opset) or 0) > _VECTOR * 8:
            return False
        results = kernels.evaluate_node(node, arrays, context.opset)
    except kernels.Refused:
        return False
    for output, places in zip(node.outputs, results or (), strict=True):
        output.shape = ir.Shape(places.shape)
        _store(context, output, [pool[i] for i in places.reshape(-1)])
    return True


def _compare(context: Any, node: ir.Node) -> None:
    sides = [_elements(context, v) for v in node.inputs]
    output = node.outputs[0]
    if len(sides) != 2 or any(s is None for s in sides):
        return
    left, right = (np.arange(len(s[0])).reshape(s[1]) for s in sides if s is not None)
    try:
        places = np.broadcast_arrays(left, right)
    except ValueError:
        return
    pairs = [(sides[0][0][i], sides[1][0][j]) for i, j in zip(*(p.reshape(-1) for p in places), strict=True)]  # type: ignore[index]
    decided = [_decide(_COMPARED[node.op_type], a, b) for a, b in pairs]
    if None not in decided:
        _store_array(output, np.asarray(decided, np.bool_).reshape(places[0].shape))


def _decide(compare: Callable[[Any, Any], bool], left: Dim, right: Dim) -> bool | None:
    """The comparison of two elements, where it is the same for all sizes of the axes (at least 0)."""
    if isinstance(left, int) and isinstance(right, int):
        return compare(left, right)
    if is_placeholder(left) or is_placeholder(right):
        return None
    if same(left, right):
        return compare(0, 0)
    if isinstance(right, int) and right < 0 and is_axis(left):
        return compare(0, right)
    if isinstance(left, int) and left < 0 and is_axis(right):
        return compare(left, 0)
    return None


def _cast(context: Any, node: ir.Node) -> None:
    found = _elements(context, node.inputs[0])
    if found is not None:
        _store(context, node.outputs[0], found[0])
