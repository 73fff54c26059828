"""Operators that read or write elements at computed places."""

from __future__ import annotations

import math

import numpy as np

from graphopt.analyses.kernels._call import (
    Array,
    Call,
    Refused,
    element_bytes,
    indices_of_first,
    kernel,
    like_first,
    normalized,
    require_kind,
)


def _inside(indices: Array, length: int) -> Array:
    """Indices into an axis, counted from the front as int64; those outside are refused."""
    require_kind(indices, "iu")
    wide = indices.astype(np.int64)
    if np.any(wide < -length) or np.any(wide >= length):
        raise Refused("an index lies outside of its axis")
    return np.where(wide < 0, wide + length, wide)


def _gathered_bytes(call: Call) -> int:
    data = call[0]
    rest = list(data.shape)
    rest.pop(call.axis(data.ndim, 0))
    return int(call[1].size * math.prod(rest) * element_bytes(data.dtype))


@kernel("Gather", measure=_gathered_bytes)
def gather(call: Call) -> Array:
    """Whole slices of one axis, in the shape of the indices."""
    data, axis = call[0], call.axis(call[0].ndim, 0)
    return np.take(data, _inside(call[1], data.shape[axis]), axis)


@kernel("GatherElements", measure=lambda call: call[1].size * element_bytes(call[0].dtype))
def gather_elements(call: Call) -> Array:
    """One element per index, at the index's own place on all other axes."""
    data, axis = call[0], call.axis(call[0].ndim, 0)
    return data[_grid(call[1], data, axis)]


def _grid(indices: Array, data: Array, axis: int) -> tuple[Array, ...]:
    """Index arrays that address ``data`` at ``indices`` along ``axis``, and in place elsewhere."""
    if indices.ndim != data.ndim or any(
        i > d for k, (i, d) in enumerate(zip(indices.shape, data.shape, strict=True)) if k != axis
    ):
        raise Refused("the indices do not fit the data")
    places: list[Array] = list(np.indices(indices.shape, sparse=True))
    places[axis] = _inside(indices, data.shape[axis])
    return tuple(places)


def _tuples(indices: Array, dims: tuple[int, ...]) -> tuple[Array, ...]:
    """The last axis of ``indices`` as one index array per leading dimension of ``dims``."""
    if indices.ndim < 1 or indices.shape[-1] > len(dims):
        raise Refused("the index tuples are longer than the rank")
    return tuple(_inside(indices[..., i], dims[i]) for i in range(indices.shape[-1]))


def _gathered_tuples_bytes(call: Call) -> int:
    data, indices, batch = call[0], call[1], call.integer("batch_dims", 0)
    if indices.ndim < 1 or not 0 <= batch < min(data.ndim, indices.ndim) + (data.ndim == 0):
        raise Refused("batch_dims does not fit")
    rest = data.shape[batch + indices.shape[-1] :]
    return int(math.prod((*indices.shape[:-1], *rest)) * element_bytes(data.dtype))


@kernel("GatherND", measure=_gathered_tuples_bytes)
def gather_nd(call: Call) -> Array:
    """Slices addressed by index tuples, after the batch axes that both inputs share."""
    data, indices, batch = call[0], call[1], call.integer("batch_dims", 0)
    if data.shape[:batch] != indices.shape[:batch]:
        raise Refused("the batch axes differ")
    shared = tuple(
        np.arange(d).reshape([-1 if k == i else 1 for k in range(indices.ndim - 1)])
        for i, d in enumerate(data.shape[:batch])
    )
    found: Array = data[(*shared, *_tuples(indices, data.shape[batch:]))]
    return found


