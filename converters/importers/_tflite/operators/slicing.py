"""Parts of tensors, and tensors of parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import (
    activated,
    finish_stored,
    normal_axis,
    output_name,
    to_int64,
)
from graphopt.converters.importers._tflite.registry import converter
from graphopt.errors import UnsupportedError

_END = np.iinfo(np.int64).max


@converter("SLICE")
def _slice(ctx: Context, op: Operator) -> None:
    """From begin, so many; a size of -1 is all that is left."""
    data, begin, size = op.inputs
    begins, sizes = ctx.array(begin), ctx.array(size)
    axes = ctx.build.ints(list(range(ctx.tensor(data).rank)))
    if begins is not None and sizes is not None:
        pairs = zip(begins.reshape(-1).tolist(), sizes.reshape(-1).tolist(), strict=True)
        cuts = [(i, b, _END if s == -1 else b + s) for i, (b, s) in enumerate(pairs)]
        cuts = [(i, b, e) for i, b, e in cuts if (b, e) != (0, _END)] or [(0, 0, _END)]
        starts, ends = ctx.build.ints([b for _, b, _ in cuts]), ctx.build.ints([e for _, _, e in cuts])
        axes = ctx.build.ints([i for i, _, _ in cuts])
    else:
        starts, counts = to_int64(ctx, begin), to_int64(ctx, size)
        all_left = ctx.build.op("Equal", counts, ctx.build.ints([-1]))
        ends = ctx.build.op("Where", all_left, ctx.build.ints([_END]), ctx.build.op("Add", starts, counts))
    made = ctx.build.op("Slice", ctx.stored(data), starts, ends, axes, name=output_name(ctx, op))
    finish_stored(ctx, op, made, data)


@converter("STRIDED_SLICE")
def _strided_slice(ctx: Context, op: Operator) -> None:
    """NumPy's indexing: ranges, new axes, an ellipsis, single indices, which take their axis away."""
    data = op.inputs[0]
    begins, ends, strides = (ctx.array(i) for i in op.inputs[1:4])
    if strides is None:
        raise UnsupportedError(f"{op.place}: strides that are computed are not supported")
    if op.options.get("offset", False):
        raise UnsupportedError(f"{op.place}: ends that count from the begins are not supported")
    entries = _entries(op, strides.reshape(-1).tolist(), ctx.tensor(data).rank)
    name = output_name(ctx, op)
    value = ctx.stored(data)
    if begins is not None and ends is not None:
        value = _cut(ctx, value, entries, begins.reshape(-1).tolist(), ends.reshape(-1).tolist(), name)
    else:
        value = _cut_computed(ctx, op, value, entries, name)
    dropped = [axis for _, axis, _, _, _, single in entries if single]
    if dropped:
        value = ctx.build.op("Squeeze", value, ctx.build.ints(dropped), name=name)
    added = _new_axes(op, strides.size, ctx.tensor(data).rank)
    if added:
        value = ctx.build.op("Unsqueeze", value, ctx.build.ints(added), name=name)
    finish_stored(ctx, op, value, data)


Entry = tuple[int, int, int, bool, bool, bool]


def _mask(op: Operator, name: str, place: int) -> bool:
    return bool(int(op.options.get(f"{name}Mask", 0)) >> place & 1)


def _entries(op: Operator, strides: Sequence[int], rank: int) -> list[Entry]:
    """Of each entry with an axis: its place, the axis, stride, whether from the start, to the end, single."""
    count = len(strides)
    plain = [p for p in range(count) if not _mask(op, "newAxis", p) and not _mask(op, "ellipsis", p)]
    if len(plain) > rank:
        raise ValueError(f"{len(plain)} ranges for {rank} axes")
    entries, axis = [], 0
    for place in range(count):
        if _mask(op, "ellipsis", place):
            axis += rank - len(plain)
            continue
        if _mask(op, "newAxis", place):
            continue
        single = _mask(op, "shrinkAxis", place)
        stride = 1 if single else int(strides[place])
        if not stride:
            raise ValueError("a stride of 0")
        whole_begin = _mask(op, "begin", place) and not single
        whole_end = _mask(op, "end", place) and not single
        entries.append((place, axis, stride, whole_begin, whole_end, single))
        axis += 1
    return entries


def _new_axes(op: Operator, count: int, rank: int) -> list[int]:
    """Places of the new axes in the result."""
    plain = sum(not _mask(op, "newAxis", p) and not _mask(op, "ellipsis", p) for p in range(count))
    places, at = [], 0
    for place in range(count):
        if _mask(op, "ellipsis", place):
            at += rank - plain
        elif _mask(op, "newAxis", place):
            places.append(at)
            at += 1
        elif not _mask(op, "shrinkAxis", place):
            at += 1
    return places


