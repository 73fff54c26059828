"""The inputs of a model and their axes: which sizes are free, which belong together, what to try."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from graphopt.errors import InputError, UnsupportedError
from graphopt.graph import all_nodes, constant_of

__all__ = ["Axis", "InputSpec", "axes_of", "baked_sizes", "candidates", "elements", "neighbours", "specs_of"]

Kind = Literal["batch", "sequence", "image", "audio", "other"]
Pinned = Mapping[str, Sequence[int | str]]

_BATCH_NAME = re.compile(r"batch|^bs$|^b$", re.IGNORECASE)
_SEQUENCE_NAME = re.compile(r"seq|len|token|ctx|context|past|step|position|time|frame|sample", re.IGNORECASE)
_AUDIO_INPUT = re.compile(r"audio|wave|pcm|samples|signal|speech", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"height|width|image|^[hw]$|_[hw]$", re.IGNORECASE)

#: Sizes to try for an axis, most likely first.
_CANDIDATES: dict[Kind, tuple[int, ...]] = {
    "sequence": (8, 16, 32, 64, 128, 4, 1, 2, 256, 512, 1024),
    "image": (64, 224, 320, 256, 32, 128, 48, 96, 384, 512, 640, 1024, 16),
    "audio": (4096, 16000, 1024, 512, 256, 8000, 32000, 48000, 128, 16),
    "other": (16, 8, 32, 64, 128, 224, 256, 320, 512, 1024, 16000, 4, 1, 2),
}
#: Sizes for axes that turn out not to be equal to each other.
_MIXED: tuple[int, ...] = (16, 32, 1, 64)
_LONGEST_EXPRESSION = 200
#: Constants that may be shapes have few elements; sizes above the largest are no axis of a sample.
_SHAPE_ELEMENTS = 8
_LARGEST_BAKED = 65536
_MOST_BAKED = 48
_SHORT, _LONG = 16, 1024


@dataclass(frozen=True)
class InputSpec:
    """A graph input that a caller must give.

    Attributes:
        name: Its name.
        dtype: Its element type.
        dims: Its axes: sizes, or labels. Equal labels mean equal sizes; an axis without a name is labelled
            ``input[axis]``; a label may be arithmetic on others (``past + seq``).
    """

    name: str
    dtype: ir.DataType
    dims: tuple[int | str, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape under sizes of all labels. Negative results mean that the sizes cannot be."""
        return tuple(dim if isinstance(dim, int) else size_of(dim, sizes) for dim in self.dims)

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Axis:
    """A free size.

    Attributes:
        label: Its label in the specs' dims.
        kind: What it seems to be, from its name, place and input.
    """

    label: str
    kind: Kind


def specs_of(model: ir.Model, pinned: Pinned) -> list[InputSpec]:
    """The inputs that a caller must give, with ``pinned`` sizes and names in place.

    A size or name pinned to a named axis holds for every input with that axis.

    Raises:
        InputError: ``pinned`` does not fit the model.
        UnsupportedError: An input is no numeric tensor of known rank.
    """
    values = {str(v.name): v for v in model.graph.inputs if v.name not in model.graph.initializers}
    for name in pinned:
        if name not in values:
            raise InputError(f"model.inputs names '{name}', but the model's inputs are: {', '.join(values)}")
    renamed: dict[str, int | str] = {}
    declared = {name: _declared(value, pinned.get(name)) for name, value in values.items()}
    for name, dims in declared.items():
        for dim, wanted in zip(dims, pinned.get(name, ()), strict=False):
            if isinstance(dim, str):
                renamed.setdefault(dim, wanted)
    return [
        InputSpec(name, _dtype(values[name]), _pinned(name, dims, pinned.get(name), renamed))
        for name, dims in declared.items()
    ]


def _dtype(value: ir.Value) -> ir.DataType:
    advice = "give data.calibration"
    if not isinstance(value.type, ir.TensorType):
        raise UnsupportedError(f"cannot draw input '{value.name}': it is no dense tensor; {advice}")
    if value.type.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise UnsupportedError(f"cannot draw input '{value.name}' of type {value.type.dtype}; {advice}")
    return value.type.dtype


def _declared(value: ir.Value, pinned: Sequence[int | str] | None) -> tuple[int | str, ...]:
    if value.shape is None:
        if pinned is None:
            raise UnsupportedError(
                f"cannot draw input '{value.name}': its rank is unknown; pin its axes under model.inputs"
            )
        return tuple(f"{value.name}[{axis}]" for axis in range(len(pinned)))
    return tuple(_label(value, axis) for axis in range(len(value.shape)))


def _label(value: ir.Value, axis: int) -> int | str:
    assert value.shape is not None
    dim = value.shape[axis]
    if isinstance(dim, int):
        return dim if dim >= 0 else f"{value.name}[{axis}]"  # some exporters write -1 for "any"
    return dim.value or f"{value.name}[{axis}]"


def _pinned(
    name: str,
    dims: tuple[int | str, ...],
    pinned: Sequence[int | str] | None,
    renamed: Mapping[str, int | str],
) -> tuple[int | str, ...]:
    if pinned is None:
        return tuple(renamed.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)
    if len(pinned) != len(dims):
        raise InputError(f"model.inputs gives '{name}' {len(pinned)} axes; the model's input has {len(dims)}")
    for axis, (dim, wanted) in enumerate(zip(dims, pinned, strict=True)):
        what = f"model.inputs pins axis {axis} of '{name}' to {wanted}"
        if isinstance(wanted, int) and isinstance(dim, int) and wanted != dim:
            raise InputError(f"{what}; the model fixes it to {dim}")
        if isinstance(wanted, int) and wanted < 0:
            raise InputError(f"{what}, which is no size")
    return tuple(dim if isinstance(dim, int) else wanted for dim, wanted in zip(dims, pinned, strict=True))


