"""Which nodes return one of their inputs unchanged: one rule for each family of operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.analyses import shapes
from graphopt.graph import constant_of, is_default_domain, is_used
from graphopt.passes.cleanup._common import is_copying_dropout

__all__ = ["Facts", "copied_value"]

T = TypeVar("T")

#: Sizes, expressions that are equal only where the sizes are, or None for what is not known.
Shape = tuple[int | str | None, ...]

#: No axis is longer; as the end of a slice it means "to the end".
_NO_END: Final = 2**31 - 1
#: Constants with more elements are not searched for zeros and ones.
_NEUTRAL_ELEMENTS: Final = 4096
#: Since then operands broadcast to each other; before, attributes said how.
_BROADCAST_OPSET: Final = 7


class Facts:
    """What is known of the values of a model, shapes inferred when first asked for.

    Attributes:
        opset: The opset of the graph whose nodes are looked at.
        typed: Whether values have one type there; those of a function may differ from call to call.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self.opset = 1
        self.typed = True

    @functools.cached_property
    def _inferred(self) -> shapes.Shapes:
        return shapes.infer(self._model)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a tensor."""
        if value is None or not self.typed:
            return None
        if isinstance(value.type, ir.TensorType):  # a runtime refuses a model where this is wrong
            return value.type.dtype
        return self._inferred[value].dtype

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The axes of a tensor; None where not even their number is known."""
        if value is None or not self.typed:
            return None
        dims = self._inferred[value].dims
        return None if dims is None else tuple([d if isinstance(d, int) else d.value for d in dims])


Rule = Callable[[ir.Node, Facts], ir.Value | None]
Predicate = Callable[[ir.Node, Facts], bool]
_RULES: dict[str, Rule] = {}


def copied_value(node: ir.Node, facts: Facts) -> ir.Value | None:
    """The value that the node's first output always equals, where no other output is used; else None."""
    rule = _RULES.get(node.op_type)
    if rule is None or not is_default_domain(node) or not node.inputs:
        return None
    if any(is_used(value) for value in node.outputs[1:]):
        return None
    return rule(node, facts)


def _returns(*op_types: str) -> Callable[[Rule], Rule]:
    """Decorator: the function names the value that these operators return."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(op_types, rule))
        return rule

    return register


def _returns_first(*op_types: str) -> Callable[[Predicate], Predicate]:
    """Decorator: the function says whether these operators return their first input."""

    def register(predicate: Predicate) -> Predicate:
        def rule(node: ir.Node, facts: Facts) -> ir.Value | None:
            return node.inputs[0] if predicate(node, facts) else None

        _RULES.update(dict.fromkeys(op_types, rule))
        return predicate

    return register


# What nodes hold.


def _attribute(node: ir.Node, name: str, kind: ir.AttributeType) -> ir.Attr | None:
    found = node.attributes.get(name)
    return found if found is not None and not found.is_ref() and found.type == kind else None


def _int(node: ir.Node, name: str, default: int | None = None) -> int | None:
    """An integer attribute, its default where it is left out; None where it cannot be known."""
    if name not in node.attributes:
        return default
    found = _attribute(node, name, ir.AttributeType.INT)
    return None if found is None else found.as_int()


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    found = _attribute(node, name, ir.AttributeType.INTS)
    return None if found is None else found.as_ints()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The numbers of a small constant integer tensor, such as axes or repeats."""
    tensor = constant_of(value)
    if tensor is None or tensor.size > _NEUTRAL_ELEMENTS or not tensor.dtype.is_integer():
        return None
    return tuple(int(number) for number in tensor.numpy().flat)


def _same_shape(node: ir.Node, facts: Facts) -> bool:
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    return before is not None and None not in before and before == after


# The rules.


@_returns_first("Identity")
def _always(_node: ir.Node, _facts: Facts) -> bool:
    return True


