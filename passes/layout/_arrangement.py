"""What a chain of Reshape and Transpose does to the numbers, and the fewest nodes that do the same.

The axes of a tensor are cut into *atoms*, the finest pieces that any step of the chain moves on their own::

    x                    [N, 4, 6]           axes  (N) (a b) (c)     with a b = 4, c = 6
    Reshape [N, 2, 2, 6]                           (N) (a) (b) (c)
    Transpose 0 2 1 3                              (N) (b) (a) (c)
    Reshape [N, 4, 6]                              (N) (b a) (c)

A Reshape only regroups atoms, a Transpose only reorders groups. So the whole chain is told by two groupings
of the atoms: that of its input and that of its output. Sizes are products of a number and of symbols; a
symbol is any other expression, equal to another only where the text is. Axes of size 1 have no atoms.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dims

__all__ = [
    "Arrangement",
    "Gather",
    "Reshape",
    "Size",
    "Step",
    "Transpose",
    "dims_of",
    "sizes_of",
    "target_of",
]

_FACTOR: Final = re.compile(r"[A-Za-z_][\w.]*|\d+")
#: An index of more entries would inflate the model.
_MAX_INDEX: Final = 1024


@dataclass(frozen=True)
class Size:
    """A number times symbols, these sorted."""

    number: int
    symbols: tuple[str, ...] = ()

    def divide(self, other: Size) -> Size | None:
        """The exact quotient; None where there is none for all sizes."""
        left, right = Counter(self.symbols), Counter(other.symbols)
        if self.number % other.number or right - left:
            return None
        return Size(self.number // other.number, tuple(sorted((left - right).elements())))

    def times(self, other: Size) -> Size:
        """The product."""
        return Size(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))


ONE: Final = Size(1)


def sizes_of(dims: Dims | None) -> list[Size] | None:
    """The axes of a shape as sizes; None where one is empty or unknown."""
    if dims is None:
        return None
    sizes = [_parse(dim) for dim in dims]
    return None if None in sizes else [size for size in sizes if size is not None]


def _parse(dim: int | ir.SymbolicDim) -> Size | None:
    if isinstance(dim, int):
        return Size(dim) if dim > 0 else None
    return _parse_product(dim.value) if dim.value else None


@functools.lru_cache(maxsize=4096)
def _parse_product(text: str) -> Size | None:
    factors = [factor.strip() for factor in text.split("*")]
    if not all(_FACTOR.fullmatch(factor) for factor in factors):
        return Size(1, (text,))
    number = math.prod(int(factor) for factor in factors if factor.isdigit())
    return Size(number, tuple(sorted(f for f in factors if not f.isdigit()))) if number else None


def dims_of(sizes: Sequence[Size]) -> ir.Shape:
    """The sizes as a shape."""
    return ir.Shape([_dim(size) for size in sizes])


def _dim(size: Size) -> int | str:
    if not size.symbols:
        return size.number
    number = [str(size.number)] if size.number != 1 else []
    return "*".join([*number, *size.symbols])


def target_of(sizes: Sequence[Size], before: Sequence[Size]) -> list[int] | None:
    """The constant target of a Reshape from ``before`` to ``sizes``; None where two axes would stay open."""
    target = [-1 if size.symbols else size.number for size in sizes]
    for axis, (new, old) in enumerate(zip(sizes, before, strict=False)):
        if target.count(-1) > 1 and target[axis] == -1 and new == old:
            target[axis] = 0
    return target if target.count(-1) <= 1 else None


@dataclass(frozen=True)
class Reshape:
    """To these sizes."""

    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Transpose:
    """By this permutation."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Gather:
    """These entries of one axis."""

    axis: int
    indices: np.ndarray[tuple[int], np.dtype[np.int32]]


Step = Reshape | Transpose | Gather
Axes = list[list[int]]


