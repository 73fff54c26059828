"""Operators that make tensors: constants, ranges, random numbers."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.analyses import dims as d
from graphopt.analyses.dims import Axis, fresh
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Unknown, anew, rule

__all__: list[str] = []


@rule("Constant")
def _constant(op: Op) -> Inferred:
    """One that holds numbers is known before the rules are asked; others hold text or sparse tensors."""
    raise Unknown


@rule("ConstantOfShape")
def _constant_of_shape(op: Op) -> Inferred:
    value = op.node.attributes.get("value")
    if value is not None and value.is_ref():
        raise Unknown
    dtype = ir.DataType.FLOAT if value is None else value.value.dtype
    wanted = op.elements(0)
    if wanted is None:
        count = op[0].static
        return Inferred(dtype, anew(count[0]) if count and len(count) == 1 and count[0] <= 64 else None)
    if any(isinstance(e, int) and e < 0 for e in wanted):
        raise ValueError("a size below 0")
    return Inferred(dtype, [e if isinstance(e, int | Axis) else fresh() for e in wanted])


@rule("Range")
def _range(op: Op) -> Inferred:
    """The length of a range of floats hangs on the runtime's rounding."""
    dtype = op[0].dtype
    bounds = [op.elements(i) for i in range(3)]
    if dtype is None or dtype.is_floating_point() or any(b is None or len(b) != 1 for b in bounds):
        return Inferred(dtype, anew(1))
    start, end, step = (b[0] for b in bounds if b is not None)
    if not isinstance(step, int) or step == 0 or not isinstance(start, int | Axis):
        return Inferred(dtype, anew(1))
    if not isinstance(end, int | Axis):
        return Inferred(dtype, anew(1))
    length = d.subtract(end, start)
    if isinstance(length, int):
        return Inferred(dtype, (max(0, math.ceil(length / step)),))
    if step < 0:
        return Inferred(dtype, anew(1))
    return Inferred(dtype, (d.maximum(d.floor_divide(d.add(length, step - 1), step), 0),))


@rule("RandomNormal", "RandomUniform")
def _random(op: Op) -> Inferred:
    return Inferred(op.dtype("dtype", ir.DataType.FLOAT), op.integers("shape"))


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def _random_like(op: Op) -> Inferred:
    return Inferred(op.dtype("dtype", op[0].dtype), op[0].dims)


@rule("Multinomial")
def _multinomial(op: Op) -> Inferred:
    size = op.integer("sample_size", 1)
    return Inferred(op.dtype("dtype", ir.DataType.INT32), (op.dims(0)[0], size))


@rule("BlackmanWindow", "HammingWindow", "HannWindow")
def _window(op: Op) -> Inferred:
    size = op.numbers(0)
    dtype = op.dtype("output_datatype", ir.DataType.FLOAT)
    return Inferred(dtype, (size[0] if size and size[0] >= 0 else fresh(),))


@rule("MelWeightMatrix")
def _mel_weight_matrix(op: Op) -> Inferred:
    bins, length = op.numbers(0), op.numbers(1)
    rows = length[0] // 2 + 1 if length else fresh()
    return Inferred(op.dtype("output_datatype", ir.DataType.FLOAT), (rows, bins[0] if bins else fresh()))
