"""Reductions over axes and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.analyses.kernels._call import (
    Array,
    Call,
    Refused,
    kernel,
    like_first,
    normalized,
    normalized_all,
    require_kind,
)


def _axes(call: Call, data: Array, since: int) -> tuple[int, ...] | None:
    """The reduced axes; None where nothing is reduced at all."""
    axes = call.listed("axes", 1, since)
    if axes:
        return normalized_all(axes, data.ndim)
    if call.opset >= since and call.integer("noop_with_empty_axes", 0):
        return None
    return tuple(range(data.ndim))


def _reduction(name: str, function: Callable[..., Any], *, since: int = 18, kinds: str = "iuf") -> None:
    """Register a reduction whose axes are an attribute before opset ``since``."""

    def compute(call: Call) -> Array:
        data = require_kind(call[0], kinds)
        axes = _axes(call, data, since)
        if axes is None:
            return data
        if data.size == 0:
            raise Refused("reductions of nothing differ between runtimes")
        wide = data.astype(np.float64) if data.dtype.kind == "f" else data
        result = function(wide, axis=axes, keepdims=bool(call.integer("keepdims", 1)))
        return np.asarray(result).astype(data.dtype)

    kernel(name, measure=like_first)(compute)


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(data: Array, **where: Any) -> Any:
        if data.dtype.kind == "f" and np.any(np.isnan(data)):
            raise Refused("the best of NaN is not defined")
        return function(data, **where)

    return reduce


_reduction("ReduceSum", np.sum, since=13)
_reduction("ReduceProd", np.prod)
_reduction("ReduceMean", np.mean, kinds="f")
_reduction("ReduceMax", _extreme(np.max))
_reduction("ReduceMin", _extreme(np.min))


@kernel("CumSum", measure=like_first)
def cumulative_sum(call: Call) -> Array:
    """Running sum along an axis given as input; from the end with reverse, without itself with exclusive."""
    data = require_kind(call[0], "iuf")
    axis = normalized(call.number(1), data.ndim)
    if data.ndim == 0:
        raise Refused("CumSum of a scalar has no axis")
    seen = np.flip(data, axis) if call.integer("reverse", 0) else data
    wide = seen.astype(np.float64) if seen.dtype.kind == "f" else seen
    result = np.cumsum(wide, axis=axis, dtype=wide.dtype)
    if call.integer("exclusive", 0):
        result = np.roll(result, 1, axis)
        result[(slice(None),) * axis + (slice(0, 1),)] = 0
    result = result.astype(data.dtype)
    return np.flip(result, axis) if call.integer("reverse", 0) else result