def _cut(
    ctx: Context,
    value: ir.Value,
    entries: Sequence[Entry],
    begins: Sequence[int],
    ends: Sequence[int],
    name: str,
) -> ir.Value:
    cuts = []
    for place, axis, stride, all_begin, all_end, single in entries:
        first = -_END if stride < 0 else 0
        begin = (_END if stride < 0 else 0) if all_begin else int(begins[place])
        end = (first if stride < 0 else _END) if all_end else int(ends[place])
        if single:
            end = begin + 1 if begin != -1 else _END
        if (begin, end, stride) != (0, _END, 1):
            cuts.append((begin, end, axis, stride))
    if not cuts:
        return ctx.build.op("Identity", value, name=name)
    columns = [ctx.build.ints(column) for column in zip(*cuts, strict=True)]
    if all(stride == 1 for *_, stride in cuts):
        columns = columns[:3]
    return ctx.build.op("Slice", value, *columns, name=name)


def _cut_computed(
    ctx: Context, op: Operator, value: ir.Value, entries: Sequence[Entry], name: str
) -> ir.Value:
    """Bounds that are computed, entry by entry."""
    starts, ends = [], []
    given = [to_int64(ctx, index) for index in op.inputs[1:3]]
    for place, _, stride, all_begin, all_end, single in entries:
        at = ctx.build.ints([place])
        begin = ctx.build.op("Gather", given[0], at, axis=0)
        if single:
            last = ctx.build.op("Equal", begin, ctx.build.ints([-1]))
            after = ctx.build.op("Add", begin, ctx.build.ints([1]))
            end = ctx.build.op("Where", last, ctx.build.ints([_END]), after)
        else:
            end = ctx.build.op("Gather", given[1], at, axis=0)
        starts.append(ctx.build.ints([_END if stride < 0 else 0]) if all_begin else begin)
        ends.append(ctx.build.ints([-_END if stride < 0 else _END]) if all_end else end)
    bounds = [ctx.build.op("Concat", *parts, axis=0) for parts in (starts, ends)]
    axes = ctx.build.ints([axis for _, axis, *_ in entries])
    steps = ctx.build.ints([stride for _, _, stride, *_ in entries])
    return ctx.build.op("Slice", value, *bounds, axes, steps, name=name)


@converter("CONCATENATION")
def _concatenation(ctx: Context, op: Operator) -> None:
    """Parts of one scale are put together as they are stored."""
    axis = normal_axis(int(op.options.get("axis", 0)), ctx.tensor(op.outputs[0]).rank)
    name = output_name(ctx, op)
    out = op.outputs[0]
    if all(ctx.same_quantization(index, out) for index in op.inputs):
        made = ctx.build.op("Concat", *(ctx.stored(i) for i in op.inputs), name=name, axis=axis)
        ctx.set(out, made if ctx.tensor(out).quantized else activated(ctx, op, made))
        return
    made = ctx.build.op("Concat", *(ctx.real(i) for i in op.inputs), name=name, axis=axis)
    ctx.set_real(out, activated(ctx, op, made))


def _split(ctx: Context, op: Operator, data: int, axis: int, sizes: list[int] | None) -> None:
    axis = normal_axis(axis, ctx.tensor(data).rank)
    name = output_name(ctx, op)
    inputs = [ctx.stored(data), None if sizes is None else ctx.build.ints(sizes)]
    attributes = {"axis": axis} if sizes is not None else {"axis": axis, "num_outputs": len(op.outputs)}
    made = ctx.build.nodes_of("Split", inputs, attributes, len(op.outputs), name)
    for index, value in zip(op.outputs, made, strict=True):
        ctx.set(index, value)


@converter("SPLIT")
def _split_equal(ctx: Context, op: Operator) -> None:
    (axis,) = ctx.ints(op.inputs[0], op, "its axis")
    _split(ctx, op, op.inputs[1], axis, None)


@converter("SPLIT_V")
def _split_sizes(ctx: Context, op: Operator) -> None:
    """Into parts of these sizes; one may be -1."""
    sizes = ctx.ints(op.inputs[1], op, "the sizes of its parts")
    (axis,) = ctx.ints(op.inputs[2], op, "its axis")
    data = op.inputs[0]
    if -1 in sizes:
        whole = ctx.dims(data)[normal_axis(axis, ctx.tensor(data).rank)]
        if whole < 0:
            raise UnsupportedError(f"{op.place}: a part of the size -1 of a free axis is not supported")
        left = whole - sum(size for size in sizes if size >= 0)
        sizes = [left if size == -1 else size for size in sizes]
    _split(ctx, op, data, axis, sizes)


@converter("PACK")
def _pack(ctx: Context, op: Operator) -> None:
    axis = normal_axis(int(op.options.get("axis", 0)), ctx.tensor(op.inputs[0]).rank + 1)
    at, name = ctx.build.ints([axis]), output_name(ctx, op)
    parts = [ctx.build.op("Unsqueeze", ctx.stored(index), at) for index in op.inputs]
    finish_stored(ctx, op, ctx.build.op("Concat", *parts, name=name, axis=axis), op.inputs[0])


@converter("UNPACK")
def _unpack(ctx: Context, op: Operator) -> None:
    axis = normal_axis(int(op.options.get("axis", 0)), ctx.tensor(op.inputs[0]).rank)
    value = ctx.stored(op.inputs[0])
    for number, index in enumerate(op.outputs):
        at = ctx.build.constant(np.int64(number))
        ctx.set(index, ctx.build.op("Gather", value, at, axis=axis, name=ctx.tensor(index).name))
