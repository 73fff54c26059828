"""Between real and stored numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import clip, finish, output_name
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


@converter("QUANTIZE")
def _quantize(ctx: Context, op: Operator) -> None:
    """Of real numbers, or from one scale to another."""
    ctx.set_real(op.outputs[0], ctx.real(op.inputs[0]))


@converter("DEQUANTIZE")
def _dequantize(ctx: Context, op: Operator) -> None:
    """Weights of 16 bits become constants of 32; other constants stay as they are stored."""
    source = op.inputs[0]
    array = ctx.array(source)
    if array is not None and not ctx.tensor(source).quantized:
        ctx.set_array(op.outputs[0], array.astype(np.float32))
        return
    value = ctx.real(source)
    if not ctx.tensor(source).quantized:
        value = ctx.build.cast(value, ir.DataType.FLOAT, output_name(ctx, op))
    ctx.set(op.outputs[0], value)


@converter("DENSIFY")
def _densify(ctx: Context, op: Operator) -> None:
    """The reader has put the elements in their places already."""
    array = ctx.array(op.inputs[0])
    if array is None:
        raise ValueError("it has no constant to densify")
    ctx.set_array(op.outputs[0], array)


@converter("FAKE_QUANT")
def _fake_quant(ctx: Context, op: Operator) -> None:
    """Round to the steps of a range that holds 0, as TensorFlow nudges it."""
    low, high = float(op.options.get("min", 0.0)), float(op.options.get("max", 0.0))
    if op.options.get("narrowRange", False):
        raise UnsupportedError(f"{op.place}: a narrow range, which LiteRT has no kernel for")
    least = 0
    most = 2 ** int(op.options.get("numBits", 8)) - 1
    scale = np.float32((high - low) / (most - least))
    zero = np.clip(np.floor(least - low / scale + 0.5), least, most)
    low, high = float((least - zero) * scale), float((most - zero) * scale)
    kept = clip(ctx, ctx.real(op.inputs[0]), low, high)
    steps = ctx.build.op(
        "Div", ctx.build.op("Sub", kept, ctx.build.constant(np.float32(low))), ctx.build.constant(scale)
    )
    half = ctx.build.op("Add", steps, ctx.build.constant(np.float32(0.5)))
    whole = ctx.build.op("Floor", half)
    back = ctx.build.op("Mul", whole, ctx.build.constant(scale))
    finish(ctx, op, ctx.build.op("Add", back, ctx.build.constant(np.float32(low)), name=output_name(ctx, op)))
