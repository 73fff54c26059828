"""What the converter of an operator sees: its tensors as ONNX values, real or as they are stored."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt.converters.importers._tflite.builder import Builder
from graphopt.converters.importers._tflite.model import Array, Model, Operator, Subgraph, Tensor
from graphopt.converters.importers._tflite.registry import converter_of
from graphopt.errors import InputError, UnsupportedError, UserError
from graphopt.limits import NESTING_DEPTH
from graphopt.runtime.evaluate import first_line

__all__ = ["Context", "State", "dequantized", "onnx_type"]

_TYPES: Final = {
    "FLOAT32": ir.DataType.FLOAT,
    "FLOAT16": ir.DataType.FLOAT16,
    "FLOAT64": ir.DataType.DOUBLE,
    "BFLOAT16": ir.DataType.BFLOAT16,
    "INT8": ir.DataType.INT8,
    "INT16": ir.DataType.INT16,
    "INT32": ir.DataType.INT32,
    "INT64": ir.DataType.INT64,
    "UINT8": ir.DataType.UINT8,
    "UINT16": ir.DataType.UINT16,
    "UINT32": ir.DataType.UINT32,
    "UINT64": ir.DataType.UINT64,
    "BOOL": ir.DataType.BOOL,
    "INT4": ir.DataType.INT8,
    "INT2": ir.DataType.INT8,
    "UINT4": ir.DataType.UINT8,
}


#: What converters run into where an operator has other inputs, sizes or options than it must have.
_MISFITS: Final = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RecursionError,
    struct.error,
)
#: Operators that may see complex numbers.
_COMPLEX: Final = frozenset({"COMPLEX_ABS", "EXPAND_DIMS", "IMAG", "REAL", "RESHAPE", "SQUEEZE"})


def onnx_type(tensor: Tensor, place: str = "") -> ir.DataType:
    """The element type as ONNX names it.

    Raises:
        UnsupportedError: There is none (strings, resources, variants).
    """
    if tensor.type not in _TYPES:
        raise UnsupportedError(
            f"{place or repr(tensor.name)}: tensors of type {tensor.type} are not supported"
        )
    return _TYPES[tensor.type]


def dequantized(array: Array, tensor: Tensor) -> Array:
    """The real numbers, float32, that the stored ones of a quantized tensor stand for."""
    q = tensor.quantization
    assert q is not None
    shape = [1] * array.ndim
    if q.per_channel:
        shape[q.axis] = -1
    scale, zero = (
        numbers.reshape(shape) if q.per_channel else numbers for numbers in (q.scale, q.zero_point)
    )
    # As DequantizeLinear does it: the difference is a whole number, the product is rounded once.
    made: Array = ((array.astype(np.int64) - zero).astype(np.float32) * scale).reshape(array.shape)
    return made


class State:
    """The variables of the model, by the names that the file gives them.

    Attributes:
        values: What each holds at this point of the run.
        inputs: What each held before the run, of those that are read before they are assigned.
        tensors: Their type and shape.
        assigned: What was assigned to each last, where that is a constant; else None.
        initial: What each holds before the first run; None where that is computed.
    """

    def __init__(self) -> None:
        self.values: dict[str, ir.Value] = {}
        self.inputs: dict[str, ir.Value] = {}
        self.tensors: dict[str, Tensor] = {}
        self.assigned: dict[str, Array | None] = {}
        self.initial: dict[str, Array | None] = {}

    def begin(self, name: str, tensor: Tensor, build: Builder, place: str) -> ir.Value:
        """What a variable holds before the run: an input of the model."""
        value = ir.Value(
            name=build.unique(name),
            type=ir.TensorType(onnx_type(tensor, place)),
            shape=ir.Shape(tensor.shape),
        )
        self.values[name] = self.inputs[name] = value
        self.tensors[name] = tensor
        return value


class Context:
    """One call of a subgraph.

    Attributes:
        build: Where nodes go.
        model: The whole file.
        subgraph: The one being converted.
        state: The variables of the model.
        notes: What the user should know.
    """

    def __init__(
        self,
        model: Model,
        subgraph: Subgraph,
        build: Builder,
        state: State,
        notes: list[str],
        callers: tuple[int, ...] = (),
    ) -> None:
        if subgraph.index in callers:
            raise InputError(f"a damaged TFLite file: subgraph {subgraph.index} calls itself")
        if len(callers) > NESTING_DEPTH:
            raise InputError(f"more than {NESTING_DEPTH} subgraphs inside each other")
        self.model, self.subgraph, self.build, self.state, self.notes = model, subgraph, build, state, notes
        self.callers = (*callers, subgraph.index)
        self._stored: dict[int, ir.Value] = {}
        self._real: dict[int, ir.Value] = {}
        self._arrays: dict[int, Array] = {}
        self.handles: dict[int, str] = {}

    # -- tensors ----------------------------------------------------------------------------------------

    def tensor(self, index: int) -> Tensor:
        """A tensor of this subgraph."""
        if index < 0:
            raise InputError("an input that it needs is left out")
        return self.subgraph.tensors[index]

    def dims(self, index: int) -> tuple[int, ...]:
        """Its sizes, -1 for free axes."""
        return self.tensor(index).signature

    def array(self, index: int) -> Array | None:
        """A constant as it is stored; None for what is computed, given or absent."""
        if index < 0:
            return None
        if index in self._arrays:
            return self._arrays[index]
        tensor = self.tensor(index)
        if index in self._stored or tensor.variable:
            return None
        if tensor.array is None and tensor.size == 0 and tensor.type in _TYPES:
            return np.zeros(tensor.shape, _TYPES[tensor.type].numpy())
        return tensor.array

    def real_array(self, index: int) -> Array | None:
        """The real numbers of a constant; None as for :meth:`array`."""
        array = self.array(index)
        tensor = self.tensor(index) if index >= 0 else None
        if array is None or tensor is None or not tensor.quantized:
            return array
        return dequantized(array, tensor)

    def ints(self, index: int, op: Operator, what: str) -> list[int]:
        """The numbers of an integer tensor that must be a constant.

        Raises:
            UnsupportedError: It is computed.
        """
        array = self.array(index)
        if array is None:
            raise UnsupportedError(f"{op.place}: {what} is computed; only a constant is supported")
        return [int(n) for n in array.reshape(-1)]

    # -- values ---------------------------------------------------------------------------------------------

    def stored(self, index: int) -> ir.Value:
        """A tensor with its elements as they are stored."""
        if index in self._stored:
            return self._stored[index]
        array, tensor = self.array(index), self.tensor(index)
        if array is None and tensor.type not in _TYPES:
            raise UnsupportedError(f"'{tensor.name or index}': {tensor.type} as a value is not supported")
        if array is None:
            raise InputError(f"a damaged TFLite file: '{tensor.name or index}' is used before it is made")
        return self.build.constant(array, tensor.name or "constant")

    def real(self, index: int) -> ir.Value:
        """A tensor with real numbers: dequantized where it is quantized."""
        tensor = self.tensor(index)
        if not tensor.quantized:
            return self.stored(index)
        if index not in self._real:
            self._real[index] = self.dequantize(self.stored(index), tensor)
        return self._real[index]

    def optional(self, op: Operator, position: int) -> ir.Value | None:
        """The real value at an input that may be left out."""
        index = op.input(position)
        return None if index < 0 else self.real(index)

    def weight(self, index: int, rearrange: Callable[[Array], Array] | None, axis: int | None) -> ir.Value:
        """A weight, its axes rearranged; if quantized, kept as integers before a DequantizeLinear.

        Args:
            index: The tensor.
            rearrange: What to do with the array; None leaves it.
            axis: Where its channels are then (per-channel scales are theirs); None: where they were.

        Raises:
            UnsupportedError: It is computed.
        """
        array, tensor = self.array(index), self.tensor(index)
        if array is None:
            raise UnsupportedError(f"'{tensor.name}': a weight that is computed is not supported here")
        value = self.build.constant(array if rearrange is None else rearrange(array), tensor.name or "weight")
        return self.dequantize(value, tensor, axis) if tensor.quantized else value

    def bias(self, index: int) -> ir.Value | None:
        """A bias; of quantized operators int32 with a scale. None where there is none."""
        if index < 0:
            return None
        tensor = self.tensor(index)
        if tensor.type in ("INT32", "INT64") and tensor.quantization is not None:
            if tensor.quantization.zero_point.any():
                raise ValueError(f"its bias '{tensor.name}' has a zero point")
            if tensor.type == "INT32":
                return self.dequantize(self.stored(index), tensor)
            # INT64, of int16 operators: ONNX has no DequantizeLinear of it.
            array, scale = self.array(index), tensor.quantization.scale
            if array is not None:
                return self.build.constant((array * scale.astype(np.float64)).astype(np.float32), tensor.name)
            real = self.build.cast(self.stored(index), ir.DataType.FLOAT)
            return self.build.op("Mul", real, self.build.constant(scale.reshape(-1), "scale"))
        return self.real(index)

    def dequantize(self, value: ir.Value, tensor: Tensor, axis: int | None = None) -> ir.Value:
        """DequantizeLinear with a tensor's scales."""
        scale, zero, attributes = self._linear(tensor, axis)
        return self.build.op("DequantizeLinear", value, scale, zero, name=f"{tensor.name}/real", **attributes)

    def quantize(self, value: ir.Value, tensor: Tensor) -> ir.Value:
        """QuantizeLinear with a tensor's scales."""
        scale, zero, attributes = self._linear(tensor, None)
        return self.build.op("QuantizeLinear", value, scale, zero, name=tensor.name, **attributes)

    def _linear(self, tensor: Tensor, axis: int | None) -> tuple[ir.Value, ir.Value | None, dict[str, Any]]:
        q = tensor.quantization
        assert q is not None
        dtype = onnx_type(tensor).numpy()
        scales, zeros = q.scale, q.zero_point.astype(dtype)
        attributes = {"axis": q.axis if axis is None else axis} if q.per_channel else {}
        if not q.per_channel:
            scales, zeros = scales.reshape(()), zeros.reshape(())
        # A scale of 0 (a channel of zeros) divides by nothing here: dequantizing only multiplies.
        scale = self.build.constant(scales.astype(np.float32), "scale")
        return scale, None if tensor.type == "INT32" else self.build.constant(zeros, "zero_point"), attributes

    # -- results --------------------------------------------------------------------------------------------

    def set(self, index: int, value: ir.Value) -> None:
        """The elements of a tensor as they are stored."""
        self._stored[index] = value

    def set_real(self, index: int, value: ir.Value) -> None:
        """The real numbers of a tensor, which is quantized where the file says so."""
        tensor = self.tensor(index)
        self._stored[index] = self.quantize(value, tensor) if tensor.quantized else value

    def set_array(self, index: int, array: Array) -> None:
        """A tensor that turns out to be a constant."""
        self._arrays[index] = array

    def is_set(self, index: int) -> bool:
        """Whether the tensor has been given or computed."""
        return index in self._stored or index in self._arrays

    def same_quantization(self, first: int, second: int) -> bool:
        """Whether the stored numbers of both tensors mean the same."""
        a, b = self.tensor(first), self.tensor(second)
        if not a.quantized or not b.quantized:
            return not a.quantized and not b.quantized
        assert a.quantization is not None
        return a.type == b.type and a.quantization.same(b.quantization)

    # -- subgraphs ------------------------------------------------------------------------------------------

    def call(
        self, index: int, arguments: Sequence[ir.Value], build: Builder, state: State | None = None
    ) -> list[ir.Value]:
        """Convert another subgraph on these stored values; its stored outputs."""
        if not 0 <= index < len(self.model.subgraphs):
            raise InputError(f"a damaged TFLite file: subgraph {index} is called, there is none")
        callee = Context(
            self.model, self.model.subgraphs[index], build, state or self.state, self.notes, self.callers
        )
        if len(arguments) != len(callee.subgraph.inputs):
            raise InputError(
                f"a damaged TFLite file: subgraph {index} has {len(callee.subgraph.inputs)} inputs and is "
                f"called with {len(arguments)}"
            )
        for tensor, value in zip(callee.subgraph.inputs, arguments, strict=True):
            callee.set(tensor, value)
        callee.convert()
        return [callee.stored(tensor) for tensor in callee.subgraph.outputs]

    def convert(self) -> None:
        """Convert every operator of the subgraph."""
        for operator in self.subgraph.operators:
            for output in operator.outputs:
                if self.is_set(output):
                    raise InputError(f"a damaged TFLite file: {operator.place} makes a tensor a second time")
            try:
                self._refuse_complex(operator)
                converter_of(operator)(self, operator)
            except _MISFITS as error:
                reason = first_line(error)
                raise InputError(f"{operator.place}: not as this operator must be: {reason}") from error
            except UserError as error:
                if operator.place in str(error) or " (" in str(error):
                    raise
                raise type(error)(f"{operator.place}: {error}") from error

    def _refuse_complex(self, op: Operator) -> None:
        """Complex numbers are pairs in ONNX, which only some operators may see."""
        if op.name not in _COMPLEX and any(i >= 0 and self.tensor(i).type == "COMPLEX64" for i in op.inputs):
            raise UnsupportedError(f"{op.place}: of complex numbers is not supported")
