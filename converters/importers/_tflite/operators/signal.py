"""Fourier transforms; a complex number is a pair in an axis behind the others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import output_name
from graphopt.converters.importers._tflite.registry import converter


@converter("RFFT2D")
def _rfft2d(ctx: Context, op: Operator) -> None:
    """Over the last axis, half of it, then over the one before, where that is longer than 1."""
    rows, columns = ctx.ints(op.inputs[1], op, "the length of its transform")
    dims = ctx.dims(op.inputs[0])
    if dims[-2] != rows or dims[-1] != columns:
        raise ValueError(f"a transform of {rows} x {columns} of data of {dims[-2]} x {dims[-1]}")
    rank, name = len(dims), output_name(ctx, op)
    pairs = ctx.build.op("Unsqueeze", ctx.real(op.inputs[0]), ctx.build.ints([rank]))
    value = _dft(ctx, pairs, rank - 1, onesided=1, name=name)
    if rows > 1:
        value = _dft(ctx, value, rank - 2, onesided=0, name=name)
    ctx.set(op.outputs[0], value)


def _dft(ctx: Context, value: ir.Value, axis: int, onesided: int, name: str) -> ir.Value:
    at = ctx.build.constant(np.int64(axis))
    return ctx.build.op("DFT", value, None, at, name=name, onesided=onesided)


@converter("COMPLEX_ABS")
def _complex_abs(ctx: Context, op: Operator) -> None:
    value, axes = ctx.stored(op.inputs[0]), ctx.build.ints([-1])
    ctx.set(op.outputs[0], ctx.build.op("ReduceL2", value, axes, name=output_name(ctx, op), keepdims=0))


@converter("REAL", "IMAG")
def _part(ctx: Context, op: Operator) -> None:
    at = ctx.build.constant(np.int64(op.name == "IMAG"))
    made = ctx.build.op("Gather", ctx.stored(op.inputs[0]), at, name=output_name(ctx, op), axis=-1)
    ctx.set(op.outputs[0], made)
