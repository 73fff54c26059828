"""LiteRT on files with custom operators that it has no kernel for: these are computed here, in plain loops.

The file is cut at each of them: what it reads becomes an output, what it makes an input. One run of the rest
for each operator, in their order, gives its inputs their final content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from graphopt.converters.importers._tflite.litert import LiteRT
from graphopt.converters.importers._tflite.model import Array, Operator
from graphopt.converters.importers._tflite.operators.custom_pooling import PoolOptions

__all__ = ["KERNELS", "Cut", "WithKernels"]

Kernel = Callable[[Operator, Sequence[Array]], list[Array]]


class Cut(NamedTuple):
    """A custom operator that was cut out, names of what it reads and makes, shapes of the latter."""

    op: Operator
    reads: Sequence[str]
    makes: Sequence[str]
    shapes: Sequence[tuple[int, ...]]


class WithKernels:
    """Runs the rest of the file once for each operator that was cut out, and once more."""

    def __init__(self, rest: LiteRT, cuts: Sequence[Cut], outputs: Sequence[str]) -> None:
        self._rest, self._cuts, self._outputs = rest, cuts, outputs

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        known = dict(feed)
        for cut in self._cuts:
            known |= {n: np.zeros(s, np.float32) for n, s in zip(cut.makes, cut.shapes, strict=True)}
        for cut in self._cuts:
            found = self._rest(known)
            made = KERNELS[cut.op.custom](cut.op, [found[name] for name in cut.reads])
            known |= dict(zip(cut.makes, made, strict=True))
        found = self._rest(known)
        return {name: found[name] for name in self._outputs}


def _window(options: PoolOptions, sizes: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The pads before, as TFLite computes them."""
    return [
        max((count - 1) * stride + kernel - size, 0) // 2
        for size, count, stride, kernel in zip(sizes, counts, options.strides, options.kernel, strict=True)
    ]


def _max_pool(op: Operator, inputs: Sequence[Array]) -> list[Array]:
    """Source: mediapipe/util/tflite/operations/max_pool_argmax.cc."""
    (data,), options = inputs, PoolOptions.of(op)
    sizes = data.shape[1:3]
    counts = [
        -(-size // stride) if options.padding == 0 else (size - kernel) // stride + 1
        for size, stride, kernel in zip(sizes, options.strides, options.kernel, strict=True)
    ]
    top, left = _window(options, sizes, counts)
    values = np.zeros((data.shape[0], *counts, data.shape[3]), np.float32)
    places = np.zeros_like(values)
    for y, x in np.ndindex(*counts):
        row, column = y * options.strides[0] - top, x * options.strides[1] - left
        best = np.full((data.shape[0], data.shape[3]), np.finfo(np.float32).min, np.float32)
        place = np.full_like(best, 0.1)
        for i, j in np.ndindex(*options.kernel):
            if 0 <= row + i < sizes[0] and 0 <= column + j < sizes[1]:
                now = data[:, row + i, column + j]
                place = np.where(now > best, np.float32(i * options.kernel[1] + j + 0.1), place)
                best = np.maximum(best, now)
        values[:, y, x], places[:, y, x] = best, place
    return [values, places]


def _max_unpool(op: Operator, inputs: Sequence[Array]) -> list[Array]:
    """Source: mediapipe/util/tflite/operations/max_unpooling.cc."""
    (data, places), options = inputs, PoolOptions.of(op)
    batch, rows, columns, channels = data.shape
    made = np.zeros((batch, rows * options.kernel[0], columns * options.kernel[1], channels), np.float32)
    for b, y, x, c in np.ndindex(*data.shape):
        place = int(places[b, y, x, c])
        row, column = place // options.kernel[1], place % options.kernel[1]
        made[b, y * options.strides[0] + row, x * options.strides[1] + column, c] = data[b, y, x, c]
    return [made]


#: By the operator's name.
KERNELS: Final[dict[str, Any]] = {"MaxPoolingWithArgmax2D": _max_pool, "MaxUnpooling2D": _max_unpool}
