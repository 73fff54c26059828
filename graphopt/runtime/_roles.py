"""What a model does with its inputs: the rows that integers select, the lengths and masks they are.

Each input is followed forward through operators that keep or shift its values, into subgraphs and
model-local functions, to the operators that say what it means.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, is_default_domain
from graphopt.runtime._indexing import (
    MOST_ELEMENTS,
    IndexedAxis,
    indexed,
    integer_attribute,
    integers_of,
    size_of_axis,
)

__all__ = ["Role", "role_of"]

Kind = Literal["any", "index", "mask", "length", "position", "choice", "size", "threshold"]

_LENGTH_NAME = re.compile(r"(?:^|[_.])(?:seq)?len(?:s|gths?)?(?:$|[_.\d])", re.IGNORECASE)
#: Places that one input is followed to.
_MOST_STEPS = 20_000


@dataclass(frozen=True)
class Role:
    """How to draw an input.

    Attributes:
        kind: ``index`` into something, ``mask`` of zeros and ones, ``length`` of another input,
            ``position`` (counting up), ``choice`` among numbers it is compared with, ``size`` of
            something that is made, ``threshold`` that constants are compared with, or ``any``.
        low: Least integer that the model takes.
        high: Greatest integer that it takes; None where nothing bounds it.
        dynamic: Axes of other inputs (name, axis) whose sizes bound it too, as an index.
        choices: Numbers that it is compared with.
        threshold: A number with which the comparisons with constants come out true.
    """

    kind: Kind
    low: int = 0
    high: int | None = None
    dynamic: tuple[tuple[str, int], ...] = ()
    choices: tuple[int, ...] = ()
    threshold: float = 0.0


class _Shift(NamedTuple):
    """How a value follows from the input: ``scale · x + c`` with c from ``least`` to ``most``."""

    scale: int = 1
    least: int = 0
    most: int = 0


class _Place(NamedTuple):
    value: ir.Value
    shift: _Shift
    calls: tuple[ir.Node, ...]


@dataclass
class _Findings:
    low: int = 0
    high: int | None = None
    dynamic: list[tuple[str, int]] = field(default_factory=list)
    choices: set[int] = field(default_factory=set)
    threshold: float | None = None
    uses: set[Kind] = field(default_factory=set)

    def bound(self, shift: _Shift, size: int) -> None:
        """The value must be from 0 to ``size`` - 1."""
        self.uses.add("index")
        least, most = -shift.least, size - 1 - shift.most
        if least > most:
            return  # no value of the input could do: it must depend on something else as well
        bounds = least / shift.scale, most / shift.scale
        self.low = max(self.low, math.ceil(min(bounds)))
        self.high = min(math.floor(max(bounds)), sys.maxsize if self.high is None else self.high)


def role_of(model: ir.Model, value: ir.Value) -> Role:
    """The role of a graph input, from its uses and its name."""
    found = _Walk(model).follow(value)
    name, rank = str(value.name).lower(), len(value.shape or ())
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    kind = _kind_of_float(name, found, rank) if is_float else _kind(name, found, rank)
    choices = tuple(sorted(found.choices))
    return Role(kind, found.low, found.high, tuple(found.dynamic), choices, found.threshold or 0.0)


def _kind_of_float(name: str, found: _Findings, rank: int) -> Kind:
    if "mask" in name:
        return "mask"
    return "threshold" if rank == 0 and found.threshold is not None else "any"


def _kind(name: str, found: _Findings, rank: int) -> Kind:
    if "mask" in name:
        return "mask"
    if rank <= 2 and ("length" in found.uses or _LENGTH_NAME.search(name)):
        return "length"
    if "position" in name or "pos_id" in name:
        return "position"
    for use in ("index", "choice", "mask", "size"):
        if use in found.uses and (use != "choice" or rank == 0):
            return use
    return "any"


class _Walk:
    """Follows one input through a model."""

    def __init__(self, model: ir.Model) -> None:
        self._functions = model.functions
        self._found = _Findings()

    def follow(self, value: ir.Value) -> _Findings:
        """What the uses of ``value`` say."""
        places = [_Place(value, _Shift(), ())]
        seen: set[tuple[ir.Value, tuple[ir.Node, ...]]] = {(value, ())}
        while places and len(seen) < _MOST_STEPS:
            place = places.pop()
            for reached in self._from(place):
                key = (reached.value, reached.calls)
                if key not in seen:
                    seen.add(key)
                    places.append(reached)
        return self._found

    def _from(self, place: _Place) -> Iterator[_Place]:
        for node, index in place.value.uses():
            function = self._functions.get(node.op_identifier())
            if function is not None:
                if index < len(function.inputs) and len(place.calls) < 16:
                    yield _Place(function.inputs[index], place.shift, (*place.calls, node))
            else:
                yield from self._through(node, index, place)
        if place.calls:
            yield from self._out_of_function(place)

    def _out_of_function(self, place: _Place) -> Iterator[_Place]:
        call = place.calls[-1]
        outputs = self._functions[call.op_identifier()].outputs
        for inner, outer in zip(outputs, call.outputs, strict=False):
            if inner is place.value:
                yield _Place(outer, place.shift, place.calls[:-1])

    def _through(self, node: ir.Node, index: int, place: _Place) -> Iterator[_Place]:
        """Note what the node says of its input; yield where the values go on."""
        use = _meaning(node, index)
        if use is not None:
            self._found.uses.add(use)
        for target in indexed(node, index):
            size = target if isinstance(target, int) else self._size(target, place.calls)
            if isinstance(size, int):
                self._found.bound(place.shift, size)
            elif size is not None:
                self._found.uses.add("index")
                self._found.dynamic.append(size)
        if use == "choice":
            self._note_choices(node, index, place.shift)
        elif use == "mask" and node.op_type in _LARGER_INPUT and place.shift == _Shift():
            self._note_threshold(node, index)
        shift = _shifted(node, index, place.shift)
        if shift is not None:
            yield from (_Place(output, shift, place.calls) for output in node.outputs)
        yield from (_Place(value, place.shift, place.calls) for value in _body_inputs(node, index))

    def _size(self, target: IndexedAxis, calls: tuple[ir.Node, ...]) -> int | tuple[str, int] | None:
        """The size of an axis; a function's parameter is looked up where the function is called."""
        value = target.value
        for call in reversed(calls):
            parameters = list(self._functions[call.op_identifier()].inputs)
            if value not in parameters or parameters.index(value) >= len(call.inputs):
                break
            value = call.inputs[parameters.index(value)]
        return size_of_axis(value, target.axis)

    def _note_choices(self, node: ir.Node, index: int, shift: _Shift) -> None:
        array = integers_of(node.inputs[1 - index])
        if array is not None and array.size == 1 and shift == _Shift():
            self._found.choices.add(int(array.reshape(-1)[0]))

    def _note_threshold(self, node: ir.Node, index: int) -> None:
        constant = constant_of(node.inputs[1 - index])
        if constant is None or not 0 < constant.size <= MOST_ELEMENTS or constant.dtype == ir.DataType.STRING:
            return
        array = constant.numpy().astype(np.float64)
        least, most = float(array.min()), float(array.max())
        margin = (most - least) / 16 or 1.0
        above = index == _LARGER_INPUT[node.op_type]
        self._found.threshold = most + margin if above else least - margin


