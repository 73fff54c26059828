"""Normalizations over channels."""

from __future__ import annotations

import numpy as np

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    channels_first,
    channels_last,
    finish,
    output_name,
)
from graphopt.converters.importers._tflite.registry import converter


@converter("L2_NORMALIZATION")
def _l2(ctx: Context, op: Operator) -> None:
    """Divided by the norm over the last axis, which counts as 1e-6 at least."""
    data, name = ctx.real(op.inputs[0]), output_name(ctx, op)
    norm = ctx.build.op("ReduceL2", data, ctx.build.ints([-1]), keepdims=1)
    floor = ctx.build.op("Max", norm, ctx.build.constant(np.float32(1e-6)))
    finish(ctx, op, ctx.build.op("Div", data, floor, name=name))


@converter("LOCAL_RESPONSE_NORMALIZATION")
def _lrn(ctx: Context, op: Operator) -> None:
    """TFLite's alpha is that of one channel, ONNX's that of the whole window."""
    size = 2 * int(op.options.get("radius", 0)) + 1
    first = channels_first(ctx, ctx.real(op.inputs[0]))
    numbers = {name: float(op.options.get(name, 0.0)) for name in ("alpha", "beta", "bias")}
    numbers["alpha"] *= size
    name = output_name(ctx, op)
    finish(ctx, op, channels_last(ctx, ctx.build.op("LRN", first, name=name, size=size, **numbers), 4, name))
