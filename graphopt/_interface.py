"""What callers of a model rely on: names, order, types and axes of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Interface", "Port", "interface"]


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: The value's name.
        type: The type as ONNX writes it, such as ``tensor(float)``; ``unknown`` where there is none.
        shape: An int for a fixed axis, a str for a named one, None for an unnamed one; the shape is None
            where even the rank is unknown.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.type} of unknown rank"
        return f"{self.type}[{', '.join('?' if axis is None else str(axis) for axis in self.shape)}]"


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in order. Two are equal when no caller can tell them apart."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def difference(self, other: Interface) -> str | None:
        """The first difference of ``other`` from this one, on one line; None where there is none."""
        return _difference("input", self.inputs, other.inputs) or _difference(
            "output", self.outputs, other.outputs
        )


def _difference(kind: str, before: tuple[Port, ...], after: tuple[Port, ...]) -> str | None:
    names, new_names = [p.name for p in before], [p.name for p in after]
    if names != new_names:
        return f"the {kind}s were {', '.join(names) or 'none'}; they are {', '.join(new_names) or 'none'}"
    for old, new in zip(before, after, strict=True):
        if old != new:
            return f"{kind} '{old.name}' was {old}; it is {new}"
    return None


def interface(model: ir.Model) -> Interface:
    """The model's interface. Inputs that have an initializer as their default are inputs all the same."""
    return Interface(
        tuple(_port(value) for value in model.graph.inputs),
        tuple(_port(value) for value in model.graph.outputs),
    )


def _port(value: ir.Value) -> Port:
    shape = None
    if value.shape is not None:
        shape = tuple(map(_axis, value.shape))
    return Port(value.name or "", _type_name(value.type), shape)


def _axis(axis: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(axis, int):
        return axis
    return None if axis.value is None else str(axis.value)


def _type_name(kind: ir.TypeProtocol | None) -> str:
    if isinstance(kind, ir.TensorType):
        return f"tensor({_element(kind.dtype)})"
    if isinstance(kind, ir.SparseTensorType):
        return f"sparse_tensor({_element(kind.dtype)})"
    if isinstance(kind, ir.SequenceType):
        return f"seq({_type_name(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({_type_name(kind.elem_type)})"
    return "unknown"


def _element(dtype: ir.DataType) -> str:
    return dtype.name.lower()
