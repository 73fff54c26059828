"""Corrections and additions to the operators of ``onnx-shape-inference``, active only inside :mod:`shapes`.

The library is made for exporters, where a plausible shape is welcome. A rewrite needs a certain one, so every
rule of the standard domain is wrapped:

* Certain shapes: a slice of an axis whose size is open has no fixed size; two differently named axes that
  meet in a broadcast are not the same axis (one may be 1); Squeeze without axes drops an unknown number of
  axes.
* Values: whatever is computed from constants is computed by our own kernels. Vectors of axes, such as the
  target of a Reshape, go through the same kernels as indices into what is known of their elements, so that
  every operator that only moves elements is covered. Comparisons of axes are decided where they can be
  (an axis is never negative), which lets the exporters' ``Where(Equal(shape, -1), ...)`` through.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.analyses import kernels

__all__ = ["LARGE_CONSTANT", "active", "is_placeholder"]

Dim = int | ir.SymbolicDim
Rule = Callable[[Any, ir.Node], None]

#: Constants larger than this are not looked into: no shape is computed from so many numbers.
LARGE_CONSTANT = 64 * 1024
#: Largest result that is computed here, in bytes, and longest vector of axes that is followed.
_RESULT_BYTES = 8 * 1024
_VECTOR = 64
#: Name of an element of which nothing is known, not even that it is no negative number.
PLACEHOLDER = "unknown__"
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_FULL_END = 2**31 - 1

_active: ContextVar[bool] = ContextVar("graphopt_shape_rules", default=False)


@contextmanager
def active() -> Iterator[None]:
    """Within it, the library works by the rules of this module; elsewhere they do nothing."""
    _install()
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


@functools.cache
def _install() -> None:
    from onnx_shape_inference import registry

    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    for name in sorted(names):
        for version in registry.version_boundaries("", name):
            rule = registry.get("", name, version=version)
            if rule is not None:
                registry.register("", name, since_version=version)(_wrapped(rule))
    if registry.get("", "Slice", version=1) is None:
        registry.register("", "Slice", since_version=1)(_wrapped(lambda context, node: None))


def _wrapped(rule: Rule) -> Rule:
    @functools.wraps(rule)
    def infer(context: Any, node: ir.Node) -> None:
        if not _active.get():
            rule(context, node)
            return
        guard = _Guard(context, node)
        if node.op_type == "Slice":
            _infer_slice(context, node)
        elif not _infer_constant(context, node):
            rule(guard, node)
        correct = _CORRECTIONS.get(node.op_type)
        if correct is not None:
            correct(context, node)
        _propagate(context, node, guard)

    return infer


class _Guard:
    """The library's context as one of its rules sees it: values that the rule sets are only noted."""

    def __init__(self, context: Any, node: ir.Node) -> None:
        self._context = context
        self._takes_any_size = node.op_type in ("Reshape", "Expand")
        self.noted: dict[ir.Value, Sequence[Dim]] = {}
        self.minted: set[str | None] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def new_symbolic_dim(self) -> ir.SymbolicDim:
        dim: ir.SymbolicDim = self._context.new_symbolic_dim()
        self.minted.add(dim.value)
        return dim

    def set_symbolic_value(self, value: ir.Value, data: Sequence[Dim]) -> None:
        self.noted[value] = data

    def get_symbolic_value(self, value: ir.Value) -> list[Dim] | None:
        found: list[Dim] | None = self._context.get_symbolic_value(value)
        if found is None or not any(map(is_placeholder, found)):
            return found
        if not self._takes_any_size:
            return None
        return [self._context.new_symbolic_dim() if is_placeholder(d) else d for d in found]


def is_placeholder(dim: Dim) -> bool:
    """Whether an element is one of which nothing is known."""
    return not isinstance(dim, int) and (dim.value is None or PLACEHOLDER in dim.value)


def _static(shape: ir.Shape | None) -> tuple[int, ...] | None:
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else None


def _same(left: Dim, right: Dim) -> bool:
    return (
        left == right if isinstance(left, int) else not isinstance(right, int) and left.value == right.value
    )


# Certain shapes


