"""The same elements in another shape or order, and shapes themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    channels_first,
    channels_last,
    finish_int64,
    finish_stored,
    normal_axis,
    output_name,
    to_int64,
)
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError


def _finish(ctx: Context, op: Operator, value: ir.Value) -> None:
    finish_stored(ctx, op, value, op.inputs[0])


@converter("RESHAPE")
def _reshape(ctx: Context, op: Operator) -> None:
    """The target is the second input, or an option; a 0 in it is a size, not a copy."""
    name = output_name(ctx, op)
    target, array = op.input(1), ctx.array(op.input(1))
    if target >= 0 and array is None:
        shape = to_int64(ctx, target)
        _finish(ctx, op, ctx.build.op("Reshape", ctx.stored(op.inputs[0]), shape, name=name))
        return
    listed = array if array is not None else op.options.get("newShape")
    sizes = [int(n) for n in np.asarray([] if listed is None else listed).reshape(-1)]
    if listed is None:
        sizes = list(ctx.dims(op.outputs[0]))
    if ctx.tensor(op.inputs[0]).type == "COMPLEX64":
        sizes.append(2)  # see signal.py
    zero = {"allowzero": 1} if 0 in sizes else {}
    made = ctx.build.op("Reshape", ctx.stored(op.inputs[0]), ctx.build.ints(sizes), name=name, **zero)
    _finish(ctx, op, made)


@converter("TRANSPOSE")
def _transpose(ctx: Context, op: Operator) -> None:
    rank = ctx.tensor(op.inputs[0]).rank
    order = [normal_axis(axis, rank) for axis in ctx.ints(op.inputs[1], op, "the order of axes")]
    if sorted(order) != list(range(rank)):
        raise ValueError(f"order {order} of {rank} axes")
    _finish(
        ctx, op, ctx.build.op("Transpose", ctx.stored(op.inputs[0]), name=output_name(ctx, op), perm=order)
    )


@converter("SQUEEZE")
def _squeeze(ctx: Context, op: Operator) -> None:
    listed, rank = op.options.get("squeezeDims"), ctx.tensor(op.inputs[0]).rank
    axes = [normal_axis(int(axis), rank) for axis in ([] if listed is None else listed)]
    if not axes:
        axes = [axis for axis, size in enumerate(ctx.dims(op.inputs[0])) if size == 1]
    made = ctx.build.op("Squeeze", ctx.stored(op.inputs[0]), ctx.build.ints(axes), name=output_name(ctx, op))
    _finish(ctx, op, made)


@converter("EXPAND_DIMS")
def _expand_dims(ctx: Context, op: Operator) -> None:
    (axis,) = ctx.ints(op.inputs[1], op, "its axis")
    axes = ctx.build.ints([normal_axis(axis, ctx.tensor(op.inputs[0]).rank + 1)])
    _finish(ctx, op, ctx.build.op("Unsqueeze", ctx.stored(op.inputs[0]), axes, name=output_name(ctx, op)))


@converter("SHAPE")
def _shape(ctx: Context, op: Operator) -> None:
    shape = ctx.build.op("Shape", ctx.stored(op.inputs[0]), name=output_name(ctx, op))
    finish_int64(ctx, op.outputs[0], op, shape)


@converter("RANK")
def _rank(ctx: Context, op: Operator) -> None:
    ctx.set_array(op.outputs[0], np.array(ctx.tensor(op.inputs[0]).rank, np.int32))


@converter("DEPTH_TO_SPACE", "SPACE_TO_DEPTH")
def _depth_space(ctx: Context, op: Operator) -> None:
    """The columns and rows of a block come before the channels, in ONNX as in TFLite (mode DCR)."""
    op_type = "DepthToSpace" if op.name == "DEPTH_TO_SPACE" else "SpaceToDepth"
    block, name = int(op.options.get("blockSize", 0)), output_name(ctx, op)
    if block < 1:
        raise ValueError(f"block size {block}")
    first = channels_first(ctx, ctx.stored(op.inputs[0]))
    _finish(ctx, op, channels_last(ctx, ctx.build.op(op_type, first, name=name, blocksize=block), 4, name))


@converter("SPACE_TO_BATCH_ND")
def _space_to_batch(ctx: Context, op: Operator) -> None:
    """Pad, cut each axis into blocks, bring the places inside the blocks to the front."""
    blocks = ctx.ints(op.inputs[1], op, "its block shape")
    pads = np.array(ctx.ints(op.inputs[2], op, "its padding")).reshape(-1, 2)
    rank, n = ctx.tensor(op.inputs[0]).rank, len(blocks)
    value = ctx.stored(op.inputs[0])
    if pads.any():
        rest = [0] * (rank - n - 1)
        amounts = ctx.build.ints([0, *pads[:, 0], *rest, 0, *pads[:, 1], *rest])
        value = ctx.build.op("Pad", value, amounts, _zero_of(ctx, op.inputs[0]))
    dims = ctx.dims(op.inputs[0])
    sizes: list[int] = [-1 if dims[0] < 0 else dims[0]]
    for axis in range(n):
        if dims[axis + 1] < 0:
            raise UnsupportedError(f"{op.place}: of a free axis {axis + 1} is not supported")
        sizes += [(dims[axis + 1] + int(pads[axis].sum())) // blocks[axis], blocks[axis]]
    rest_dims = list(dims[n + 1 :])
    order = [*range(2, 2 * n + 1, 2), 0, *range(1, 2 * n, 2), *range(2 * n + 1, 2 * n + 1 + len(rest_dims))]
    split = ctx.build.op("Reshape", value, ctx.build.ints([*sizes, *rest_dims]))
    moved = ctx.build.op("Transpose", split, perm=order)
    batch = -1 if dims[0] < 0 else dims[0] * int(np.prod(blocks))
    target = ctx.build.ints([batch, *sizes[1::2], *rest_dims])
    _finish(ctx, op, ctx.build.op("Reshape", moved, target, name=output_name(ctx, op)))


@converter("BATCH_TO_SPACE_ND")
def _batch_to_space(ctx: Context, op: Operator) -> None:
    """The inverse, then crop."""
    blocks = ctx.ints(op.inputs[1], op, "its block shape")
    crops = np.array(ctx.ints(op.inputs[2], op, "its crops")).reshape(-1, 2)
    dims, n = ctx.dims(op.inputs[0]), len(blocks)
    if any(size < 0 for size in dims[1 : n + 1]):
        raise UnsupportedError(f"{op.place}: of a free axis is not supported")
    batch = -1 if dims[0] < 0 else dims[0] // int(np.prod(blocks))
    rest = list(dims[n + 1 :])
    split = ctx.build.op("Reshape", ctx.stored(op.inputs[0]), ctx.build.ints([*blocks, batch, *dims[1:]]))
    order = [n]
    for axis in range(n):
        order += [n + 1 + axis, axis]
    order += range(2 * n + 1, 2 * n + 1 + len(rest))
    moved = ctx.build.op("Transpose", split, perm=order)
    sizes = [size * block for size, block in zip(dims[1:], blocks, strict=False)]
    value = ctx.build.op("Reshape", moved, ctx.build.ints([batch, *sizes, *rest]), name=output_name(ctx, op))
    if crops.any():
        ends = [size - int(crop) for size, crop in zip(sizes, crops[:, 1], strict=True)]
        bounds = [ctx.build.ints(crops[:, 0]), ctx.build.ints(ends), ctx.build.ints(list(range(1, n + 1)))]
        value = ctx.build.op("Slice", value, *bounds, name=output_name(ctx, op))
    _finish(ctx, op, value)


def _zero_of(ctx: Context, index: int) -> ir.Value:
    """What stands for zero among the stored numbers."""
    tensor = ctx.tensor(index)
    zero = tensor.quantization.zero_point[0] if tensor.quantized and tensor.quantization else 0
    return ctx.build.constant(np.array(zero, tensor.array_dtype))


@converter("PAD", "PADV2")
def _pad(ctx: Context, op: Operator) -> None:
    """With zeros, or a value; the amounts are a pair for each axis."""
    value = ctx.stored(op.inputs[0])
    if op.input(2) < 0:
        filled = _zero_of(ctx, op.inputs[0])
    elif ctx.same_quantization(op.inputs[0], op.inputs[2]):
        filled = _scalar(ctx, op.inputs[2])
    else:
        raise UnsupportedError(f"{op.place}: a pad value of another scale is not supported")
    made = ctx.build.op("Pad", value, _amounts(ctx, op), filled, name=output_name(ctx, op))
    _finish(ctx, op, made)


def _scalar(ctx: Context, index: int) -> ir.Value:
    array = ctx.array(index)
    if array is not None:
        return ctx.build.constant(array.reshape(()))
    return ctx.build.op("Reshape", ctx.stored(index), ctx.build.ints([]))


def _amounts(ctx: Context, op: Operator) -> ir.Value:
    """Pads as ONNX has them: all at the begins, then all at the ends."""
    array = ctx.array(op.inputs[1])
    if array is not None:
        return ctx.build.ints(array.reshape(-1, 2).T.reshape(-1), "pads")
    columns = ctx.build.op("Transpose", to_int64(ctx, op.inputs[1]), perm=[1, 0])
    return ctx.build.op("Reshape", columns, ctx.build.ints([-1]))


@converter("MIRROR_PAD")
def _mirror_pad(ctx: Context, op: Operator) -> None:
    """REFLECT leaves the border out, SYMMETRIC takes it twice, which ONNX does by indices."""
    if op.options.get("mode", 0) == 0:
        value = ctx.build.op(
            "Pad", ctx.stored(op.inputs[0]), _amounts(ctx, op), name=output_name(ctx, op), mode="reflect"
        )
        _finish(ctx, op, value)
        return
    pads = np.array(ctx.ints(op.inputs[1], op, "its padding")).reshape(-1, 2)
    value = ctx.stored(op.inputs[0])
    for axis, (size, (begin, end)) in enumerate(zip(ctx.dims(op.inputs[0]), pads, strict=True)):
        if not begin and not end:
            continue
        if size < 0 or max(begin, end) > size:
            raise UnsupportedError(f"{op.place}: symmetric padding of axis {axis} is not supported")
        places = np.pad(np.arange(size), (int(begin), int(end)), mode="symmetric")
        value = ctx.build.op("Gather", value, ctx.build.ints(places), axis=axis, name=output_name(ctx, op))
    _finish(ctx, op, value)


@converter("TILE")
def _tile(ctx: Context, op: Operator) -> None:
    repeats = to_int64(ctx, op.inputs[1])
    _finish(ctx, op, ctx.build.op("Tile", ctx.stored(op.inputs[0]), repeats, name=output_name(ctx, op)))


@converter("BROADCAST_TO")
def _broadcast_to(ctx: Context, op: Operator) -> None:
    shape = to_int64(ctx, op.inputs[1])
    _finish(ctx, op, ctx.build.op("Expand", ctx.stored(op.inputs[0]), shape, name=output_name(ctx, op)))


@converter("REVERSE_V2")
def _reverse(ctx: Context, op: Operator) -> None:
    rank = ctx.tensor(op.inputs[0]).rank
    axes = [normal_axis(axis, rank) for axis in ctx.ints(op.inputs[1], op, "its axes")]
    least = np.iinfo(np.int64).min
    bounds = [[-1] * len(axes), [least] * len(axes), axes, [-1] * len(axes)]
    inputs = [ctx.build.ints(column) for column in bounds]
    _finish(ctx, op, ctx.build.op("Slice", ctx.stored(op.inputs[0]), *inputs, name=output_name(ctx, op)))


@converter("REVERSE_SEQUENCE")
def _reverse_sequence(ctx: Context, op: Operator) -> None:
    rank = ctx.tensor(op.inputs[0]).rank
    time = normal_axis(int(op.options.get("seqDim", 0)), rank)
    batch = normal_axis(int(op.options.get("batchDim", 0)), rank)
    order = [time, batch, *(axis for axis in range(rank) if axis not in (time, batch))]
    moved = ctx.build.op("Transpose", ctx.stored(op.inputs[0]), perm=order)
    lengths = to_int64(ctx, op.inputs[1])
    turned = ctx.build.op("ReverseSequence", moved, lengths, time_axis=0, batch_axis=1)
    back = [int(axis) for axis in np.argsort(order)]
    _finish(ctx, op, ctx.build.op("Transpose", turned, perm=back, name=output_name(ctx, op)))


@converter("BROADCAST_ARGS")
def _broadcast_args(ctx: Context, op: Operator) -> None:
    """The shape that two shapes have together: where one has 1, the other's size."""
    lengths = [ctx.dims(index)[0] for index in op.inputs]
    if min(lengths) < 0:
        raise UnsupportedError(f"{op.place}: of shapes of free rank is not supported")
    first, second = (
        ctx.build.op("Concat", ctx.build.ints([1] * (max(lengths) - length)), to_int64(ctx, index), axis=0)
        for index, length in zip(op.inputs, lengths, strict=True)
    )
    ones = ctx.build.op("Equal", first, ctx.build.ints([1]))
    shape = ctx.build.op("Where", ones, second, first)
    finish_int64(ctx, op.outputs[0], op, shape)
