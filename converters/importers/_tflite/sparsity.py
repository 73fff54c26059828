"""Sparse constants: the elements that are there, in the TACO format, and where they go.

Every level of ``dim_metadata`` is one axis, in the order of ``traversal_order``: an axis of the tensor, or of
the blocks that its axes ``block_map`` are cut into. A dense level has all its indices; a sparse one lists
them, ``segments`` saying where the list of each parent begins (compressed sparse rows). Source: TFLite's
schema.fbs, SparsityParameters; Kjolstad et al., The Tensor Algebra Compiler, OOPSLA 2017.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt.converters.importers._tflite.model import Array
from graphopt.converters.importers._tflite.schema import DTYPES, PACKED, generated
from graphopt.errors import InputError, UnsupportedError

__all__ = ["densify"]

_VECTORS = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}


def densify(sparsity: Any, data: Array, kind: str, shape: tuple[int, ...], where: str) -> Array:
    """The whole tensor, zeros where nothing is listed.

    Raises:
        InputError: The lists do not fit the shape.
        UnsupportedError: Elements that share bytes.
    """
    if kind in PACKED:
        raise UnsupportedError(f"{where}: sparse {kind} is not supported")
    order = [int(n) for n in sparsity.TraversalOrderAsNumpy()]
    blocked = sparsity.BlockMapAsNumpy()
    blocks = [int(n) for n in blocked] if isinstance(blocked, np.ndarray) else []
    rank = len(shape)
    damaged = InputError(f"a damaged TFLite file: {where} has sparsity that does not fit its shape")
    if sorted(order) != list(range(rank + len(blocks))) or any(not 0 <= b < rank for b in blocks):
        raise damaged
    if sparsity.DimMetadataLength() != len(order):
        raise damaged
    total = math.prod(shape)
    positions, levels = np.zeros(1, np.int64), np.zeros((0, 1), np.int64)
    sizes = []
    for level in range(len(order)):
        dimension = sparsity.DimMetadata(level)
        parents, indices, positions = _level(dimension, positions, total, damaged)
        levels = np.concatenate([levels[:, parents], indices[None]])
        sizes.append(dimension.DenseSize() if not dimension.Format() else None)
    places = _places(levels, order, blocks, sizes, rank, damaged)
    elements = np.frombuffer(data.tobytes(), DTYPES[kind])
    if elements.size != positions.size or any(
        place.size and not 0 <= place.min() <= place.max() < size
        for place, size in zip(places, shape, strict=True)
    ):
        raise damaged
    dense = np.zeros(shape, elements.dtype)
    dense[tuple(places)] = elements[positions]
    return dense


def _level(dimension: Any, positions: Array, total: int, damaged: InputError) -> tuple[Array, Array, Array]:
    """One level below ``positions``: the parent of each entry, its index, its position."""
    count = positions.size
    if not dimension.Format():
        size = dimension.DenseSize()
        if size < 0 or count * size > total:
            raise damaged
        indices = np.tile(np.arange(size), count)
        parents = np.repeat(np.arange(count), size)
        return parents, indices, positions[parents] * size + indices
    segments = _vector(dimension.ArraySegmentsType(), dimension.ArraySegments())
    listed = _vector(dimension.ArrayIndicesType(), dimension.ArrayIndices())
    if segments.size < 1 or (count and positions.max() + 1 >= segments.size):
        raise damaged
    begins, ends = segments[positions], segments[positions + 1]
    lengths = ends - begins
    if (lengths < 0).any() or (begins < 0).any() or (ends > listed.size).any() or lengths.sum() > total:
        raise damaged
    parents = np.repeat(np.arange(count), lengths)
    within = np.arange(parents.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    below = begins[parents] + within
    return parents, listed[below], below


def _vector(kind: int, table: Any) -> Array:
    vector = getattr(generated, _VECTORS[kind])()
    vector.Init(table.Bytes, table.Pos)
    values = vector.ValuesAsNumpy()
    return values.astype(np.int64) if isinstance(values, np.ndarray) else np.zeros(0, np.int64)


def _places(
    levels: Array,
    order: list[int],
    blocks: list[int],
    sizes: list[int | None],
    rank: int,
    damaged: InputError,
) -> list[Array]:
    """The index on each axis of the tensor: that of the block, times its size, and that inside it."""
    places = [levels[order.index(axis)] for axis in range(rank)]
    for number, axis in enumerate(blocks):
        level = order.index(rank + number)
        size = sizes[level]
        if size is None:
            raise damaged  # blocks are dense inside
        places[axis] = places[axis] * size + levels[level]
    return places
