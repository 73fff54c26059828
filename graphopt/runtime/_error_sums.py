"""The sums over two arrays that :mod:`graphopt.runtime.compare` judges by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Evidence", "Sums", "decibels", "ratio", "upper_hull"]


@dataclass(frozen=True)
class Evidence:
    """What a judgement at any tolerance, and pooling over samples, need to know of one pair of arrays.

    Attributes:
        hull: Corners (|a|, |a - b|) of the upper hull of all float elements' errors: a tolerance that is
            linear in |a| holds for every element when it holds for these.
        rms: Root mean square of the finite elements of the reference.
        scale: What the energies were divided by, squared, so that they cannot overflow.
        signal: Sum of a² in units of scale².
        noise: Sum of (a - b)² in units of scale².
        broken: Something differs that no tolerance covers.
    """

    hull: tuple[tuple[float, float], ...] = ()
    rms: float = 0.0
    scale: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    broken: bool = False

    def excess(self, rtol: float, atol: float) -> float:
        """The factor by which the tolerance must grow to cover every element."""
        if self.broken:
            return math.inf
        allowed = atol * max(1.0, self.rms)
        return max((ratio(error, allowed + rtol * size) for size, error in self.hull), default=0.0)


class Sums:
    """What accumulates over the pieces of one output."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.max_abs = self.max_reference = 0.0
        self.signal = self.noise = self.energy = self.product = 0.0
        self.finite = self.not_finite = 0
        self.hull = np.empty((0, 2))
        self.unequal = False

    def add(self, reference: np.ndarray, result: np.ndarray, exact: bool) -> None:
        """Take in a piece; the elements of an ``exact`` one must be equal."""
        if np.array_equal(reference, result):
            self._add_equal(reference.astype(np.float64))
            return
        a, b = reference.astype(np.float64), result.astype(np.float64)
        if exact:
            self.unequal = True
        else:
            a, b = self._finite(a, b)
        error, size = np.abs(a - b), np.abs(a)
        self.max_abs = max(self.max_abs, float(error.max(initial=0.0)))
        self.max_reference = max(self.max_reference, float(size.max(initial=0.0)))
        if not exact:
            unequal = error > 0
            self.hull = upper_hull(np.concatenate((self.hull, np.column_stack((size, error))[unequal])))
        self._add_energies(self._scaled(a), self._scaled(b), self._scaled(error))

    def _add_equal(self, a: np.ndarray) -> None:
        """What :meth:`add` does where both are the same, without NaN: the usual case of an exact pass."""
        finite = np.isfinite(a)
        a = a if finite.all() else a[finite]
        self.max_reference = max(self.max_reference, float(np.abs(a).max(initial=0.0)))
        a = self._scaled(a)
        self.finite += a.size
        energy = _dot(a, a)
        self.signal += energy
        self.energy += energy
        self.product += energy

    def _scaled(self, array: np.ndarray) -> np.ndarray:
        return array if self.scale == 1.0 else array / self.scale

    def _finite(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        finite = np.isfinite(a) & np.isfinite(b)
        if finite.all():
            return a, b
        first, second = a[~finite], b[~finite]
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        self.not_finite += int((~same).sum())
        return a[finite], b[finite]

    def _add_energies(self, a: np.ndarray, b: np.ndarray, error: np.ndarray) -> None:
        self.finite += a.size
        self.signal += _dot(a, a)
        self.energy += _dot(b, b)
        self.noise += _dot(error, error)
        self.product += _dot(a, b)

    def cosine(self) -> float:
        """Cosine similarity; 1 where both are equal, 0 where only one is all zero."""
        if self.noise == 0.0:
            return 1.0
        if self.signal == 0.0 or self.energy == 0.0:
            return 0.0
        return max(-1.0, min(1.0, self.product / (math.sqrt(self.signal) * math.sqrt(self.energy))))

    def evidence(self) -> Evidence:
        """The part that later judgements need."""
        corners = tuple((float(size), float(error)) for size, error in self.hull)
        rms = self.scale * math.sqrt(self.signal / self.finite) if self.finite else 0.0
        return Evidence(corners, rms, self.scale, self.signal, self.noise, self.unequal)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of products, in this thread: BLAS would start its own and keep them spinning."""
    return float(np.einsum("i,i->", a, b))


def upper_hull(points: np.ndarray) -> np.ndarray:
    """The points (x, y), shape (n, 2), that bound all others under every line of non-negative slope.

    Quickhull: from the leftmost to the highest point, the farthest point above a chord is a corner.
    """
    if len(points) < 2:
        return points
    nearest = points[points[:, 0] == points[:, 0].min()]
    left = nearest[nearest[:, 1].argmax()]
    highest = points[points[:, 1] == points[:, 1].max()]
    right = highest[highest[:, 0].argmin()]
    corners, chords = [left], [(left, right, points[points[:, 0] < right[0]])]
    while chords:
        start, end, inside = chords.pop()
        (run, rise), offset = end - start, inside - start
        height = run * offset[:, 1] - rise * offset[:, 0]
        inside, height = inside[height > 0], height[height > 0]
        if len(inside):
            corner = inside[height.argmax()]
            chords += [(corner, end, inside), (start, corner, inside)]
        else:
            corners.append(end)
    return np.array(sorted({(float(x), float(y)) for x, y in corners}))


def ratio(part: float, whole: float) -> float:
    """``part / whole``; 0 for no part, infinite for a part of nothing."""
    if part == 0.0:
        return 0.0
    return part / whole if whole else math.inf


def decibels(signal: float, noise: float) -> float:
    """The ratio of two energies in dB; infinite without noise."""
    if noise == 0.0:
        return math.inf
    quotient = signal / noise
    return 10.0 * math.log10(quotient) if quotient > 0.0 else -math.inf
