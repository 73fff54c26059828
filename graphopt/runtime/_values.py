"""Draw the values of one input: what its role in the model allows, the same for the same seed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.runtime._axes import InputSpec
from graphopt.runtime._roles import Role

__all__ = ["LEVELS", "Draw", "Level", "draw"]

Shapes = Mapping[str, tuple[int, ...]]

#: How careful integers are: all that the role allows, 0 and 1 of these, only 0, only 1.
Level = Literal["all", "small", "zero", "one"]
LEVELS: tuple[Level, ...] = ("all", "small", "zero", "one")

#: Floats of inputs this small are parameters rather than data; careful levels keep them positive.
_PARAMETER_ELEMENTS = 8


@dataclass(frozen=True)
class Draw:
    """Which sample of which input is drawn, and how.

    Attributes:
        seed: Seed of the whole set.
        sample: Number of the sample in the set.
        level: How careful integers are.
        uniform: Whether floats are uniform in [0, 1) rather than standard normal.
    """

    seed: int
    sample: int
    level: Level = "all"
    uniform: bool = False


def draw(
    specs: Sequence[InputSpec], roles: Mapping[str, Role], sizes: Mapping[str, int], how: Draw
) -> dict[str, np.ndarray]:
    """The arrays of all inputs by name; ``sizes`` are those of their free axes."""
    shapes = {spec.name: spec.shape(sizes) for spec in specs}
    return {spec.name: _draw(spec, roles[spec.name], specs, shapes, how) for spec in specs}


def _draw(spec: InputSpec, role: Role, specs: Sequence[InputSpec], shapes: Shapes, how: Draw) -> np.ndarray:
    random = np.random.default_rng((how.seed, zlib.crc32(spec.name.encode()), how.sample))
    shape, dtype = shapes[spec.name], spec.dtype.numpy()
    if role.kind == "mask":
        return _mask(random, shape).astype(dtype)
    if role.kind == "threshold":
        return np.full(shape, role.threshold).astype(dtype)
    if spec.dtype.is_floating_point() or dtype.kind == "c":
        return _floats(random, shape, how).astype(dtype)
    if spec.dtype == ir.DataType.BOOL:
        return _bools(random, shape, how)
    if role.kind == "length" and how.level in ("all", "small"):
        return _lengths(random, shape, _time_steps(spec, specs, shapes), how).astype(dtype)
    return _integers(random, shape, role, _range(spec.dtype, role, shapes), how).astype(dtype)


def _floats(random: np.random.Generator, shape: tuple[int, ...], how: Draw) -> np.ndarray:
    parameter = len(shape) < 2 and np.prod(shape) <= _PARAMETER_ELEMENTS
    if parameter and how.level == "one":
        return np.ones(shape, np.float32)
    if how.uniform or (parameter and how.level != "all"):
        return np.asarray(random.random(shape, np.float32))
    return np.asarray(random.standard_normal(shape, np.float32))


def _bools(random: np.random.Generator, shape: tuple[int, ...], how: Draw) -> np.ndarray:
    if how.level in ("zero", "one"):
        return np.full(shape, how.level == "one")
    return np.asarray(random.integers(0, 2, shape), np.bool_)


def _mask(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of ones followed by zeros, at least one 1 a row; the first row is all ones."""
    if not shape:
        return np.ones((), np.int64)
    kept = random.integers(1, max(shape[-1], 1) + 1, shape[:-1])
    if kept.size:
        kept.reshape(-1)[0] = shape[-1]
    return np.asarray(np.arange(shape[-1]) < kept[..., None], np.int64)


def _integers(
    random: np.random.Generator, shape: tuple[int, ...], role: Role, bounds: tuple[int, int], how: Draw
) -> np.ndarray:
    low, high = bounds
    if how.level in ("zero", "one"):
        return np.full(shape, min(max(int(how.level == "one"), low), high))
    if role.kind == "position":
        count = shape[-1] if shape else 1
        return np.broadcast_to((np.arange(count) % (high - low + 1) + low).reshape(shape[-1:]), shape)
    if role.kind == "choice" and role.choices:
        return np.full(shape, role.choices[how.sample % len(role.choices)])
    if role.kind == "size":
        return np.ones(shape, np.int64)
    if how.level == "small":
        low = min(max(low, 0), high)
        high = min(high, low + 1)
    return np.asarray(random.integers(low, high, shape, endpoint=True))


def _range(dtype: ir.DataType, role: Role, shapes: Shapes) -> tuple[int, int]:
    """Least and greatest integer of an input; 0 and 1 where nothing is known, all bytes for bytes."""
    least, greatest = int(dtype.min), int(dtype.max)
    highs = [shapes[name][axis] - 1 for name, axis in role.dynamic if name in shapes]
    highs += [] if role.high is None else [role.high]
    if highs:
        low, high = max(least, role.low), min(greatest, *highs)
        return (low, high) if low <= high else (0, 0)
    if role.kind == "position":
        return 0, greatest
    return (least, greatest) if dtype.bitwidth <= 8 else (0, 1)


def _lengths(random: np.random.Generator, shape: tuple[int, ...], longest: int, how: Draw) -> np.ndarray:
    """Lengths in the upper half of the time axis; the first is all of it, so that none is wasted."""
    if how.level == "small":
        return np.full(shape, longest)
    lengths = np.asarray(random.integers((longest + 1) // 2, longest, shape, endpoint=True))
    if lengths.size:
        lengths.reshape(-1)[0] = longest
    return lengths


def _time_steps(spec: InputSpec, specs: Sequence[InputSpec], shapes: Shapes) -> int:
    """The size of the time axis of the input that a length belongs to, the one with the nearest name.

    Time is its first free axis after the batch, or axis 1 where none is free.
    """
    others = [other for other in specs if other.name != spec.name and len(other.dims) > 1]
    if not others:
        return 1
    nearest = max(others, key=lambda other: (_common_prefix(other.name, spec.name), len(other.dims)))
    free = [axis for axis, dim in enumerate(nearest.dims) if axis and isinstance(dim, str)]
    return shapes[nearest.name][free[0] if free else 1]


def _common_prefix(first: str, second: str) -> int:
    same = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(same, min(len(first), len(second)))