def axes_of(specs: Sequence[InputSpec]) -> list[Axis]:
    """The free sizes of the inputs, in order of first appearance; arithmetic on others is not free."""
    uses: dict[str, list[tuple[InputSpec, int]]] = {}
    for spec in specs:
        for index, dim in enumerate(spec.dims):
            if isinstance(dim, str):
                for symbol in _symbols(dim):
                    uses.setdefault(symbol, []).append((spec, index))
    return [Axis(label, _kind(label, places)) for label, places in uses.items()]


def _kind(label: str, places: list[tuple[InputSpec, int]]) -> Kind:
    if _BATCH_NAME.search(label):
        return "batch"
    if _SEQUENCE_NAME.search(label):
        return _kind_of_series(places)
    if _IMAGE_NAME.search(label):
        return "image"
    first = all(index == 0 for _, index in places)
    if first and any(len(spec.dims) > 1 and not _names_a_batch(spec.dims[1:]) for spec, _ in places):
        return "batch"
    return "image" if all(len(spec.dims) == 4 for spec, _ in places) else _kind_of_series(places)


def _kind_of_series(places: list[tuple[InputSpec, int]]) -> Kind:
    if any(len(spec.dims) <= 2 and _AUDIO_INPUT.search(spec.name) for spec, _ in places):
        return "audio"
    return "sequence" if any(spec.dtype.is_integer() for spec, _ in places) else "other"


def _names_a_batch(dims: Sequence[int | str]) -> bool:
    return any(isinstance(dim, str) and _BATCH_NAME.search(dim) for dim in dims)


def candidates(axes: Sequence[Axis], *, mixed: bool) -> Iterator[dict[str, int]]:
    """Sizes to try for the axes, all of them together.

    First every axis of a kind has the same size, since exporters often give equal axes different names;
    then, if ``mixed``, the axes differ, where they are few.
    """
    lists = [_CANDIDATES[axis.kind] for axis in axes]
    for index in range(max((len(sizes) for sizes in lists), default=1)):
        yield {a.label: sizes[min(index, len(sizes) - 1)] for a, sizes in zip(axes, lists, strict=True)}
    if mixed and 2 <= len(axes) <= 4:
        for index in range(len(_MIXED) ** len(axes)):
            digits = [index // len(_MIXED) ** place % len(_MIXED) for place in range(len(axes))]
            if len(set(digits)) > 1 and index < 64:
                yield {a.label: _MIXED[d] for a, d in zip(axes, digits, strict=True)}


def neighbours(size: int) -> list[int]:
    """Other sizes near one that works, most likely to work first; long series move by frames.

    A short series takes any size, as a rule: it first gets one that has no factor in common with its own.
    """
    near = dict.fromkeys((size + 32, size * 2, size + 1, size + size // 2, size // 2))
    if size <= _SHORT:
        near = dict.fromkeys((3 * size + 1, *near))
    if size >= _LONG:
        near = dict.fromkeys((size + size // 2, *near))
    return [other for other in near if other not in (0, size)]


def baked_sizes(model: ir.Model) -> list[int]:
    """Sizes that the model's shape constants mention, the most frequent first.

    A size that was baked in while its axis was declared free stands in the target of some Reshape.
    """
    counts: Counter[int] = Counter()
    for node in all_nodes(model):
        for value in node.inputs:
            tensor = constant_of(value)
            if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > _SHAPE_ELEMENTS:
                continue
            counts.update(int(size) for size in tensor.numpy().reshape(-1) if 1 < size <= _LARGEST_BAKED)
    return [size for size, _ in counts.most_common(_MOST_BAKED)]


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def _expression(label: str) -> ast.expr | None:
    """The label as arithmetic; None for a plain name. ``a-b`` is a name, ``a - b`` is not."""
    if len(label) > _LONGEST_EXPRESSION or not re.search(r" [-+*/] |\w[*+/]+\w| // ", label):
        return None
    try:
        body = ast.parse(label, mode="eval").body
    except SyntaxError:
        return None
    return body if isinstance(body, ast.BinOp) and _is_arithmetic(body) else None


def _is_arithmetic(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        known = type(node.op) in _OPERATORS or isinstance(node.op, ast.FloorDiv)
        return known and _is_arithmetic(node.left) and _is_arithmetic(node.right)
    return isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) is int)


def _symbols(label: str) -> list[str]:
    expression = _expression(label)
    if expression is None:
        return [label]
    return [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]


def size_of(label: str, sizes: Mapping[str, int]) -> int:
    """The size of a label: given, or computed from the sizes of the labels in it; -1 where it has none."""
    if label in sizes:
        return sizes[label]
    expression = _expression(label)
    return -1 if expression is None else _evaluate(expression, sizes)


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Name):
        return sizes.get(node.id, -1)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    assert isinstance(node, ast.BinOp)
    left, right = _evaluate(node.left, sizes), _evaluate(node.right, sizes)
    if isinstance(node.op, ast.FloorDiv):
        return left // right if right else -1
    return _OPERATORS[type(node.op)](left, right)


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    return math.prod(shape)
