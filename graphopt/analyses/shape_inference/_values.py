"""What is known of the elements of small tensors while shapes are inferred.

Whatever is computed from constants is computed by our own kernels. Vectors of axes, such as the target of a
Reshape, go through the same kernels as indices into what is known of their elements, so that every operator
that only moves elements is covered; the most frequent ones take a shorter way. Comparisons of axes are
decided where they can be (an axis is never negative), which lets the exporters'
``Where(Equal(shape, -1), ...)`` through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from graphopt.analyses import dims as d
from graphopt.analyses import kernels
from graphopt.analyses.dims import Axis, Dim, Dims
from graphopt.analyses.kernels._call import KERNELS
from graphopt.analyses.shape_inference._known import Inferred, Leaf, array_of
from graphopt.analyses.shape_inference._op import Array, Op

__all__ = ["FOLLOWED", "propagate"]

#: Largest result that is computed here, in bytes, and longest vector of axes that is followed.
_RESULT_BYTES: Final = 8 * 1024
_VECTOR: Final = 64
_INTEGERS: Final = (ir.DataType.INT64, ir.DataType.INT32)
#: An element of which nothing is known, not even that it is no negative number.
_UNKNOWN: Final = ir.SymbolicDim(None)

#: Which inputs an operator moves elements of; all of them where the tuple is empty.
_MOVED: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice", "Split"), (0,)),
    **dict.fromkeys(("Transpose", "Expand", "Tile"), (0,)),
    "Concat": (),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}
#: Those that may hold elements of which nothing is known beside others.
_PATCHING: Final = frozenset({"Concat", "ScatterElements", "ScatterND"})
#: Operators that keep all elements in their order.
_KEEPING: Final = frozenset({"Squeeze", "Unsqueeze", "Identity", "Reshape", "Flatten", "Cast"})


def propagate(op: Op, outputs: Sequence[Inferred]) -> Sequence[Inferred]:
    """The outputs with what can be known of their elements."""
    name = op.node.op_type
    constant, followed = _kinds(op.inputs)
    if constant and name in KERNELS:
        computed = _compute(op)
        if computed is not None:
            return computed
    if name in ("Shape", "Size"):
        return [_whole(o) for o in outputs]
    if not followed:
        return outputs
    found = _followed(op, name, outputs)
    return outputs if found is None else found


def _kinds(inputs: Sequence[Inferred | None]) -> tuple[bool, bool]:
    """Whether all inputs are constant, and whether something is known of the elements of one."""
    constant, followed = bool(inputs), False
    for known in inputs:
        if known is None:
            continue
        if type(known) is Leaf:
            followed = followed or known.dtype in _INTEGERS
        else:
            constant = constant and known.constant is not None
            followed = followed or known.elements is not None
    return constant, followed


def _followed(op: Op, name: str, outputs: Sequence[Inferred]) -> Sequence[Inferred] | None:
    if name in _KEEPING:
        return [_holding(outputs[0], _elements(op, 0))]
    if name in _MOVED:
        return _move(op, outputs)
    if name in _COMPARED:
        return _compared(op, _COMPARED[name])
    if name in _ARITHMETIC:
        return [_holding(outputs[0], _paired(op, _ARITHMETIC[name]))]
    if name == "Neg":
        elements = _elements(op, 0)
        return [_holding(outputs[0], elements and tuple([_negated(e) for e in elements]))]
    if name == "ReduceProd":
        return _multiplied(op, outputs[0])
    return None


def _compute(op: Op) -> list[Inferred] | None:
    arrays = [None if k is None else array_of(k) for k in op.inputs]
    try:
        if (kernels.output_bytes(op.node, arrays, op.opset) or 0) > _RESULT_BYTES:
            return None
        results = kernels.evaluate_node(op.node, arrays, op.opset)
    except kernels.Refused:
        return None
    return [_constant(array) for array in results or ()]


def _constant(array: Array) -> Inferred:
    listed = array.dtype.kind in "iu" and array.size <= _VECTOR
    elements = tuple([int(n) for n in array.reshape(-1)]) if listed else None
    return Inferred(ir.DataType.from_numpy(array.dtype), array.shape, elements, array)


def _whole(known: Inferred) -> Inferred:
    """The constant, where all elements are numbers."""
    return known if known.elements is None else _holding(known, known.elements)


def _holding(known: Inferred, elements: Dims | None) -> Inferred:
    """A small integer tensor with these elements, where it has one for every place of its shape."""
    if elements is None or known.dtype not in _INTEGERS or known.dims is None:
        return known
    dims = known.static
    if dims is None or math.prod(dims) != len(elements) or len(elements) > _VECTOR:
        return known
    if all(type(e) is int for e in elements):
        return Inferred(known.dtype, dims, elements, np.asarray(elements, known.dtype.numpy()).reshape(dims))
    if all(type(e) is ir.SymbolicDim for e in elements):  # nothing is known at all
        return Inferred(known.dtype, dims)
    return Inferred(known.dtype, dims, elements)


def _elements(op: Op, index: int) -> Dims | None:
    """What is known of the elements of an integer input, one for every place of its shape."""
    known = op.inputs[index] if index < len(op.inputs) else None
    if known is None or known.dtype not in _INTEGERS:
        return None
    dims = known.static
    if dims is None or math.prod(dims) > _VECTOR:
        return None
    found = op.elements(index)
    return found if found is not None and len(found) == math.prod(dims) else None


# Moves.


def _move(op: Op, outputs: Sequence[Inferred]) -> list[Inferred] | None:
    name = op.node.op_type
    if name == "Gather":
        picked = _gathered(op)
        if picked is not None:
            return [_holding(outputs[0], picked)]
    if name == "Concat" and outputs[0].dims is not None and len(outputs[0].dims) == 1:
        return [_holding(outputs[0], _joined(op))]
    return _moved_by_kernel(op, outputs)


def _gathered(op: Op) -> Dims | None:
    """From a vector, by known indices."""
    indices, data = op.array(1), op.inputs[0]
    if indices is None or data is None or data.dims is None or len(data.dims) != 1 or indices.size > _VECTOR:
        return None
    found = _elements(op, 0)
    places = [int(i) for i in indices.reshape(-1)]
    if found is None or any(not -len(found) <= i < len(found) for i in places):
        return None
    return tuple([found[i] for i in places])


def _joined(op: Op) -> Dims | None:
    """Vectors end to end; one of which only the length is known stands for that many unknown elements."""
    result: list[Dim] = []
    for index in range(len(op.inputs)):
        found = _elements(op, index) or _unknown(op, index)
        if found is None:
            return None
        result.extend(found)
    return tuple(result)


def _unknown(op: Op, index: int) -> Dims | None:
    known = op.inputs[index]
    dims = None if known is None or known.dtype not in _INTEGERS else known.static
    return None if dims is None or math.prod(dims) > _VECTOR else (_UNKNOWN,) * math.prod(dims)


def _moved_by_kernel(op: Op, outputs: Sequence[Inferred]) -> list[Inferred] | None:
    """Send indices through the kernel, and read off where each known element went."""
    name, pool = op.node.op_type, list[Dim]()
    arrays = [None if k is None else array_of(k) for k in op.inputs]
    for i in _MOVED[name] or range(len(op.inputs)):
        found = _elements(op, i)
        if found is None and name in _PATCHING and i < len(op.inputs):
            found = _unknown(op, i)
        if found is None:
            return None
        arrays[i] = np.arange(len(pool), len(pool) + len(found)).reshape(op[i].static or ())
        pool.extend(found)
    if name.startswith("Scatter") and op.text("reduction", "none") != "none":
        return None
    if any(a is None and k is not None for a, k in zip(arrays, op.inputs, strict=True)):
        return None
    try:
        if (kernels.output_bytes(op.node, arrays, op.opset) or 0) > _VECTOR * 8:
            return None
        results = kernels.evaluate_node(op.node, arrays, op.opset)
    except kernels.Refused:
        return None
    return [
        _holding(Inferred(known.dtype, places.shape), tuple([pool[i] for i in places.reshape(-1)]))
        for known, places in zip(outputs, results or (), strict=True)
    ]


# Arithmetic.


def _negated(element: Dim) -> Dim:
    return d.multiply(element, -1) if isinstance(element, int | Axis) else _UNKNOWN


def _divided(left: int | Axis, right: int | Axis) -> Dim:
    """Division rounds towards zero, which is down where nothing is negative."""
    if right == 0:
        return _UNKNOWN
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    exact = d.divide_exactly(left, right)
    if exact is not None:
        return exact
    if isinstance(right, int) and right > 0 and d.is_negative_never(left):
        return d.floor_divide(left, right)
    return _UNKNOWN


_ARITHMETIC: Final[dict[str, Callable[[int | Axis, int | Axis], Dim]]] = {
    "Add": d.add,
    "Sub": d.subtract,
    "Mul": d.multiply,
    "Div": _divided,
    "Min": d.minimum,
    "Max": d.maximum,
}


def _paired(op: Op, compute: Callable[[int | Axis, int | Axis], Dim]) -> Dims | None:
    """Element by element, with broadcasting, of two operands."""
    pairs = _pairs(op)
    if pairs is None:
        return None
    return tuple(
        [
            compute(a, b) if isinstance(a, int | Axis) and isinstance(b, int | Axis) else _UNKNOWN
            for a, b in pairs[0]
        ]
    )


def _pairs(op: Op) -> tuple[list[tuple[Dim, Dim]], tuple[int, ...]] | None:
    """The pairs of elements that meet, and the shape that they make."""
    if len(op.inputs) != 2 or op.opset < 7:
        return None
    left, right = _elements(op, 0), _elements(op, 1)
    if left is None or right is None:
        return None
    shapes = op[0].static or (), op[1].static or ()
    if shapes[0] == shapes[1]:
        return list(zip(left, right, strict=True)), shapes[0]
    indices = [np.arange(len(e)).reshape(s) for e, s in zip((left, right), shapes, strict=True)]
    try:
        places = np.broadcast_arrays(*indices)
    except ValueError:
        return None
    meeting = zip(*(p.reshape(-1) for p in places), strict=True)
    return [(left[i], right[j]) for i, j in meeting], places[0].shape


def _multiplied(op: Op, output: Inferred) -> list[Inferred] | None:
    """The product of a whole vector, such as the number of elements of a shape."""
    elements = _elements(op, 0)
    if elements is None or output.static is None or math.prod(output.static) != 1:
        return None
    factors = [e for e in elements if isinstance(e, int | Axis)]
    return [_holding(output, (d.product(factors),))] if len(factors) == len(elements) else None


# Comparisons.

#: For each operator: what it says of a difference below, at, and above zero.
_COMPARED: Final[dict[str, tuple[bool, bool, bool]]] = {
    "Equal": (False, True, False),
    "Less": (True, False, False),
    "Greater": (False, False, True),
    "LessOrEqual": (True, True, False),
    "GreaterOrEqual": (False, True, True),
}


def _compared(op: Op, says: tuple[bool, bool, bool]) -> list[Inferred] | None:
    pairs = _pairs(op)
    if pairs is None:
        return None
    decided = [_decide(says, a, b) for a, b in pairs[0]]
    if None in decided:
        return None
    return [_constant(np.asarray(decided, np.bool_).reshape(pairs[1]))]


def _decide(says: tuple[bool, bool, bool], left: Dim, right: Dim) -> bool | None:
    """The comparison of two elements, where it is the same for all sizes of the axes (at least 0)."""
    if not isinstance(left, int | Axis) or not isinstance(right, int | Axis):
        return None
    gap = d.subtract(left, right)
    if isinstance(gap, int):
        return says[(gap > 0) - (gap < 0) + 1]
    opposite = d.multiply(gap, -1)
    possible = {0, 1, 2}
    for bound, below, at in ((gap, 0, 1), (opposite, 2, 1)):
        if d.is_negative_never(bound):
            possible.discard(below)
        if d.is_negative_never(d.add(bound, -1)):
            possible -= {below, at}
    answers = {says[i] for i in possible}
    return answers.pop() if len(answers) == 1 else None


#: Operators of which more than shape and type may be known.
FOLLOWED: Final = frozenset({*KERNELS, *_MOVED, *_KEEPING, *_COMPARED, *_ARITHMETIC, "Shape", "Size"})
