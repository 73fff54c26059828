"""Operators that make a tensor from a description of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.kernels._call import Array, Call, Refused, element_bytes, kernel, require_kind
from graphopt.graph import array_of


def _held(call: Call) -> Array:
    found = array_of(call.node.outputs[0])
    if found is None:
        raise Refused("the Constant holds no numbers")
    return found


@kernel("Constant", measure=lambda call: _held(call).nbytes)
def constant(call: Call) -> Array:
    """The tensor or numbers that the node holds."""
    return _held(call)


def _fill(call: Call) -> Array:
    value = call.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else value.value.numpy()
    if fill.size != 1:
        raise Refused("the value of ConstantOfShape is not one number")
    return fill.reshape(-1)


def _dims(call: Call) -> tuple[int, ...]:
    dims = call.numbers(0)
    if dims is None or min(dims, default=0) < 0:
        raise Refused("the shape has a negative dimension")
    return dims


@kernel("ConstantOfShape", measure=lambda call: math.prod(_dims(call)) * element_bytes(_fill(call).dtype))
def constant_of_shape(call: Call) -> Array:
    """One number everywhere, float32 zero by default."""
    return np.broadcast_to(_fill(call), _dims(call)) if _dims(call) else _fill(call).reshape(())


def _range_length(call: Call) -> int:
    start, limit, step = (require_kind(call[i], "if") for i in range(3))
    if any(a.size != 1 for a in (start, limit, step)) or not start.dtype == limit.dtype == step.dtype:
        raise Refused("Range is not given three numbers of one type")
    first, last, stride = (a.reshape(-1)[0].item() for a in (start, limit, step))
    if not all(map(math.isfinite, (first, last, stride))) or stride == 0:
        raise Refused("Range does not end")
    if start.dtype.kind == "i":
        return max(0, -((int(first) - int(last)) // int(stride)))
    return max(0, math.ceil((float(last) - float(first)) / float(stride)))


@kernel("Range", measure=lambda call: _range_length(call) * element_bytes(call[0].dtype))
def range_(call: Call) -> Array:
    """From start towards limit, limit left out."""
    length, start, step = _range_length(call), call[0].reshape(()), call[2].reshape(())
    if start.dtype.kind == "i":
        return np.arange(length, dtype=start.dtype) * step + start
    return (np.arange(length, dtype=np.float64) * float(step) + float(start)).astype(start.dtype)


def _eye_dtype(call: Call) -> np.dtype[Any]:
    wanted = call.attribute("dtype")
    return np.dtype(call[0].dtype if wanted is None else ir.DataType(wanted.as_int()).numpy())


@kernel("EyeLike", measure=lambda call: call[0].size * element_bytes(_eye_dtype(call)))
def eye_like(call: Call) -> Array:
    """Ones on the k-th diagonal of a matrix of the input's shape."""
    data = call[0]
    if data.ndim != 2:
        raise Refused("EyeLike needs a matrix")
    rows, columns = np.ogrid[: data.shape[0], : data.shape[1]]
    eye: Array = np.equal(columns - rows, call.integer("k", 0)).astype(_eye_dtype(call))
    return eye
