"""Pooling over height and width; what SAME padding adds counts for nothing."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    SAME,
    finish_first,
    output_name,
    padding,
    real_first,
)
from graphopt.converters.importers._tflite.registry import converter


def _pool(ctx: Context, op: Operator, op_type: str, value: ir.Value) -> ir.Value:
    """Of values in NCHW."""
    kernel = [int(op.options.get(f"filter{axis}", 1)) for axis in ("Height", "Width")]
    strides = [int(op.options.get(f"stride{axis}", 1)) for axis in "HW"]
    if min(kernel) < 1 or min(strides) < 1:
        raise ValueError(f"kernel {kernel}, strides {strides}")
    sizes = ctx.dims(op.inputs[0])[1:-1]
    attributes = padding(op.options.get("padding", SAME), sizes, kernel, strides, (1, 1))
    name = output_name(ctx, op)
    return ctx.build.op(op_type, value, name=name, kernel_shape=kernel, strides=strides, **attributes)


@converter("MAX_POOL_2D")
def _max_pool(ctx: Context, op: Operator) -> None:
    finish_first(ctx, op, _pool(ctx, op, "MaxPool", real_first(ctx, op.inputs[0])))


@converter("AVERAGE_POOL_2D")
def _average_pool(ctx: Context, op: Operator) -> None:
    finish_first(ctx, op, _pool(ctx, op, "AveragePool", real_first(ctx, op.inputs[0])))


@converter("L2_POOL_2D")
def _l2_pool(ctx: Context, op: Operator) -> None:
    data = real_first(ctx, op.inputs[0])
    squares = ctx.build.op("Mul", data, data)
    finish_first(ctx, op, ctx.build.op("Sqrt", _pool(ctx, op, "AveragePool", squares)))
