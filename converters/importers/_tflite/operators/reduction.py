"""Reductions over axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    finish,
    finish_int64,
    normal_axis,
    output_name,
)
from graphopt.converters.importers._tflite.registry import converter

_REDUCTIONS = {
    "MEAN": "ReduceMean",
    "SUM": "ReduceSum",
    "REDUCE_MAX": "ReduceMax",
    "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd",
}


def _axes(ctx: Context, op: Operator) -> list[int]:
    rank = ctx.tensor(op.inputs[0]).rank
    return sorted({normal_axis(axis, rank) for axis in ctx.ints(op.inputs[1], op, "which axes it reduces")})


def _reduce(ctx: Context, op: Operator, op_type: str, value: ir.Value) -> ir.Value:
    axes = _axes(ctx, op)
    if not axes:
        return ctx.build.op("Identity", value, name=output_name(ctx, op))
    keep = int(bool(op.options.get("keepDims", False)))
    return ctx.build.op(
        op_type, value, ctx.build.ints(axes, "axes"), name=output_name(ctx, op), keepdims=keep
    )


@converter(*_REDUCTIONS)
def _reduction(ctx: Context, op: Operator) -> None:
    finish(ctx, op, _reduce(ctx, op, _REDUCTIONS[op.name], ctx.real(op.inputs[0])))


@converter("REDUCE_ANY", "REDUCE_ALL")
def _logical_reduction(ctx: Context, op: Operator) -> None:
    """Maximum or minimum of 0 and 1."""
    numbers = ctx.build.cast(ctx.stored(op.inputs[0]), ir.DataType.INT32)
    reduced = _reduce(ctx, op, "ReduceMax" if op.name == "REDUCE_ANY" else "ReduceMin", numbers)
    ctx.set(op.outputs[0], ctx.build.cast(reduced, ir.DataType.BOOL, output_name(ctx, op)))


@converter("ARG_MAX", "ARG_MIN")
def _arg(ctx: Context, op: Operator) -> None:
    (axis,) = ctx.ints(op.inputs[1], op, "its axis")
    axis = normal_axis(axis, ctx.tensor(op.inputs[0]).rank)
    name = output_name(ctx, op)
    op_type = "ArgMax" if op.name == "ARG_MAX" else "ArgMin"
    found = ctx.build.op(op_type, ctx.real(op.inputs[0]), name=name, axis=axis, keepdims=0)
    finish_int64(ctx, op.outputs[0], op, found)


@converter("CUMSUM")
def _cumsum(ctx: Context, op: Operator) -> None:
    (axis,) = ctx.ints(op.inputs[1], op, "its axis")
    flags = {name: int(bool(op.options.get(name, False))) for name in ("exclusive", "reverse")}
    at = ctx.build.constant(np.int64(axis))
    finish(ctx, op, ctx.build.op("CumSum", ctx.real(op.inputs[0]), at, name=output_name(ctx, op), **flags))
