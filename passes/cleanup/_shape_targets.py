"""What a Reshape or Expand with a computed target can be told by numbers, and which Expand changes nothing.

All claims hold for every size of the symbolic axes, 0 included.
"""

from __future__ import annotations

import itertools
import re
from typing import Final

import onnx_ir as ir

from graphopt.analyses.dims import Dims, same
from graphopt.analyses.shapes import Inferred, Shapes

__all__ = ["BROADCASTING", "expand_target", "is_bypassed", "reshape_target"]

#: Operators whose inputs all broadcast to each other.
BROADCASTING: Final = frozenset(
    (
        *("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
        *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow"),
        *("Sub", "Sum", "Where", "Xor"),
    )
)
#: A product, its number apart.
_MULTIPLE: Final = re.compile(r"(?:[1-9]\d*\*)?([A-Za-z_][\w.]*(?:\*[A-Za-z_][\w.]*)*)")


def reshape_target(
    data: Inferred, target: Inferred, output: Inferred, *, allowzero: bool, allow_empty: bool = True
) -> tuple[int, ...] | str:
    """The constant target that does the same with ``allowzero=0``, or why there is none.

    Numbers stay. What is the input's own axis at the same place becomes 0, which copies it, at any size. The
    one entry that remains becomes -1: where the original ran, the number of elements leaves it no choice.
    With -1 a runtime refuses a 0 that copies an empty axis; so these two meet only where the original has a
    -1 as well, or if ``allow_empty`` is off.
    """
    elements = target.elements
    if elements is None:
        return "nothing is known of the target"
    if any(isinstance(e, int) and (e < -1 or (e == 0 and allowzero)) for e in elements):
        return "the target asks for an axis of size 0 or below"
    axes = data.dims or ()
    entries = [_entry(e, axes[i] if i < len(axes) else None) for i, e in enumerate(elements)]
    opened = [i for i, entry in enumerate(entries) if entry == -1]
    inferred = next((i for i in opened if elements[i] == -1), None)
    if inferred is not None and all(
        _empty_together(elements[i], axes[i : i + 1]) for i in opened if i != inferred
    ):
        entries[inferred] = _decided(output, axes, inferred)
        opened = [i for i, entry in enumerate(entries) if entry == -1]
    if len(opened) > 1:
        return f"entries {', '.join(map(str, opened))} of the target are not known"
    copies = any(entry == 0 and not _is_filled(axes[i : i + 1]) for i, entry in enumerate(entries))
    if opened and copies and inferred is None and allow_empty:
        return "-1 beside an axis that is copied would refuse an empty one"
    return tuple(entries)


def _entry(element: int | ir.SymbolicDim, axis: int | ir.SymbolicDim | None) -> int:
    if isinstance(element, int):
        return element
    return 0 if axis is not None and same(element, axis) else -1


def _is_filled(axis: Dims) -> bool:
    return len(axis) == 1 and isinstance(axis[0], int) and axis[0] > 0


def _empty_together(element: int | ir.SymbolicDim, axis: Dims) -> bool:
    """Whether the two are 0 at the same sizes; then the original, which has a -1, does not run there."""
    if isinstance(element, int) or not axis or isinstance(axis[0], int):
        return False
    left, right = (_MULTIPLE.fullmatch(d.value or "") for d in (element, axis[0]))
    return left is not None and right is not None and left[1] == right[1]


def _decided(output: Inferred, axes: Dims, place: int) -> int:
    """What -1 comes to; -1 where that is not known."""
    size = -1 if output.dims is None else output.dims[place]
    if isinstance(size, int):
        return size if size > 0 else -1
    return 0 if place < len(axes) and same(size, axes[place]) else -1


def expand_target(data: Inferred, target: Inferred) -> tuple[int, ...] | None:
    """The constant target of an Expand: 1 stands for an axis that the input has already."""
    if data.dims is None or target.elements is None:
        return None
    axes = (1,) * (len(target.elements) - len(data.dims)) + data.dims
    axes = axes[len(axes) - len(target.elements) :]
    entries = [e if isinstance(e, int) else _one(e, a) for e, a in zip(target.elements, axes, strict=True)]
    found = [entry for entry in entries if entry is not None]
    return tuple(found) if len(found) == len(entries) and all(entry > 0 for entry in found) else None


def _one(element: ir.SymbolicDim, axis: int | ir.SymbolicDim) -> int | None:
    return 1 if same(element, axis) else None


def is_bypassed(expand: ir.Node, user: ir.Node, shapes: Shapes) -> bool:
    """Whether ``user`` gives the same with the input of ``expand`` in place of its output.

    Each axis that the Expand makes longer must be made as long by another operand.
    """
    before, after = shapes[_data(expand)].shape, shapes[expand.outputs[0]].shape
    others = [shapes[v].shape for v in user.inputs if v is not None and v is not expand.outputs[0]]
    known = [tuple(shape.dims) for shape in others if shape is not None]
    if before is None or after is None or not known or len(known) < len(others):
        return False
    if len(after) > max(len(before), *map(len, known)):
        return False
    columns = itertools.zip_longest(*map(reversed, (after.dims, before.dims, *known)), fillvalue=1)
    return all(
        same(new, old) or any(same(new, other) or _rules(other) for other in rest)
        for new, old, *rest in columns
    )


def _rules(size: int | ir.SymbolicDim) -> bool:
    """Whether all that broadcasts to an axis of this size takes its size."""
    return isinstance(size, int) and size != 1


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