def _correct_broadcast(context: Any, node: ir.Node) -> None:
    shapes = [v.shape for v in node.inputs if v is not None]
    if all(s is not None for s in shapes):
        _separate(context, node.outputs[0], [list(s or ()) for s in shapes], 0)


def _correct_matmul(context: Any, node: ir.Node) -> None:
    left, right = (v.shape if v is not None else None for v in node.inputs[:2])
    if left is not None and right is not None and min(len(left), len(right)) > 2:
        _separate(context, node.outputs[0], [list(left)[:-2], list(right)[:-2]], 2)


def _correct_expand(context: Any, node: ir.Node) -> None:
    data, target = node.inputs
    wanted = context.get_symbolic_value(target) if target is not None else None
    if data is not None and data.shape is not None and wanted is not None:
        _separate(context, node.outputs[0], [list(data.shape), list(wanted)], 0)


def _separate(context: Any, output: ir.Value, operands: list[list[Dim]], behind: int) -> None:
    """Give the output a new axis wherever differently named axes of the operands meet."""
    if output.shape is None:
        return
    dims = list(output.shape)
    for place, meeting in enumerate(itertools.zip_longest(*(reversed(o) for o in operands), fillvalue=1)):
        named = {d.value for d in meeting if isinstance(d, ir.SymbolicDim)}
        if len(named) > 1 and all(d == 1 for d in meeting if isinstance(d, int)):
            dims[len(dims) - 1 - behind - place] = context.new_symbolic_dim()
    if dims != list(output.shape):
        output.shape = ir.Shape(dims)


def _correct_squeeze(context: Any, node: ir.Node) -> None:
    """Without known axes, the rank depends on which axes turn out to be 1."""
    data = node.inputs[0]
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        certain = ir.convenience.get_const_tensor(axes) is not None
    else:
        certain = "axes" in node.attributes or data is None or _static(data.shape) is not None
    if not certain:
        node.outputs[0].shape = None


def _infer_constant(context: Any, node: ir.Node) -> bool:
    """A Constant whose tensor :mod:`shapes` has already laid beside its output."""
    if node.op_type != "Constant" or node.outputs[0].const_value is None:
        return False
    tensor = node.outputs[0].const_value
    context.set_shape_and_dtype(node.outputs[0], ir.Shape(tensor.shape.numpy()), tensor.dtype)
    return True


def _infer_slice(context: Any, node: ir.Node) -> None:
    """Exact sizes, or new axes; the library's expressions are costly and assume that bounds are in range."""
    data, output = node.inputs[0], node.outputs[0]
    if data is None:
        return
    shape = None
    if data.shape is not None:
        bounds = _slice_bounds(context, node, len(data.shape))
        dims: list[Dim | None] = list(data.shape) if bounds is not None else [None] * len(data.shape)
        for axis, start, end, step in bounds or ():
            dims[axis] = _sliced(data.shape[axis], start, end, step)
        shape = ir.Shape([context.new_symbolic_dim() if d is None else d for d in dims])
    context.set_shape_and_dtype(output, shape, data.dtype)


def _slice_bounds(context: Any, node: ir.Node, rank: int) -> list[tuple[int, Dim, Dim, int]] | None:
    """(axis, start, end, step) for every sliced axis; None where the axes or steps are not known."""
    lists: list[Sequence[Dim] | None] = [None] * 4
    if context.opset < 10:
        for i, name in enumerate(("starts", "ends", "axes")):
            lists[i] = node.attributes[name].as_ints() if name in node.attributes else None
    else:
        for i, value in enumerate(node.inputs[1:5]):
            lists[i] = context.get_symbolic_value(value) if value is not None else None
            if lists[i] is None and value is not None and i > 1:
                return None
    count = next((len(x) for x in lists if x is not None), None)
    if count is None:
        return None
    unknown = [ir.SymbolicDim(PLACEHOLDER)] * count
    starts, ends, axes, steps = (
        default if given is None else given
        for given, default in zip(lists, (unknown, unknown, range(count), [1] * count), strict=True)
    )
    found = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(axis, int) or not isinstance(step, int) or not -rank <= axis < rank:
            return None
        found.append((axis % rank, start, end, step))
    return found


