"""Where the sizes of axes can be read, and how to put a vector of sizes together from there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from graphopt.analyses.dims import Dims, same
from graphopt.analyses.shapes import Inferred, Shapes
from graphopt.graph import is_default_domain

__all__ = ["Plan", "Sources", "VectorKey", "key_of"]

#: Two values of shape arithmetic with one key are equal at all sizes of the axes.
VectorKey = tuple[ir.DataType, tuple[int, ...], tuple[int | str, ...]]

#: For each axis, by name: a tensor or vector, its sizes, and the place in these.
Places = dict[str, list[tuple[ir.Value, Dims, int]]]

#: Places remembered for each axis; the first ones lie closest to the graph inputs.
_PLACES: Final = 8
#: Since then Shape takes the first and last axis that are wanted.
_PARTIAL_SHAPE_OPSET: Final = 15


def key_of(known: Inferred) -> VectorKey | None:
    """The key of a value whose elements are all known, at least one of them by a symbol."""
    elements = known.elements
    if elements is None:  # most values: not one of shape arithmetic
        return None
    dims = known.static
    if dims is None or known.dtype is None or math.prod(dims) != len(elements):
        return None
    texts = tuple([e if isinstance(e, int) else e.value for e in elements])
    if None in texts or all(isinstance(t, int) for t in texts):
        return None
    return known.dtype, dims, tuple(t for t in texts if t is not None)


@dataclass(frozen=True)
class _Piece:
    """A run of sizes inside a vector that exists, or inside the shape of a tensor.

    ``value`` is None where the run is made of numbers alone.
    """

    elements: Dims
    value: ir.Value | None = None
    of_shape: bool = False
    start: int = 0
    whole: bool = False

    @property
    def cost(self) -> int:
        return 0 if self.value is None or (self.whole and not self.of_shape) else 1


@dataclass
class Plan:
    """How to compute a vector, or a scalar, of sizes.

    Attributes:
        made: The values that :meth:`build` made, with what is known of them.
    """

    pieces: list[_Piece]
    scalar: bool
    made: list[tuple[ir.Value, Inferred]] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """How many nodes it adds."""
        return sum(p.cost for p in set(self.pieces)) + (len(self.pieces) > 1)

    @property
    def reads(self) -> list[ir.Value]:
        """The values that it needs."""
        return [p.value for p in self.pieces if p.value is not None]

    def build(
        self,
        like: ir.Node,
        constant: Callable[[tuple[int, ...] | int], ir.Value],
        fresh: Callable[[str], str],
    ) -> ir.Value:
        """Insert the nodes before ``like``, whose name and metadata the last one takes over."""
        builder = _Builder(self, like, constant, fresh)
        parts = {p: builder.part(p) for p in dict.fromkeys(self.pieces)}
        value = parts[self.pieces[0]]
        if len(self.pieces) > 1:
            elements = tuple(itertools.chain.from_iterable(p.elements for p in self.pieces))
            value = builder.add("Concat", [parts[p] for p in self.pieces], elements, axis=0)
        made_by = value.producer()
        if self.made and made_by is not None:
            made_by.name, like.name = like.name, None  # no two nodes may have one name
        return value


@dataclass
class _Builder:
    plan: Plan
    like: ir.Node
    constant: Callable[[tuple[int, ...] | int], ir.Value]
    fresh: Callable[[str], str]

    def part(self, piece: _Piece) -> ir.Value:
        """The value of one piece."""
        if piece.value is None:
            return self.constant(tuple(e for e in piece.elements if isinstance(e, int)))
        if piece.of_shape:
            end = piece.start + len(piece.elements)
            limits = {} if piece.whole else {"start": piece.start, "end": end}
            return self.add("Shape", [piece.value], piece.elements, **limits)
        if piece.whole:
            return piece.value
        places = range(piece.start, piece.start + len(piece.elements))
        index = self.constant(piece.start if self.plan.scalar else tuple(places))
        return self.add("Gather", [piece.value, index], piece.elements, axis=0)

    def add(self, op_type: str, inputs: list[ir.Value], elements: Dims, **attributes: int) -> ir.Value:
        """A node before ``like``."""
        dims = () if self.plan.scalar else (len(elements),)
        value = ir.Value(
            name=self.fresh(str(self.like.outputs[0].name)),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape(dims),
        )
        node = ir.Node(
            "",
            op_type,
            inputs,
            [ir.AttrInt64(name, number) for name, number in attributes.items()],
            outputs=[value],
            metadata_props=dict(self.like.metadata_props),
        )
        assert self.like.graph is not None
        self.like.graph.insert_before(self.like, node)
        self.plan.made.append((value, Inferred(ir.DataType.INT64, ir.Shape(dims), elements)))
        return value


class Sources:
    """What lies before the current node and holds sizes: vectors, and tensors with these axes."""

    def __init__(self, known: Shapes, opset: int) -> None:
        self._known = known
        self._partial = opset >= _PARTIAL_SHAPE_OPSET
        self._vectors: Places = {}
        self._tensors: Places = {}

    def add(self, value: ir.Value) -> None:
        """Remember the axes of a tensor."""
        dims = self._known[value].dims
        if dims is not None and isinstance(value.type, ir.TensorType):
            _remember(self._tensors, value, dims)

    def pass_by(self, node: ir.Node) -> None:
        """Remember what a node that stays in the graph offers to those behind it."""
        if node.graph is None:
            return
        if node.op_type == "Shape" and is_default_domain(node) and node.inputs[0] is not None:
            self.add(node.inputs[0])
        for output in node.outputs:
            self.remember(output)

    def remember(self, value: ir.Value) -> None:
        """Remember a vector of sizes."""
        known = self._known[value]
        key = key_of(known)
        if (
            key is not None
            and key[0] == ir.DataType.INT64
            and len(key[1]) == 1
            and known.elements is not None
        ):
            _remember(self._vectors, value, known.elements)

    def plans(self, known: Inferred) -> list[Plan]:
        """The shortest ways that a greedy search finds: with the vectors that exist, and without them."""
        if known.dtype != ir.DataType.INT64 or known.static is None or len(known.static) > 1:
            return []
        elements = known.elements or ()
        if known.static == ():
            found = [self._scalar_plan(elements)]
        else:
            found = [self._plan(elements, self._runs), self._plan(elements, self._shape_runs)]
        return [plan for plan in found if plan is not None]

    def _plan(self, elements: Dims, runs: Callable[[Dims], Iterator[_Piece]]) -> Plan | None:
        pieces: list[_Piece] = []
        while elements:
            piece = _numbers(elements) or max(
                runs(elements), key=lambda p: (len(p.elements), -p.cost), default=None
            )
            if piece is None:
                return None
            pieces.append(piece)
            elements = elements[len(piece.elements) :]
        return Plan(pieces, scalar=False)

    def _scalar_plan(self, elements: Dims) -> Plan | None:
        """One Gather from a vector that exists."""
        places = _alive(self._vectors, elements[0])
        pieces = [_Piece(elements, value, start=start) for value, _, start in places[:1]]
        return Plan(pieces, scalar=True) if pieces else None

    def _runs(self, elements: Dims) -> Iterator[_Piece]:
        """What could stand for the first elements, of which the very first is a symbol."""
        for value, dims, start in _alive(self._vectors, elements[0]):
            length = _common(elements, dims[start:])
            yield _Piece(elements[:length], value, start=start, whole=length == len(dims))
        yield from self._shape_runs(elements)

    def _shape_runs(self, elements: Dims) -> Iterator[_Piece]:
        """What could stand for the first elements, without a vector that exists."""
        for value, dims, start in _alive(self._tensors, elements[0]):
            length = _common(elements, dims[start:])
            if self._partial or length == len(dims):
                yield _Piece(elements[:length], value, True, start, length == len(dims))


def _remember(places: Places, value: ir.Value, dims: Dims) -> None:
    for place, dim in enumerate(dims):
        if not isinstance(dim, int) and dim.value is not None:
            found = places.setdefault(dim.value, [])
            if len(found) < _PLACES:
                found.append((value, dims, place))


def _alive(places: Places, element: int | ir.SymbolicDim) -> list[tuple[ir.Value, Dims, int]]:
    """The places of an axis in values that no rewrite has removed."""
    found = places.get(str(element.value), []) if isinstance(element, ir.SymbolicDim) else []
    return [place for place in found if (node := place[0].producer()) is None or node.graph is not None]


def _common(left: Dims, right: Dims) -> int:
    """How many first elements are equal."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: same(*pair), pairs))


def _numbers(elements: Dims) -> _Piece | None:
    """The numbers that the elements begin with."""
    numbers = tuple(itertools.takewhile(lambda e: isinstance(e, int), elements))
    return _Piece(numbers) if numbers else None
