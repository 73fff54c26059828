"""What is known of one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.dims import Dim, Dims, static

__all__ = ["LARGE_CONSTANT", "Inferred", "Leaf", "array_of", "of_constant"]

#: Constants with more elements than this are not looked into: no shape is computed from so many numbers.
LARGE_CONSTANT = 64 * 1024


class Inferred:
    """What is known of one value. Immutable; equal where all that is known is.

    Attributes:
        dtype: Element type; None where unknown or where the value is no tensor.
        dims: The axes; None where not even the rank is known. ``shape`` is the same as an onnx_ir.Shape.
        elements: The numbers inside a small integer tensor, such as the target of a Reshape, in order:
            integers, expressions of axes, or a nameless axis where one is not known. None where nothing is
            known.
        constant: The value itself where it follows from constants and fixed shapes alone and is small; None
            for initializers and outputs of Constant nodes, which hold their own.
    """

    __slots__ = ("_shape", "constant", "dims", "dtype", "elements")

    def __init__(
        self,
        dtype: ir.DataType | None = None,
        shape: Sequence[Dim] | ir.Shape | None = None,
        elements: Dims | None = None,
        constant: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.dtype = dtype
        self.dims: Dims | None = None if shape is None else tuple(shape)
        self.elements = elements
        self.constant = constant
        self._shape: ir.Shape | None = None

    @property
    def shape(self) -> ir.Shape | None:
        """The shape, which nobody may change; None where not even the rank is known."""
        if self._shape is None and self.dims is not None:
            self._shape = ir.Shape(self.dims, frozen=True)
        return self._shape

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape where all of its dimensions are integers."""
        return static(self.dims)

    def with_dtype(self, dtype: ir.DataType | None) -> Inferred:
        """The same shape with another element type; the elements of that are not known."""
        return Inferred(dtype, self.dims)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Inferred):
            return NotImplemented
        mine, theirs = self.constant, other.constant
        return (self.dtype, self.dims, self.elements) == (other.dtype, other.dims, other.elements) and (
            mine is theirs or (mine is not None and theirs is not None and np.array_equal(mine, theirs))
        )

    def __hash__(self) -> int:
        return hash((self.dtype, self.dims))

    def __repr__(self) -> str:
        return f"Inferred({self.dtype}, {self.shape}, {self.elements}, {self.constant})"


class Leaf(Inferred):
    """A small constant of the model itself, whose numbers are there to be read. Equal to nothing else."""

    __slots__ = ("_array", "tensor")

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        super().__init__(tensor.dtype, tuple(tensor.shape.numpy()))
        self.tensor = tensor
        self._array: np.ndarray[Any, Any] | None = None

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The numbers, read once."""
        if self._array is None:
            self._array = self.tensor.numpy()
        return self._array

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Inferred.__hash__


def of_constant(tensor: ir.TensorProtocol) -> Inferred:
    """What is known of a constant of the model."""
    if tensor.size <= LARGE_CONSTANT and tensor.dtype != ir.DataType.STRING:
        return Leaf(tensor)
    return Inferred(tensor.dtype, tuple(tensor.shape.numpy()))


def array_of(known: Inferred) -> np.ndarray[Any, Any] | None:
    """The numbers of what is constant and not large."""
    return known.array if type(known) is Leaf else known.constant
