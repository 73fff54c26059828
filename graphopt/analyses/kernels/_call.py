"""What a kernel sees of the node it computes, and the table of kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["KERNELS", "Array", "Call", "Kernel", "Refused", "broadcast_dims", "element_bytes", "kernel"]

Array = np.ndarray[Any, np.dtype[Any]]
#: No shape, axis list or index list of an honest model is longer.
_LONGEST_LIST = 64
#: Numpy numbers the types of other libraries, such as bfloat16, from here on.
_FIRST_USER_TYPE = 256


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The node cannot be computed at build time; the message says why."""


class Call:
    """One node with the arrays of its inputs; missing optional inputs are None."""

    def __init__(self, node: ir.Node, inputs: Sequence[Array | None], opset: int) -> None:
        self.node = node
        self.inputs = inputs
        self.opset = opset

    def __getitem__(self, index: int) -> Array:
        found = self.optional(index)
        if found is None:
            raise Refused(f"input {index} is missing")
        return found

    def optional(self, index: int) -> Array | None:
        """The input at ``index``, or None where the node has none there."""
        return self.inputs[index] if index < len(self.inputs) else None

    def present(self) -> list[Array]:
        """All inputs; a variadic operator may not leave one out."""
        return [self[i] for i in range(len(self.inputs))]

    def attribute(self, name: str) -> ir.Attr | None:
        """The attribute, which may not be a reference to one of the enclosing function."""
        found = self.node.attributes.get(name)
        if found is not None and found.is_ref():
            raise Refused(f"attribute '{name}' is set by the caller of the function")
        return found

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer attribute."""
        found = self.attribute(name)
        if found is None:
            if default is None:
                raise Refused(f"attribute '{name}' is missing")
            return default
        return found.as_int()

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that lists integers."""
        found = self.attribute(name)
        return None if found is None else tuple(found.as_ints())

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attribute(name)
        return default if found is None else found.as_string()

    def numbers(self, index: int) -> tuple[int, ...] | None:
        """A small integer input as Python integers; None where the node has none there."""
        array = self.optional(index)
        if array is None:
            return None
        if array.size > _LONGEST_LIST or array.dtype.kind not in "iu":
            raise Refused(f"input {index} is not a short list of integers")
        return tuple(int(n) for n in array.reshape(-1))

    def number(self, index: int) -> int:
        """An input that holds exactly one integer."""
        found = self.numbers(index)
        if found is None or len(found) != 1:
            raise Refused(f"input {index} is not one integer")
        return found[0]

    def listed(self, name: str, index: int, since: int) -> tuple[int, ...] | None:
        """Integers that are attribute ``name`` before opset ``since``, and input ``index`` from there on."""
        return self.integers(name) if self.opset < since else self.numbers(index)

    def axis(self, rank: int, default: int | None = None, *, name: str = "axis") -> int:
        """The attribute ``axis`` as an index into ``rank`` axes."""
        return normalized(self.integer(name, default), rank)


def normalized(axis: int, rank: int) -> int:
    """``axis`` counted from the front."""
    if not -rank <= axis < rank:
        raise Refused(f"axis {axis} is outside of rank {rank}")
    return axis % rank if rank else 0


def normalized_all(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Distinct axes counted from the front."""
    found = tuple(normalized(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise Refused(f"axes {list(axes)} name one axis twice")
    return found


Compute = Callable[[Call], "Array | list[Array]"]
Measure = Callable[[Call], int]


@dataclass(frozen=True)
class Kernel:
    """How one operator is computed, and how many bytes at most that gives."""

    compute: Compute
    measure: Measure


KERNELS: dict[str, Kernel] = {}


def kernel(*names: str, measure: Measure) -> Callable[[Compute], Compute]:
    """Register a function as the kernel of standard operators; ``measure`` bounds its result in bytes."""

    def decorate(compute: Compute) -> Compute:
        for name in names:
            KERNELS[name] = Kernel(compute, measure)
        return compute

    return decorate


def broadcast_dims(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that ``shapes`` broadcast to."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise Refused(f"shapes {', '.join(map(str, shapes))} do not broadcast") from error


def element_bytes(dtype: np.dtype[Any]) -> int:
    """Bytes of one element as numpy holds it."""
    return max(dtype.itemsize, 1)


def like_first(call: Call) -> int:
    """The result is no larger than the first input."""
    return call[0].nbytes


def like_all(call: Call) -> int:
    """The result is no larger than all inputs together."""
    return sum(a.nbytes for a in call.present())


def like_broadcast(call: Call) -> int:
    """The inputs broadcast; the widest type counts."""
    arrays = call.present()
    count = math.prod(broadcast_dims(*(a.shape for a in arrays)))
    return count * max(element_bytes(a.dtype) for a in arrays)


def flags_of_broadcast(call: Call) -> int:
    """The inputs broadcast to booleans."""
    return math.prod(broadcast_dims(*(a.shape for a in call.present())))


def indices_of_first(call: Call) -> int:
    """At most one int64 per element of the first input."""
    return call[0].size * 8


def require_kind(array: Array, kinds: str) -> Array:
    """``array``, where its type is a plain numpy one of ``kinds`` (b, i, u, f)."""
    if array.dtype.num >= _FIRST_USER_TYPE or array.dtype.kind not in kinds:
        raise Refused(f"elements of type {array.dtype} are not computed with")
    return array
