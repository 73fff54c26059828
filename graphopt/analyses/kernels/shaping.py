"""Operators that rearrange, repeat or cut a tensor without computing with its elements."""

from __future__ import annotations

import math

import numpy as np

from graphopt.analyses.kernels._call import (
    Array,
    Call,
    Refused,
    broadcast_dims,
    element_bytes,
    kernel,
    like_all,
    like_first,
    normalized,
    normalized_all,
)


@kernel("Identity", measure=like_first)
def identity(call: Call) -> Array:
    """The input itself."""
    return call[0]


@kernel("Shape", measure=lambda call: call[0].ndim * 8)
def shape(call: Call) -> Array:
    """The dimensions from ``start`` to ``end`` (opset 15), which are cut to the rank."""
    dims = call[0].shape
    if call.opset < 15:
        return np.asarray(dims, np.int64)
    return np.asarray(dims[slice(call.integer("start", 0), call.integer("end", len(dims)))], np.int64)


@kernel("Size", measure=lambda call: 8)
def size(call: Call) -> Array:
    """The number of elements, of rank 0."""
    return np.asarray(call[0].size, np.int64)


@kernel("Concat", measure=like_all)
def concat(call: Call) -> Array:
    """Join along one axis, which was 1 by default before opset 4."""
    arrays = call.present()
    if len({a.dtype for a in arrays}) != 1:
        raise Refused("Concat joins different types")
    return np.concatenate(arrays, call.axis(arrays[0].ndim, 1 if call.opset < 4 else None))


