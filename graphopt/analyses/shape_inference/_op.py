"""What a rule sees of its node, and the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Axis, Dim, Dims, fresh, is_negative_never
from graphopt.analyses.shape_inference._known import Inferred, array_of

__all__ = ["RULES", "Array", "Op", "Rule", "Sizes", "Unknown", "rule"]

Array = np.ndarray[Any, np.dtype[Any]]
#: Sizes that can be computed with.
Sizes = tuple[int | Axis, ...]


class Unknown(Exception):  # noqa: N818 - an answer, not a fault
    """Nothing can be told of the outputs of this node."""


class Op:
    """One node with what is known of its inputs (None for one that is left out).

    Attributes:
        node: The node.
        inputs: What is known of each input.
        opset: Version of the standard operators that holds for the node.

    Args:
        bound: Inside of a function, the attributes of its call.
    """

    __slots__ = ("_bound", "inputs", "node", "opset")

    def __init__(
        self,
        node: ir.Node,
        inputs: Sequence[Inferred | None],
        opset: int,
        bound: Mapping[str, ir.Attr] | None = None,
    ) -> None:
        self.node = node
        self.inputs = inputs
        self.opset = opset
        self._bound = bound

    # Inputs.

    def __getitem__(self, index: int) -> Inferred:
        """The input at ``index``, which the operator requires."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise LookupError(f"input {index} is missing")
        return found

    def has(self, index: int) -> bool:
        """Whether the node has an input at ``index``."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def array(self, index: int) -> Array | None:
        """The numbers of an input that is constant and not large; None where unknown or left out."""
        known = self.inputs[index] if index < len(self.inputs) else None
        return None if known is None else array_of(known)

    def dims(self, index: int) -> Sizes:
        """The axes of an input, where its rank is known.

        Raises:
            Unknown: It is not.
        """
        found = self[index].dims
        if found is None:
            raise Unknown
        return found  # type: ignore[return-value] # SymbolicDims of ours are all Axis

    def elements(self, index: int) -> Dims | None:
        """What is known of the elements of a small integer input."""
        if not self.has(index):
            return None
        known = self[index]
        if known.elements is not None:
            return known.elements
        array = self.array(index)
        if array is None or array.dtype.kind not in "iu":
            return None
        return tuple([int(n) for n in array.reshape(-1)])

    def numbers(self, index: int) -> tuple[int, ...] | None:
        """The elements of a small integer input where all of them are integers."""
        found = self.elements(index)
        if found is None or any(not isinstance(e, int) for e in found):
            return None
        return found  # type: ignore[return-value]

    # Attributes.

    def _attribute(self, name: str) -> Any:
        found = self.node.attributes.get(name)
        if found is not None and found.is_ref():
            found = (self._bound or {}).get(str(found.ref_attr_name))
        return None if found is None else found.value

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self._attribute(name)
        return default if found is None else int(found)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that lists integers."""
        found = self._attribute(name)
        return None if found is None else tuple(found)

    def floats(self, name: str) -> tuple[float, ...] | None:
        """An attribute that lists floats."""
        found = self._attribute(name)
        return None if found is None else tuple(found)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self._attribute(name)
        return default if found is None else str(found)

    def dtype(self, name: str, default: ir.DataType | None = None) -> ir.DataType | None:
        """An attribute that names an element type."""
        found = self._attribute(name)
        return default if found is None else ir.DataType(found)

    def axis(self, rank: int, default: int, name: str = "axis") -> int:
        """An attribute that names an axis, counted from the front."""
        return counted(self.integer(name, default), rank)

    def listed(self, name: str, index: int, since: int) -> tuple[int, ...] | None:
        """Integers that are attribute ``name`` before opset ``since``, and input ``index`` from there on.

        Raises:
            Unknown: The input is there, and its numbers are not known.
        """
        if self.opset < since:
            return self.integers(name)
        if not self.has(index):
            return None
        found = self.numbers(index)
        if found is None:
            raise Unknown
        return found


def counted(axis: int, rank: int) -> int:
    """``axis`` counted from the front."""
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} is outside of rank {rank}")
    return axis % rank


def size_or_new(element: Dim) -> int | Axis:
    """An element as the size of an axis: itself where that is never negative, else a new axis."""
    return element if isinstance(element, int | Axis) and is_negative_never(element) else fresh()


def anew(count: int) -> Sizes:
    """``count`` axes of which nothing is known."""
    return tuple([fresh() for _ in range(count)])


#: Tells what the outputs are, from the first on: one for all of them, or a list of one each.
Rule = Callable[[Op], "Inferred | Sequence[Inferred]"]
RULES: dict[tuple[str, str], Rule] = {}
R = TypeVar("R", bound=Rule)


def rule(*names: str, domain: str = "") -> Callable[[R], R]:
    """Register the rule of some operators.

    Raises:
        ValueError: One of them has a rule.
    """

    def register(function: R) -> R:
        for name in names:
            if (domain, name) in RULES:
                raise ValueError(f"'{name}' has two rules")
            RULES[domain, name] = function
        return function

    return register
