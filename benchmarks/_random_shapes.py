"""Shapes of the random graphs: products, broadcasting, axes."""

from __future__ import annotations

import math

import numpy as np
from _random_graphs import Dim, Grower, Shape

__all__ = ["axes_form", "broadcast", "product_of", "sizes_of", "some_axes"]


def sizes_of(shape: Shape) -> list[int] | None:
    """The sizes where no axis is open."""
    return None if any(p for _, p in shape) else [k for k, _ in shape]


def product_of(shape: Shape) -> Dim:
    return math.prod(k for k, _ in shape), sum(p for _, p in shape)


def broadcast(a: Shape, b: Shape) -> Shape | None:
    rank = max(len(a), len(b))
    one = ((1, 0),)
    pairs = zip(one * (rank - len(a)) + a, one * (rank - len(b)) + b, strict=True)
    dims = []
    for x, y in pairs:
        if x != y and (1, 0) not in (x, y):
            return None
        dims.append(y if x == (1, 0) else x)
    return tuple(dims)


def axes_form(g: Grower, axes: list[int], since: int) -> tuple[list[str], dict[str, list[int]]]:
    """Axes as an input or, before opset ``since``, as an attribute."""
    if g.opset >= since:
        return [g.const(axes, np.int64)], {}
    return [], {"axes": axes}


def some_axes(g: Grower, rank: int) -> list[int]:
    count = g.number(1, rank)
    axes = sorted(int(a) for a in g.rng.choice(rank, count, replace=False))
    return [a - rank for a in axes] if g.flip(0.4) else axes
