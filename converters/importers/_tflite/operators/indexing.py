"""Elements chosen by indices, and what makes or finds indices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    finish_int64,
    finish_stored,
    normal_axis,
    output_name,
    to_int64,
)
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


def _indices(ctx: Context, index: int) -> ir.Value:
    """Indices as they are, where ONNX takes them so."""
    return ctx.stored(index) if ctx.tensor(index).type in ("INT32", "INT64") else to_int64(ctx, index)


@converter("GATHER")
def _gather(ctx: Context, op: Operator) -> None:
    data, indices = op.inputs[0], op.inputs[1]
    axis = normal_axis(int(op.options.get("axis", 0)), ctx.tensor(data).rank)
    batch = int(op.options.get("batchDims", 0))
    name = output_name(ctx, op)
    if batch < 0:
        batch += ctx.tensor(indices).rank
    if not batch:
        made = ctx.build.op("Gather", ctx.stored(data), _indices(ctx, indices), name=name, axis=axis)
    elif axis == batch:
        places = ctx.build.op("Unsqueeze", to_int64(ctx, indices), ctx.build.ints([-1]))
        made = ctx.build.op("GatherND", ctx.stored(data), places, name=name, batch_dims=batch)
    else:
        raise UnsupportedError(f"{op.place}: along axis {axis} with {batch} batch axes is not supported")
    finish_stored(ctx, op, made, data)


@converter("GATHER_ND")
def _gather_nd(ctx: Context, op: Operator) -> None:
    places = to_int64(ctx, op.inputs[1])
    made = ctx.build.op("GatherND", ctx.stored(op.inputs[0]), places, name=output_name(ctx, op))
    finish_stored(ctx, op, made, op.inputs[0])


@converter("EMBEDDING_LOOKUP")
def _embedding_lookup(ctx: Context, op: Operator) -> None:
    """Rows of the second input; of a quantized table in real numbers where the output is float."""
    table = op.inputs[1]
    quantized = ctx.tensor(table).quantized and not ctx.tensor(op.outputs[0]).quantized
    value = ctx.real(table) if quantized else ctx.stored(table)
    made = ctx.build.op("Gather", value, _indices(ctx, op.inputs[0]), name=output_name(ctx, op), axis=0)
    ctx.set(op.outputs[0], made)


@converter("SCATTER_ND")
def _scatter_nd(ctx: Context, op: Operator) -> None:
    """Into zeros; what falls on one place is added up."""
    dtype = ctx.tensor(op.inputs[1]).array_dtype
    zeros = ctx.build.op("ConstantOfShape", to_int64(ctx, op.inputs[2]), value=ir.tensor(np.zeros(1, dtype)))
    inputs = (zeros, to_int64(ctx, op.inputs[0]), ctx.stored(op.inputs[1]))
    made = ctx.build.op("ScatterND", *inputs, name=output_name(ctx, op), reduction="add")
    ctx.set(op.outputs[0], made)


@converter("DYNAMIC_UPDATE_SLICE")
def _dynamic_update_slice(ctx: Context, op: Operator) -> None:
    """The update replaces a window of its size, moved back inside where it would stick out."""
    data, update, begins = op.inputs
    sizes = ctx.dims(data), ctx.dims(update)
    if any(size < 0 for dims in sizes for size in dims):
        raise UnsupportedError(f"{op.place}: with free axes is not supported")
    rank = len(sizes[0])
    room = [whole - part for whole, part in zip(*sizes, strict=True)]
    if min(room, default=0) < 0:
        raise ValueError(f"an update of shape {list(sizes[1])} for {list(sizes[0])}")
    low = ctx.build.op("Max", to_int64(ctx, begins), ctx.build.ints([0] * rank))
    start = ctx.build.op("Min", low, ctx.build.ints(room))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in sizes[1]), indexing="ij"), -1)
    places = ctx.build.op("Add", ctx.build.ints(grid), start)
    made = ctx.build.op("ScatterND", ctx.stored(data), places, ctx.stored(update), name=output_name(ctx, op))
    ctx.set(op.outputs[0], made)


@converter("ONE_HOT")
def _one_hot(ctx: Context, op: Operator) -> None:
    indices, depth, on, off = op.inputs
    rank = ctx.tensor(indices).rank
    axis = normal_axis(int(op.options.get("axis", -1)), rank + 1)
    vector = ctx.build.ints([1])
    pair = [ctx.build.op("Reshape", ctx.stored(index), vector) for index in (off, on)]
    values = ctx.build.op("Concat", *pair, axis=0)
    # ONNX counts negative indices from the end, TFLite has no place for them: depth is none either.
    at, count = to_int64(ctx, indices), to_int64(ctx, depth)
    negative = ctx.build.op("Less", at, ctx.build.constant(np.int64(0)))
    at = ctx.build.op("Where", negative, count, at)
    inputs = (at, ctx.build.op("Reshape", count, vector), values)
    ctx.set(op.outputs[0], ctx.build.op("OneHot", *inputs, name=output_name(ctx, op), axis=axis))


@converter("TOPK_V2")
def _topk(ctx: Context, op: Operator) -> None:
    count = ctx.build.op("Reshape", to_int64(ctx, op.inputs[1]), ctx.build.ints([1]))
    name = output_name(ctx, op)
    data = op.inputs[0]
    values, places = ctx.build.nodes_of("TopK", [ctx.real(data), count], {"axis": -1}, 2, name)
    ctx.set_real(op.outputs[0], values)
    finish_int64(ctx, op.outputs[1], op, places)


@converter("WHERE")
def _where(ctx: Context, op: Operator) -> None:
    """The places of what is not zero, a row each."""
    value = ctx.stored(op.inputs[0])
    found = ctx.build.op("Transpose", ctx.build.op("NonZero", value), perm=[1, 0], name=output_name(ctx, op))
    ctx.set(op.outputs[0], found)


@converter("FILL")
def _fill(ctx: Context, op: Operator) -> None:
    shape, value, name = to_int64(ctx, op.inputs[0]), op.inputs[1], output_name(ctx, op)
    array = ctx.array(value)
    if array is None:
        ctx.set(op.outputs[0], ctx.build.op("Expand", ctx.stored(value), shape, name=name))
        return
    fill = ir.tensor(array.reshape(1))
    ctx.set(op.outputs[0], ctx.build.op("ConstantOfShape", shape, value=fill, name=name))


@converter("RANGE")
def _range(ctx: Context, op: Operator) -> None:
    bounds = [ctx.build.op("Reshape", ctx.stored(index), ctx.build.ints([])) for index in op.inputs]
    ctx.set(op.outputs[0], ctx.build.op("Range", *bounds, name=output_name(ctx, op)))