_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(call: Call, data: Array, places: tuple[Array, ...], updates: Array) -> Array:
    """Write or accumulate; without a reduction a place written twice has no defined value."""
    reduction = call.text("reduction", "none")
    result = data.copy()
    if updates.dtype != data.dtype:
        raise Refused("the updates are of another type")
    if reduction in _REDUCTIONS:
        require_kind(data, "iuf")
        _REDUCTIONS[reduction].at(result, places, updates)
        return result
    if reduction != "none":
        raise Refused(f"unknown reduction '{reduction}'")
    _refuse_repeats(places, data.shape)
    result[places] = updates
    return result


def _refuse_repeats(places: tuple[Array, ...], dims: tuple[int, ...]) -> None:
    if not places:
        return
    flat = np.ravel_multi_index(np.broadcast_arrays(*places), dims[: len(places)])
    if np.unique(flat).size != flat.size:
        raise Refused("two updates meet at one place")


@kernel("ScatterElements", "Scatter", measure=like_first)
def scatter_elements(call: Call) -> Array:
    """Write one element per index, at the index's own place on all other axes."""
    data, indices, updates = call[0], call[1], call[2]
    if indices.shape != updates.shape:
        raise Refused("there is not one update per index")
    return _scatter(call, data, _grid(indices, data, call.axis(data.ndim, 0)), updates)


@kernel("ScatterND", measure=like_first)
def scatter_nd(call: Call) -> Array:
    """Write slices at places given by index tuples."""
    data, indices, updates = call[0], call[1], call[2]
    places = _tuples(indices, data.shape)
    if updates.shape != indices.shape[:-1] + data.shape[indices.shape[-1] :]:
        raise Refused("the updates do not fit the indices")
    return _scatter(call, data, places, updates)


@kernel("NonZero", measure=lambda call: call[0].size * max(call[0].ndim, 1) * 8)
def non_zero(call: Call) -> Array:
    """Places of what is not zero, one column each."""
    data = require_kind(call[0], "biuf")
    if data.ndim == 0:
        raise Refused("NonZero of a scalar differs between runtimes")
    return np.asarray(np.nonzero(data), np.int64)


def _one_hot_bytes(call: Call) -> int:
    depth = _depth(call)
    return call[0].size * depth * element_bytes(call[2].dtype)


def _depth(call: Call) -> int:
    depth = require_kind(call[1], "iuf")
    if depth.size != 1 or not 0 < float(depth.reshape(-1)[0]) < 2**31 or call[2].shape != (2,):
        raise Refused("OneHot has no depth, or no two values")
    return int(depth.reshape(-1)[0])


@kernel("OneHot", measure=_one_hot_bytes)
def one_hot(call: Call) -> Array:
    """The second value where the index is, the first elsewhere; an index outside gives no place."""
    indices, depth, values = require_kind(call[0], "iu").astype(np.int64), _depth(call), call[2]
    axis = normalized(call.integer("axis", -1), indices.ndim + 1)
    wrapped = np.where(indices < 0, indices + depth, indices)
    column = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    hot: Array = np.where(np.equal(np.expand_dims(wrapped, axis), column), values[1], values[0])
    return hot


def _best(call: Call, last: bool, best: str) -> Array:
    data = require_kind(call[0], "iuf")
    axis = call.axis(data.ndim, 0)
    if data.size == 0 or (data.dtype.kind == "f" and np.any(np.isnan(data))):
        raise Refused("the best of nothing, or of NaN, is not defined")
    seen = np.flip(data, axis) if last else data
    found = getattr(np, best)(seen, axis=axis, keepdims=bool(call.integer("keepdims", 1)))
    return np.asarray(data.shape[axis] - 1 - found if last else found, np.int64)


@kernel("ArgMax", measure=indices_of_first)
def arg_max(call: Call) -> Array:
    """Place of the largest element along one axis, the first or last of equals."""
    return _best(call, bool(call.integer("select_last_index", 0)), "argmax")


@kernel("ArgMin", measure=indices_of_first)
def arg_min(call: Call) -> Array:
    """Place of the smallest element along one axis, the first or last of equals."""
    return _best(call, bool(call.integer("select_last_index", 0)), "argmin")