@_returns_first("Dropout")
def _dropout(node: ir.Node, facts: Facts) -> bool:
    return is_copying_dropout(node, facts.opset)


@_returns_first("Concat", "Max", "Mean", "Min", "Sum")
def _of_one(node: ir.Node, _facts: Facts) -> bool:
    return len(node.inputs) == 1


@_returns_first("Split")
def _into_one(node: ir.Node, _facts: Facts) -> bool:
    return len(node.outputs) == 1


@_returns_first("Transpose")
def _transpose(node: ir.Node, facts: Facts) -> bool:
    if "perm" in node.attributes:
        order = _ints(node, "perm")
        return order is not None and order == tuple(range(len(order)))
    shape = facts.shape(node.inputs[0])
    return shape is not None and len(shape) < 2  # the default reverses the axes


@_returns_first("Pad")
def _pad(node: ir.Node, facts: Facts) -> bool:
    pads = _constant_ints(_input(node, 1)) if facts.opset >= 11 else _ints(node, "pads")
    return pads is not None and not any(pads)


@_returns_first("Tile")
def _tile(node: ir.Node, facts: Facts) -> bool:
    repeats = _constant_ints(_input(node, 1))
    return facts.opset >= 6 and repeats is not None and all(count == 1 for count in repeats)


@_returns_first("Unsqueeze")
def _unsqueeze(node: ir.Node, facts: Facts) -> bool:
    axes = _constant_ints(_input(node, 1)) if facts.opset >= 13 else _ints(node, "axes")
    return axes == ()


@_returns_first("Squeeze")
def _squeeze(node: ir.Node, facts: Facts) -> bool:
    """Nothing is taken away where the rank stays."""
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    return before is not None and after is not None and len(before) == len(after)


@_returns_first("Flatten")
def _flatten(node: ir.Node, facts: Facts) -> bool:
    shape = facts.shape(node.inputs[0])
    return (shape is not None and len(shape) == 2 and _int(node, "axis", 1) in (1, -1)) or _same_shape(
        node, facts
    )


@_returns_first("Expand", "Reshape")
def _to_shape(node: ir.Node, facts: Facts) -> bool:
    if _is_shape_of(_input(node, 1), node.inputs[0]) or _same_shape(node, facts):
        return True
    return node.op_type == "Reshape" and _keeps_axes(node, facts)


def _is_shape_of(target: ir.Value | None, value: ir.Value | None) -> bool:
    """Whether a target is computed as ``Shape(value)``, all of it."""
    node = target.producer() if target is not None else None
    if node is None or node.op_type != "Shape" or not is_default_domain(node) or node.attributes:
        return False
    return node.inputs[0] is value


def _keeps_axes(node: ir.Node, facts: Facts) -> bool:
    """Whether every entry of a constant target says 0 (as it is) or the size that the axis has; one of them
    may be -1, since it is the only one left open.
    """
    shape, target = facts.shape(node.inputs[0]), _constant_ints(_input(node, 1))
    if shape is None or target is None or len(shape) != len(target) or _int(node, "allowzero", 0) != 0:
        return False
    changed = [new for old, new in zip(shape, target, strict=True) if new not in (0, old)]
    return changed in ([], [-1])


@_returns_first("Slice")
def _slice(node: ir.Node, facts: Facts) -> bool:
    if facts.opset < 10:
        starts, ends, axes = (_ints(node, name) for name in ("starts", "ends", "axes"))
        steps: tuple[int, ...] | None = ()
    else:
        starts, ends, axes, steps = (_constant_ints(_input(node, index)) for index in (1, 2, 3, 4))
        steps = () if _input(node, 4) is None else steps
    if steps is None or any(step < 1 for step in steps):
        return False
    if _same_shape(node, facts):
        return True
    if starts is None or ends is None or any(starts) or any(step != 1 for step in steps):
        return False
    return all(end >= _NO_END for end in ends) or _reach_ends(facts.shape(node.inputs[0]), ends, axes)