@kernel("Split", measure=like_first)
def split(call: Call) -> list[Array]:
    """Cut into parts of given sizes (attribute before opset 13), or into equal ones, the last one smaller."""
    data, parts = call[0], len(call.node.outputs)
    axis = call.axis(data.ndim, 0)
    length = data.shape[axis]
    sizes = call.listed("split", 1, 13)
    if sizes is None:
        if call.opset >= 18 and call.integer("num_outputs") != parts:
            raise Refused("Split has another number of outputs than it says")
        chunk = -(-length // parts)
        if call.opset < 18 and chunk * parts != length:
            raise Refused("Split into parts that are not equal")
        sizes = tuple(max(0, min(chunk, length - i * chunk)) for i in range(parts))
    if len(sizes) != parts or sum(sizes) != length or min(sizes) < 0:
        raise Refused("the sizes of Split do not add up to the axis")
    return list(np.split(data, np.cumsum(sizes[:-1]), axis))


@kernel("Squeeze", measure=like_first)
def squeeze(call: Call) -> Array:
    """Drop axes of size 1: those named, or all."""
    data, axes = call[0], call.listed("axes", 1, 13)
    if axes is None:
        return data.reshape([d for d in data.shape if d != 1])
    dropped = normalized_all(axes, data.ndim)
    if any(data.shape[a] != 1 for a in dropped):
        raise Refused("Squeeze drops an axis that is not of size 1")
    return data.reshape([d for i, d in enumerate(data.shape) if i not in dropped])


@kernel("Unsqueeze", measure=like_first)
def unsqueeze(call: Call) -> Array:
    """Insert axes of size 1 at places counted in the result."""
    data, axes = call[0], call.listed("axes", 1, 13)
    if axes is None:
        raise Refused("Unsqueeze has no axes")
    return np.expand_dims(data, normalized_all(axes, data.ndim + len(axes)))


@kernel("Reshape", measure=like_first)
def reshape(call: Call) -> Array:
    """0 takes the input's dimension unless allowzero says otherwise; -1 is what is left."""
    data, target = call[0], call.listed("shape", 1, 5)
    if target is None:
        raise Refused("Reshape has no shape")
    dims = list(target)
    if not (call.opset >= 14 and call.integer("allowzero", 0)):
        if any(d == 0 and i >= data.ndim for i, d in enumerate(dims)):
            raise Refused("a 0 in the shape points behind the input's axes")
        dims = [data.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    if -1 in dims:
        known = -math.prod(dims)
        if dims.count(-1) > 1 or known <= 0 or data.size % known:
            raise Refused("the -1 in the shape has no value")
        dims[dims.index(-1)] = data.size // known
    if min(dims, default=0) < 0 or math.prod(dims) != data.size:
        raise Refused("the shape does not hold the input's elements")
    return data.reshape(dims)


@kernel("Flatten", measure=like_first)
def flatten(call: Call) -> Array:
    """A matrix of the axes before ``axis`` by those from it on."""
    data, axis = call[0], call.integer("axis", 1)
    if axis < 0 and call.opset < 11:
        raise Refused("a negative axis of Flatten needs opset 11")
    axis = data.ndim if axis == data.ndim else normalized(axis, data.ndim)
    return data.reshape(math.prod(data.shape[:axis]), math.prod(data.shape[axis:]))


@kernel("Transpose", measure=like_first)
def transpose(call: Call) -> Array:
    """Reverse the axes, or put them in the order ``perm``."""
    data, order = call[0], call.integers("perm")
    return np.transpose(data, order if order else None)


def _expanded(call: Call) -> tuple[int, ...]:
    target = call.numbers(1)
    if target is None or min(target, default=0) < 0:
        raise Refused("the shape of Expand is no shape")
    return broadcast_dims(call[0].shape, target)


@kernel("Expand", measure=lambda call: math.prod(_expanded(call)) * element_bytes(call[0].dtype))
def expand(call: Call) -> Array:
    """Broadcast both ways: the shape may also hold 1 where the input does not."""
    return np.broadcast_to(call[0], _expanded(call))


def _repeats(call: Call) -> tuple[int, ...]:
    repeats = call.numbers(1)
    if call.opset < 6 or repeats is None or len(repeats) != call[0].ndim or min(repeats, default=0) < 0:
        raise Refused("Tile has no repeat for every axis")
    return repeats


@kernel("Tile", measure=lambda call: math.prod(_repeats(call)) * call[0].nbytes)
def tile(call: Call) -> Array:
    """Repeat along every axis."""
    return np.tile(call[0], _repeats(call))


def _pads(call: Call) -> list[tuple[int, int]]:
    """(before, after) for every axis; a negative number cuts."""
    rank, pads = call[0].ndim, call.listed("pads", 1, 11)
    axes = call.numbers(3) if call.opset >= 18 else None
    if call.text("mode", "constant") != "constant" or call.opset < 2:
        raise Refused("only constant padding is computed")
    padded = tuple(range(rank)) if axes is None else normalized_all(axes, rank)
    if pads is None or len(pads) != 2 * len(padded):
        raise Refused("Pad has no two numbers for every axis")
    found = [(0, 0)] * rank
    for i, axis in enumerate(padded):
        found[axis] = (pads[i], pads[i + len(padded)])
    return found


def _padded(call: Call) -> list[int]:
    dims = [d + sum(p) for d, p in zip(call[0].shape, _pads(call), strict=True)]
    if min(dims, default=0) < 0:
        raise Refused("Pad cuts more than there is")
    return dims


@kernel("Pad", measure=lambda call: math.prod(_padded(call)) * element_bytes(call[0].dtype))
def pad(call: Call) -> Array:
    """Pad with one number, or cut where a pad is negative."""
    data, pads = call[0], _pads(call)
    fill: object = 0
    if call.opset < 11:
        given = call.attribute("value")
        fill = 0 if given is None else given.as_float()
    elif call.optional(2) is not None:
        if call[2].size != 1 or call[2].dtype != data.dtype:
            raise Refused("Pad does not fill with one number of the same type")
        fill = call[2].reshape(-1)[0]
    result = np.full(_padded(call), fill, data.dtype)
    source = tuple(slice(max(0, -b), d - max(0, -a)) for (b, a), d in zip(pads, data.shape, strict=True))
    place = tuple(slice(max(0, b), d - max(0, a)) for (b, a), d in zip(pads, result.shape, strict=True))
    result[place] = data[source]
    return result


@kernel("Slice", measure=like_first)
def slice_(call: Call) -> Array:
    """Attributes before opset 10, inputs from there on; bounds are cut to the axis."""
    data = call[0]
    if call.opset < 10:
        starts, ends, axes = (call.integers(name) for name in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (call.numbers(i) for i in range(1, 5))
    if starts is None or ends is None:
        raise Refused("Slice has no bounds")
    axes = normalized_all(range(len(starts)) if axes is None else axes, data.ndim)
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise Refused("the bounds of Slice do not match")
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice_of(start, end, step, data.shape[axis])
    return data[tuple(index)]


def slice_of(start: int, end: int, step: int, length: int) -> slice:
    """The bounds of one axis as a Python slice, which differs only going backwards from or past the first
    element: ONNX moves the start to the first element, and an end before it includes it.

    Raises:
        Refused: The step is negative and the end as large as can be: onnxruntime then goes on to the first
            element, by the specification there is nothing.
    """
    if step < 0 and end in (2**31 - 1, 2**63 - 1):
        raise Refused("a Slice backwards to the largest number differs between runtimes")
    if step > 0:
        return slice(start, end, step)
    return slice(max(start, -length), None if end < -length else end, step)


@kernel("Trilu", measure=like_first)
def trilu(call: Call) -> Array:
    """Keep the upper (or lower) triangle of the last two axes, shifted by k."""
    data = call[0]
    if data.ndim < 2:
        raise Refused("Trilu needs two axes")
    shifted = call.number(1) if call.optional(1) is not None else 0
    rows, columns = np.ogrid[: data.shape[-2], : data.shape[-1]]
    offset = max(-data.shape[-2] - 1, min(data.shape[-1] + 1, shifted))
    keep = columns - rows >= offset if call.integer("upper", 1) else columns - rows <= offset
    return np.where(keep, data, np.zeros((), data.dtype))