class Arrangement:
    """The atoms of a tensor, grouped to the axes of the chain's input and to those of its present end."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        self._sizes: dict[int, Size] = dict(enumerate(sizes))
        self.start: Axes = [[] if size == ONE else [axis] for axis, size in enumerate(sizes)]
        self.end: Axes = [list(axis) for axis in self.start]

    def transpose(self, order: Sequence[int]) -> bool:
        """Reorder the axes; whether the order fits."""
        if sorted(order) != list(range(len(self.end))):
            return False
        self.end = [self.end[axis] for axis in order]
        return True

    def reshape(self, sizes: Sequence[Size]) -> bool:
        """Regroup the atoms, cut where need be; False where no cut fits for all sizes."""
        rest = deque(atom for axis in self.end for atom in axis)
        groups = []
        for size in sizes:
            group = self._take(size, rest)
            if group is None:
                return False
            groups.append(group)
        self.end = groups
        return not rest

    def _take(self, size: Size, rest: deque[int]) -> list[int] | None:
        """The next atoms that are ``size`` together; the last of them may be cut."""
        group = []
        while size != ONE:
            if not rest:
                return None
            remaining = size.divide(self._sizes[rest[0]])
            if remaining is None:
                tail = self._sizes[rest[0]].divide(size)
                if tail is None:
                    return None
                rest.insert(1, self._cut(rest[0], size, tail))
                remaining = ONE
            group.append(rest.popleft())
            size = remaining
        return group

    def _cut(self, atom: int, head: Size, tail: Size) -> int:
        """Cut an atom in two; the name of the second one."""
        new = len(self._sizes)
        self._sizes[atom], self._sizes[new] = head, tail
        for axes in (self.start, self.end):
            for axis in axes:
                if atom in axis:
                    axis.insert(axis.index(atom) + 1, new)
        return new

    # The plan.

    def steps(self) -> list[Step]:
        """The fewest steps from the start to the end."""
        final = Reshape(self._all_sizes(self.end))
        if _flat(self.start) == _flat(self.end):
            return [] if self._all_sizes(self.start) == final.sizes else [final]
        gather = self._gather()
        if gather is not None:
            return [gather]
        return self._transposed(final)

    def _transposed(self, final: Reshape) -> list[Step]:
        """A Transpose, and a Reshape before or behind it only where it must be."""
        run = self._runs()
        if _within(self.start, run):
            between = self._in_order(self.start, self.end)
            aligned = self._aligned(between)
            if aligned is not None:
                return [Transpose(aligned)]
            order = tuple(self.start.index(axis) for axis in between) + _empty(self.start)
            return [Transpose(order), final]
        if _within(self.end, run):
            before = [*self._in_order(self.end, self.start), *([] for _ in _empty(self.end))]
            order = _order(before, self.end)
            return [Reshape(self._all_sizes(before)), Transpose(order)]
        units: dict[int, list[int]] = {}
        for atom in _flat(self.start):
            units.setdefault(run[atom], []).append(atom)
        before = list(units.values())
        after = self._in_order(before, self.end)
        return [Reshape(self._all_sizes(before)), Transpose(_order(before, after)), final]

    def _gather(self) -> Gather | None:
        """One Gather, where a single axis of fixed size is reordered inside."""
        changed = [
            axis for axis, pair in enumerate(zip(self.start, self.end, strict=False)) if pair[0] != pair[1]
        ]
        if len(self.start) != len(self.end) or len(changed) != 1:
            return None
        before, after = self.start[changed[0]], self.end[changed[0]]
        sizes = [self._sizes[atom] for atom in before]
        total = math.prod(size.number for size in sizes)
        if any(size.symbols for size in sizes) or sorted(before) != sorted(after) or total > _MAX_INDEX:
            return None
        grid = np.arange(total, dtype=np.int32).reshape([size.number for size in sizes])
        return Gather(changed[0], grid.transpose([before.index(atom) for atom in after]).reshape(-1))

    def _runs(self) -> dict[int, int]:
        """For each atom the first of its run: of those that stay neighbours from the start to the end."""
        behind = dict(zip(_flat(self.end), _flat(self.end)[1:], strict=False))
        first: dict[int, int] = {}
        previous = None
        for atom in _flat(self.start):
            joined = previous is not None and behind.get(previous) == atom
            first[atom] = first[previous] if joined and previous is not None else atom
            previous = atom
        return first

    @staticmethod
    def _in_order(groups: Axes, like: Axes) -> Axes:
        """The groups that hold atoms, in the order in which ``like`` has their first ones."""
        place = {atom: index for index, atom in enumerate(_flat(like))}
        return sorted((group for group in groups if group), key=lambda group: place[group[0]])

    def _aligned(self, between: Axes) -> tuple[int, ...] | None:
        """The order of a Transpose that is enough alone, axes of size 1 included; None where none is."""
        if between != [axis for axis in self.end if axis] or len(self.start) != len(self.end):
            return None
        return _order(self.start, self.end)

    def _all_sizes(self, axes: Axes) -> tuple[Size, ...]:
        return tuple(self._size(axis) for axis in axes)

    def _size(self, axis: Sequence[int]) -> Size:
        size = ONE
        for atom in axis:
            size = size.times(self._sizes[atom])
        return size


def _flat(axes: Axes) -> list[int]:
    return [atom for axis in axes for atom in axis]


def _empty(axes: Axes) -> tuple[int, ...]:
    return tuple(index for index, axis in enumerate(axes) if not axis)


def _within(axes: Axes, run: dict[int, int]) -> bool:
    """Whether no axis holds atoms of two runs."""
    return all(len({run[atom] for atom in axis}) <= 1 for axis in axes)


def _order(before: Axes, after: Axes) -> tuple[int, ...]:
    """The permutation from one grouping to the other; both have the same groups, as many empty ones."""
    empty = deque(_empty(before))
    return tuple(before.index(axis) if axis else empty.popleft() for axis in after)
