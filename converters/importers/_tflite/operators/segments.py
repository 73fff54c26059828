"""Elements put together by numbers that say where they belong, and diagonals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context, onnx_type
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import output_name, to_int64
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError

_SEGMENTS = {
    "UNSORTED_SEGMENT_MAX": "max",
    "UNSORTED_SEGMENT_MIN": "min",
    "UNSORTED_SEGMENT_PROD": "mul",
    "UNSORTED_SEGMENT_SUM": "add",
}


def _neutral(kind: str, dtype: np.dtype) -> np.ndarray:
    """What changes nothing."""
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([{"max": limits.min, "min": limits.max, "mul": 1, "add": 0}[kind]], dtype)


def _scatter(ctx: Context, op: Operator, count: ir.Value, kind: str) -> None:
    """Rows of the first input go where the second says; ``count`` rows in all."""
    data, places = op.inputs[0], to_int64(ctx, op.inputs[1])
    if ctx.tensor(op.inputs[1]).rank != 1:
        raise UnsupportedError(
            f"{op.place}: numbers of segments in a tensor of {ctx.tensor(op.inputs[1]).rank} axes"
        )
    tail = ctx.build.op("Shape", ctx.stored(data), start=1)
    shape = ctx.build.op("Concat", count, tail, axis=0)
    start = ctx.build.op(
        "ConstantOfShape", shape, value=ir.tensor(_neutral(kind, ctx.tensor(data).array_dtype))
    )
    at = ctx.build.op("Unsqueeze", places, ctx.build.ints([1]))
    made = ctx.build.op("ScatterND", start, at, ctx.stored(data), name=output_name(ctx, op), reduction=kind)
    ctx.set(op.outputs[0], made)


@converter(*_SEGMENTS)
def _unsorted_segment(ctx: Context, op: Operator) -> None:
    count = ctx.build.op("Reshape", to_int64(ctx, op.inputs[2]), ctx.build.ints([1]))
    _scatter(ctx, op, count, _SEGMENTS[op.name])


@converter("SEGMENT_SUM")
def _segment_sum(ctx: Context, op: Operator) -> None:
    """As many segments as the largest number says."""
    last = ctx.build.op("ReduceMax", to_int64(ctx, op.inputs[1]), ctx.build.ints([0]), keepdims=1)
    _scatter(ctx, op, ctx.build.op("Add", last, ctx.build.ints([1])), "add")


@converter("SPARSE_TO_DENSE")
def _sparse_to_dense(ctx: Context, op: Operator) -> None:
    """A default value everywhere, others at their places."""
    places, shape, values, default = op.inputs
    rank = ctx.tensor(places).rank
    width = ctx.tensor(shape).shape[0]
    at = ctx.build.op("Reshape", to_int64(ctx, places), ctx.build.ints([-1, width if rank else 1]))
    start = ctx.build.op("Expand", ctx.stored(default), to_int64(ctx, shape))
    updates = ctx.stored(values)
    if not ctx.tensor(values).rank:
        updates = ctx.build.op("Expand", updates, ctx.build.op("Shape", at, end=1))
    ctx.set(op.outputs[0], ctx.build.op("ScatterND", start, at, updates, name=output_name(ctx, op)))


@converter("BUCKETIZE")
def _bucketize(ctx: Context, op: Operator) -> None:
    """How many of the boundaries are not above each element."""
    listed = op.options.get("boundaries")
    edges = np.asarray([] if listed is None else listed, np.float32)
    data = ctx.stored(op.inputs[0])
    if ctx.tensor(op.inputs[0]).type != "FLOAT32":
        data = ctx.build.cast(data, ir.DataType.FLOAT)
    last = ctx.build.op("Unsqueeze", data, ctx.build.ints([ctx.tensor(op.inputs[0]).rank]))
    below = ctx.build.op("GreaterOrEqual", last, ctx.build.constant(edges, "boundaries"))
    ones = ctx.build.cast(below, ir.DataType.INT32)
    made = ctx.build.op("ReduceSum", ones, ctx.build.ints([-1]), name=output_name(ctx, op), keepdims=0)
    ctx.set(op.outputs[0], made)


@converter("UNIQUE")
def _unique(ctx: Context, op: Operator) -> None:
    """In the order in which they come first."""
    name = output_name(ctx, op)
    made = ctx.build.nodes_of("Unique", [ctx.stored(op.inputs[0])], {"sorted": 0}, 3, name)
    ctx.set(op.outputs[0], made[0])
    ctx.set(op.outputs[1], ctx.build.cast(made[2], onnx_type(ctx.tensor(op.outputs[1]), op.place)))


@converter("MATRIX_DIAG", "MATRIX_SET_DIAG")
def _diagonal(ctx: Context, op: Operator) -> None:
    """Entries on the diagonal of a matrix of zeros, or of a given one."""
    size = ctx.dims(op.inputs[-1])[-1]
    dims = ctx.dims(op.inputs[0])
    rows, columns = (size, size) if op.name == "MATRIX_DIAG" else dims[-2:]
    if min(rows, columns, size) < 0 or size != min(rows, columns):
        raise UnsupportedError(f"{op.place}: a diagonal of {size} entries of {rows} x {columns}")
    entries = ctx.stored(op.inputs[-1])
    rank = ctx.tensor(op.inputs[-1]).rank
    if rows > columns:
        padded = ctx.build.op("Pad", entries, ctx.build.ints([0] * (2 * rank - 1) + [rows - columns]))
    else:
        padded = entries
    column = ctx.build.op("Unsqueeze", padded, ctx.build.ints([rank]))
    dtype = ctx.tensor(op.inputs[0]).array_dtype
    other = (
        ctx.stored(op.inputs[0]) if op.name == "MATRIX_SET_DIAG" else ctx.build.constant(np.zeros((), dtype))
    )
    mask = ctx.build.constant(np.eye(rows, columns, dtype=bool), "diagonal")
    ctx.set(op.outputs[0], ctx.build.op("Where", mask, column, other, name=output_name(ctx, op)))