def _reach_ends(shape: Shape | None, ends: Sequence[int], axes: Sequence[int] | None) -> bool:
    if shape is None or axes is None or len(axes) != len(ends):
        return False
    sizes = [shape[axis] if -len(shape) <= axis < len(shape) else None for axis in axes]
    return all(isinstance(size, int) and end >= size for size, end in zip(sizes, ends, strict=True))


# Types.

_SIGNED: Final = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64)
_UNSIGNED: Final = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)
_FLOATS: Final = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _exact_casts() -> dict[ir.DataType, frozenset[ir.DataType]]:
    """For each type the wider ones that hold each of its values, so that a cast back returns it."""
    table: dict[ir.DataType, set[ir.DataType]] = {
        ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE}
    }
    for family in (_SIGNED, _UNSIGNED, _FLOATS):
        for index, narrow in enumerate(family):
            table[narrow] = set(family[index + 1 :])
    for narrow, wide in zip(_UNSIGNED, _SIGNED[1:], strict=False):
        table[narrow].update(_SIGNED[_SIGNED.index(wide) :])
    for family in (_SIGNED, _UNSIGNED):
        for narrow, wide_float in zip(family, _FLOATS, strict=False):
            table[narrow].update(_FLOATS[_FLOATS.index(wide_float) :])
    table[ir.DataType.BOOL] = {*_SIGNED, *_UNSIGNED, *_FLOATS}
    return {narrow: frozenset(wide) for narrow, wide in table.items()}


_EXACT_CASTS: Final = _exact_casts()


@_returns("Cast")
def _cast(node: ir.Node, facts: Facts) -> ir.Value | None:
    """The value itself where it has the type, or what an exact cast to a wider type was made of."""
    value, target = node.inputs[0], _int(node, "to")
    if value is None or target is None:
        return None
    dtype = facts.dtype(value)
    if dtype is not None and dtype.value == target:
        return value
    before = value.producer()
    if before is None or before.op_type != "Cast" or not is_default_domain(before):
        return None
    source = facts.dtype(before.inputs[0])
    if source is None or source.value != target or dtype not in _EXACT_CASTS.get(source, frozenset()):
        return None
    return before.inputs[0]


@_returns_first("CastLike")
def _cast_like(node: ir.Node, facts: Facts) -> bool:
    dtype = facts.dtype(node.inputs[0])
    return dtype is not None and dtype == facts.dtype(_input(node, 1))


# Arithmetic.


@_returns("Add", "Mul", "And", "Or")
def _neutral_operand(node: ir.Node, facts: Facts) -> ir.Value | None:
    first, second = node.inputs[0], _input(node, 1)
    neutral = 0 if node.op_type in ("Add", "Or") else 1
    if _changes_nothing(second, first, neutral, facts):
        return first
    return second if _changes_nothing(first, second, neutral, facts) else None


@_returns_first("Div", "Pow", "Sub")
def _neutral_second(node: ir.Node, facts: Facts) -> bool:
    return _changes_nothing(_input(node, 1), node.inputs[0], 0 if node.op_type == "Sub" else 1, facts)


def _changes_nothing(operand: ir.Value | None, value: ir.Value | None, neutral: int, facts: Facts) -> bool:
    """Whether a constant holds the neutral element everywhere and broadcasting to it leaves the shape."""
    tensor = constant_of(operand)
    if tensor is None or tensor.dtype == ir.DataType.STRING or facts.opset < _BROADCAST_OPSET:
        return False
    if not 0 < tensor.size <= _NEUTRAL_ELEMENTS:
        return False
    numbers = tensor.numpy()
    if numbers.item(0) != neutral or not np.all(numbers == neutral):
        return False
    axes = tuple(tensor.shape)
    if not axes:
        return True
    shape = facts.shape(value)
    if shape is None or len(shape) < len(axes):
        return False
    return all(axis in (1, size) for axis, size in zip(reversed(axes), reversed(shape), strict=False))