#: Operators whose outputs hold the values of these inputs; None means all of them.
_KEEPS: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "CastLike": (0,),
    "Identity": (0,),
    "Unsqueeze": (0,),
    "Squeeze": (0,),
    "Reshape": (0,),
    "Flatten": (0,),
    "Transpose": (0,),
    "Expand": (0,),
    "Tile": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Pad": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "ReduceMax": (0,),
    "ReduceMin": (0,),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Concat": None,
}


def _shifted(node: ir.Node, index: int, shift: _Shift) -> _Shift | None:
    """How the node's outputs follow from the input; None where they do not, or nobody knows."""
    if not is_default_domain(node):
        return None
    if node.op_type in _KEEPS:
        kept = _KEEPS[node.op_type]
        return shift if kept is None or index in kept else None
    if node.op_type not in ("Add", "Sub", "Mul") or len(node.inputs) != 2:
        return None
    other = integers_of(node.inputs[1 - index])
    if other is None:
        return None
    least, most = int(other.min()), int(other.max())
    if node.op_type == "Mul":
        same = least == most > 0
        return _Shift(shift.scale * most, shift.least * most, shift.most * most) if same else None
    if node.op_type == "Add":
        return _Shift(shift.scale, shift.least + least, shift.most + most)
    if index == 0:
        return _Shift(shift.scale, shift.least - most, shift.most - least)
    return _Shift(-shift.scale, least - shift.most, most - shift.least)


#: Which input of a comparison is the larger one where it is true.
_LARGER_INPUT = {"Greater": 0, "GreaterOrEqual": 0, "Less": 1, "LessOrEqual": 1}
_COMPARISONS = frozenset({*_LARGER_INPUT, "Not", "And", "Or"})
_SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "TopK": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Loop": (0,),
}


def _meaning(node: ir.Node, index: int) -> Kind | None:
    """What the node's use of this input says about it."""
    if not is_default_domain(node):
        return None
    if node.op_type in ("LSTM", "GRU", "RNN") and index == 4:
        return "length"
    if node.op_type == "ReverseSequence" and index == 1:
        return "length"
    if index in _SHAPE_INPUTS.get(node.op_type, ()):
        return "size"
    if node.op_type == "Equal":
        return "choice"
    casts_to_bool = node.op_type == "Cast" and integer_attribute(node, "to") == ir.DataType.BOOL
    if casts_to_bool or node.op_type in _COMPARISONS or (node.op_type == "Where" and index == 0):
        return "mask"
    return None


def _body_inputs(node: ir.Node, index: int) -> list[ir.Value]:
    """What an explicit input of a Loop or Scan is called in its body; captured values keep their name."""
    body = node.attributes.get("body")
    if node.op_type not in ("Loop", "Scan") or body is None or body.is_ref():
        return []
    inputs = body.as_graph().inputs
    return [inputs[index]] if (node.op_type == "Scan" or index >= 2) and index < len(inputs) else []
