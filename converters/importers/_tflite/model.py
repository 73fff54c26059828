"""A TFLite model as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from graphopt.converters.importers._tflite.schema import DTYPES

__all__ = ["Model", "Operator", "Quantization", "Signature", "Subgraph", "Tensor"]

Array = np.ndarray[Any, Any]
#: Element types whose numbers stand for others where the tensor has a scale.
_QUANTIZED = frozenset({"INT8", "UINT8", "INT16", "INT4", "INT2", "UINT4"})


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (stored - zero_point)``; with several scales, one for each entry of ``axis``."""

    scale: Array
    zero_point: Array
    axis: int

    @property
    def per_channel(self) -> bool:
        """Whether there are several scales."""
        return self.scale.size > 1

    def same(self, other: Quantization | None) -> bool:
        """Whether the numbers of both mean the same."""
        return (
            other is not None
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
        index: Its number in the subgraph.
        name: As the file has it; need not be unique.
        shape: Sizes, those of free axes as the converter left them (mostly 1).
        signature: Sizes with -1 for free axes.
        type: The element type as the schema names it.
        quantization: None where the numbers are what they are.
        variable: Whether it keeps its content from one run to the next.
        decode: Makes its elements, dense and in its shape; None where it is no constant.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    type: str
    quantization: Quantization | None = None
    variable: bool = False
    decode: Callable[[], Array] | None = None

    @cached_property
    def array(self) -> Array | None:
        """The elements of a constant, as they are stored; None where it is none."""
        return None if self.decode is None else self.decode()

    @property
    def array_dtype(self) -> Any:
        """How numpy holds its elements."""
        return DTYPES[self.type]

    @property
    def rank(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def quantized(self) -> bool:
        """Whether its numbers stand for real ones."""
        return self.quantization is not None and self.type in _QUANTIZED

    @property
    def floating(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return self.type in ("FLOAT32", "FLOAT16", "FLOAT64", "BFLOAT16")


@dataclass(frozen=True)
class Operator:
    """One operator of a subgraph.

    Attributes:
        index: Its number in the subgraph.
        name: The builtin operator, or ``CUSTOM``.
        custom: The custom operator's name, empty for builtin ones.
        version: Of the operator.
        inputs: Tensors; -1 for an optional one that is left out.
        outputs: Tensors.
        options: As the schema names them; empty where the file has none, which means all defaults.
        custom_options: Bytes that the custom operator reads.
        place: Where it is, for messages.
    """

    index: int
    name: str
    custom: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    custom_options: bytes = b""
    place: str = ""

    def input(self, position: int) -> int:
        """The tensor at an input; -1 where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else -1


@dataclass(frozen=True)
class Subgraph:
    """Tensors, and operators in the order in which they run."""

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Names for the inputs and outputs of a subgraph, by tensor."""

    key: str
    subgraph: int
    inputs: Mapping[int, str]
    outputs: Mapping[int, str]


@dataclass(frozen=True)
class Model:
    """A whole file."""

    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