def _sliced(dim: Dim, start: Dim, end: Dim, step: int) -> Dim | None:
    """The size of a slice of an axis; None where it is not certain."""
    if not isinstance(start, int) or not isinstance(end, int) or step == 0:
        return None
    if isinstance(dim, int):
        return len(range(dim)[kernels.slice_of(start, end, step, dim)])
    forwards = start == 0 and step == 1 and end >= _FULL_END
    backwards = (start == -1 or start >= _FULL_END) and step == -1 and end <= -_FULL_END
    return dim if forwards or backwards else None


def _correct_constant_of_shape(context: Any, node: ir.Node) -> None:
    wanted = context.get_symbolic_value(node.inputs[0]) if node.inputs[0] is not None else None
    if wanted is None or any(isinstance(d, int) and d < 0 for d in wanted):
        return
    node.outputs[0].shape = ir.Shape([context.new_symbolic_dim() if is_placeholder(d) else d for d in wanted])


_BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow"),
    *("Sub", "Sum", "Where", "Xor"),
)
_CORRECTIONS: dict[str, Rule] = {
    **dict.fromkeys(_BROADCASTING, _correct_broadcast),
    "MatMul": _correct_matmul,
    "MatMulInteger": _correct_matmul,
    "Expand": _correct_expand,
    "Squeeze": _correct_squeeze,
    "ConstantOfShape": _correct_constant_of_shape,
}


# Values

#: Which inputs an operator moves elements of; all of them where the tuple is empty.
_MOVED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice", "Split", "Squeeze", "Unsqueeze"), (0,)),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Identity", "Expand", "Tile"), (0,)),
    "Concat": (),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}
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


def _propagate(context: Any, node: ir.Node, guard: _Guard) -> None:
    """Compute the outputs, or what can be known of their elements."""
    arrays = [_constant(v) for v in node.inputs]
    if kernels.has_kernel(node) and node.op_type != "Constant":
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


def _all_known(node: ir.Node, arrays: Sequence[np.ndarray | None]) -> bool:
    return all(a is not None or v is None for a, v in zip(arrays, node.inputs, strict=True))


def _constant(value: ir.Value | None) -> np.ndarray | None:
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
    dims = _static(output.shape)
    if output.dtype not in _INTEGERS or dims is None or int(np.prod(dims)) != len(elements):
        return
    if all(isinstance(d, int) for d in elements):
        _store_array(output, np.asarray(elements, output.dtype.numpy()).reshape(dims))
    elif len(elements) <= _VECTOR:
        context.set_symbolic_value(output, list(elements))


def _elements(context: Any, value: ir.Value | None) -> tuple[list[Dim], tuple[int, ...]] | None:
    """What is known of the elements of an integer tensor, in order, and its shape."""
    if value is None or value.dtype not in _INTEGERS:
        return None
    array = _constant(value)
    if array is not None:
        return ([int(n) for n in array.reshape(-1)], array.shape) if array.size <= _VECTOR else None
    dims, known = _static(value.shape), context.get_symbolic_value(value)
    if dims is None or known is None or int(np.prod(dims)) != len(known):
        return None
    return known, dims


def _unknown_elements(context: Any, value: ir.Value | None) -> tuple[list[Dim], tuple[int, ...]] | None:
    dims = _static(value.shape) if value is not None and value.dtype in _INTEGERS else None
    if dims is None or int(np.prod(dims)) > _VECTOR:
        return None
    names = (f"{PLACEHOLDER}{context.new_symbolic_dim().value}" for _ in range(int(np.prod(dims))))
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
    if _same(left, right):
        return compare(0, 0)
    if isinstance(right, int) and right < 0 and _is_axis(left):
        return compare(0, right)
    if isinstance(left, int) and left < 0 and _is_axis(right):
        return compare(left, 0)
    return None


def _is_axis(dim: Dim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and bool(_NAME.fullmatch(dim.value or ""))


def _cast(context: Any, node: ir.Node) -> None:
    found = _elements(context, node.inputs[0])
    if found is not None:
        _store(context, node.outputs[0], found[0])
