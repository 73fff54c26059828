"""Read a flatbuffer of the TFLite schema into plain data; nothing in it is believed.

An offset may point anywhere, a length say anything: whatever the flatbuffers library makes of that is turned
into one InputError. Counts are bounded, and every constant is as long as its shape says before it is used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphopt.converters.importers._tflite.model import (
    Array,
    Model,
    Operator,
    Quantization,
    Signature,
    Subgraph,
    Tensor,
)
from graphopt.converters.importers._tflite.schema import (
    BUILTINS,
    DTYPES,
    OPTION_TYPES,
    OPTION_TYPES_2,
    PACKED,
    TENSOR_TYPES,
    generated,
)
from graphopt.converters.importers._tflite.sparsity import densify
from graphopt.errors import InputError, UnsupportedError
from graphopt.limits import TENSOR_ELEMENTS, TENSOR_RANK

__all__ = ["read"]

_VERSION: Final = 3
#: Tensors, operators and their inputs in a file: a vector may be listed many times over.
_LARGEST: Final = 1_000_000
#: Zero points are among the numbers of the type; biases have none.
_ZERO_POINTS: Final = {
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-32768, 32767),
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT2": (-2, 1),
}
#: What the flatbuffers library raises where an offset or a length is wrong.
_DAMAGE: Final = (
    struct.error,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def read(source: Path) -> Model:
    """Read a TFLite file.

    Raises:
        InputError: It is damaged; one line says where.
        UnsupportedError: It holds element types or forms of quantization that ONNX has no word for.
    """
    try:
        data = source.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    if data[4:8] != b"TFL3":
        raise InputError("no TFLite file, bytes 4 to 8 are not 'TFL3'")
    try:
        return _Reader(data).model()
    except _DAMAGE as error:
        raise InputError(f"a damaged TFLite file: {type(error).__name__}: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.root = generated.Model.GetRootAs(data, 0)
        self.left = _LARGEST

    def count(self, length: int, what: str) -> range:
        """The numbers below a length from the file, which must be a possible one."""
        if not 0 <= length <= len(self.data) // 4:
            raise InputError(f"a damaged TFLite file: {length} {what}")
        self.left -= length
        if self.left < 0:
            raise InputError(f"a damaged TFLite file: more than {_LARGEST} tensors and operators")
        return range(length)

    def model(self) -> Model:
        if self.root.Version() != _VERSION:
            raise InputError(f"schema version {self.root.Version()}; only version {_VERSION} is known")
        self.codes = [
            self.code(self.root.OperatorCodes(i))
            for i in self.count(self.root.OperatorCodesLength(), "operator codes")
        ]
        subgraphs = tuple(self.subgraph(i) for i in self.count(self.root.SubgraphsLength(), "subgraphs"))
        if not subgraphs:
            raise InputError("a damaged TFLite file: no subgraph")
        signatures = tuple(
            self.signature(self.root.SignatureDefs(i), subgraphs)
            for i in self.count(self.root.SignatureDefsLength(), "signatures")
        )
        return Model(subgraphs, signatures)

    def code(self, code: Any) -> tuple[str, str, int]:
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = BUILTINS.get(number, f"operator {number}")
        custom = _text(code.CustomCode()) if name == "CUSTOM" else ""
        return name, custom, int(code.Version())

    def subgraph(self, index: int) -> Subgraph:
        graph = self.root.Subgraphs(index)
        tensors = tuple(
            self.tensor(graph.Tensors(i), i) for i in self.count(graph.TensorsLength(), "tensors")
        )
        where = f"subgraph {index}"
        operators = tuple(
            self.operator(graph.Operators(i), i, tensors, where)
            for i in self.count(graph.OperatorsLength(), "operators")
        )
        inputs = self.tensors_at(graph.InputsAsNumpy(), tensors, where, optional=False)
        outputs = self.tensors_at(graph.OutputsAsNumpy(), tensors, where, optional=False)
        return Subgraph(index, _text(graph.Name()), tensors, operators, inputs, outputs)

    def tensors_at(
        self, numbers: Any, tensors: tuple[Tensor, ...], where: str, *, optional: bool = True
    ) -> tuple[int, ...]:
        found = _ints(numbers)
        self.count(len(found), "inputs")
        for number in found:
            if not (-1 if optional else 0) <= number < len(tensors):
                raise InputError(f"a damaged TFLite file: {where} uses tensor {number} of {len(tensors)}")
        return found

    def operator(self, op: Any, index: int, tensors: tuple[Tensor, ...], where: str) -> Operator:
        opcode = op.OpcodeIndex()
        if not 0 <= opcode < len(self.codes):
            raise InputError(f"a damaged TFLite file: operator {index} of {where} has no operator code")
        name, custom, version = self.codes[opcode]
        where = (
            f"operator {index} ({custom or name}) of {where}"
            if where != "subgraph 0"
            else (f"operator {index} ({custom or name})")
        )
        inputs = self.tensors_at(op.InputsAsNumpy(), tensors, where)
        outputs = self.tensors_at(op.OutputsAsNumpy(), tensors, where, optional=False)
        named = next((tensors[i].name for i in outputs if tensors[i].name), "")
        custom_options = op.CustomOptionsAsNumpy()
        return Operator(
            index,
            name,
            custom,
            version,
            inputs,
            outputs,
            _options(op),
            custom_options.tobytes() if isinstance(custom_options, np.ndarray) else b"",
            f"{where} at '{named}'" if named else where,
        )

    def tensor(self, tensor: Any, index: int) -> Tensor:
        name = _text(tensor.Name())
        where = f"tensor '{name}'" if name else f"tensor {index}"
        shape, signature = _ints(tensor.ShapeAsNumpy()), _ints(tensor.ShapeSignatureAsNumpy())
        if len(shape) > TENSOR_RANK or any(size < 0 for size in shape):
            raise InputError(f"a damaged TFLite file: {where} has shape {list(shape)[:8]}")
        if math.prod(max(size, 1) for size in shape) > TENSOR_ELEMENTS:
            raise InputError(f"a damaged TFLite file: {where} has too many elements: {list(shape)}")
        if len(signature) != len(shape) or any(size < -1 for size in signature):
            signature = shape
        kind = TENSOR_TYPES.get(tensor.Type(), f"type {tensor.Type()}")
        quantization = _quantization(tensor.Quantization(), shape, kind, where)
        decode = self.constant(tensor, shape, kind, where)
        variable = bool(tensor.IsVariable())
        return Tensor(index, name, shape, signature, kind, quantization, variable, decode)

    def constant(
        self, tensor: Any, shape: tuple[int, ...], kind: str, where: str
    ) -> Callable[[], Array] | None:
        """What decodes the tensor's buffer; None where it is empty."""
        number = tensor.Buffer()
        if not 0 <= number < self.root.BuffersLength():
            raise InputError(f"a damaged TFLite file: {where} has buffer {number}")
        data = self.buffer(self.root.Buffers(number), where)
        if not len(data):
            return None
        if kind not in DTYPES:
            # Strings are only met in hash tables and the like, whose operators are refused by name.
            return None
        sparsity = tensor.Sparsity()
        if sparsity is None:
            elements, needed = _decoder(data, kind, math.prod(shape))
            if len(data) != needed:
                raise InputError(
                    f"a damaged TFLite file: {where} has {len(data)} bytes, its shape {list(shape)} "
                    f"of {kind} needs {needed}"
                )
            return lambda: elements().reshape(shape)
        return lambda: densify(sparsity, data, kind, shape, where)

    def buffer(self, buffer: Any, where: str) -> Array:
        """The bytes of a buffer, which may lie behind the flatbuffer where that would be too large."""
        if buffer.Offset() > 1:
            start, size = buffer.Offset(), buffer.Size()
            if start + size > len(self.data):
                raise InputError(f"a damaged TFLite file: the data of {where} lies behind its end")
            return np.frombuffer(self.data, np.uint8, size, start)
        data = buffer.DataAsNumpy()
        return data if isinstance(data, np.ndarray) else np.zeros(0, np.uint8)

    def signature(self, signature: Any, subgraphs: tuple[Subgraph, ...]) -> Signature:
        key, number = _text(signature.SignatureKey()), signature.SubgraphIndex()
        if not 0 <= number < len(subgraphs):
            raise InputError(f"a damaged TFLite file: signature '{key}' is of subgraph {number}")
        inputs = {m.TensorIndex(): _text(m.Name()) for m in self.maps(signature, "Inputs")}
        outputs = {m.TensorIndex(): _text(m.Name()) for m in self.maps(signature, "Outputs")}
        return Signature(key, number, inputs, outputs)

    def maps(self, signature: Any, which: str) -> Iterator[Any]:
        for i in self.count(getattr(signature, f"{which}Length")(), "signature names"):
            yield getattr(signature, which)(i)


def _decoder(data: Array, kind: str, count: int) -> tuple[Callable[[], Array], int]:
    """What makes ``count`` elements of a buffer, and the bytes that they take."""
    dtype = DTYPES[kind]
    bits = PACKED.get(kind)
    if bits is None:
        # The flatbuffer need not align what it holds; numpy does not mind, others do.
        return lambda: np.frombuffer(data.tobytes(), dtype), count * dtype.itemsize
    return lambda: _unpack(data, bits, dtype)[:count], -(-count * bits // 8)


def _unpack(data: Array, bits: int, dtype: Any) -> Array:
    """Elements that share bytes, one to a byte; signed ones with their sign."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    elements = (data[:, None] >> shifts & ((1 << bits) - 1)).reshape(-1).astype(np.int16)
    if dtype == np.int8:
        elements -= (elements >= 1 << (bits - 1)).astype(np.int16) << bits
    return elements.astype(dtype)


def _options(op: Any) -> dict[str, Any]:
    """The options of an operator by the schema's names; empty where there are none."""
    for numbered, names, table in (
        (op.BuiltinOptionsType(), OPTION_TYPES, op.BuiltinOptions),
        (op.BuiltinOptions2Type(), OPTION_TYPES_2, op.BuiltinOptions2),
    ):
        name, found = names.get(numbered, "NONE"), table()
        if name != "NONE" and found is not None:
            options = getattr(generated, name)()
            options.Init(found.Bytes, found.Pos)
            return dict(vars(getattr(generated, f"{name}T").InitFromObj(options)))
    return {}


def _quantization(parameters: Any, shape: tuple[int, ...], kind: str, where: str) -> Quantization | None:
    if parameters is None or not parameters.ScaleLength():
        return None
    if parameters.DetailsType():
        raise UnsupportedError(f"{where}: block-wise or custom quantization is not supported")
    scale = np.array(parameters.ScaleAsNumpy(), np.float32)
    zero_point = np.array(_ints(parameters.ZeroPointAsNumpy()) or (0,), np.int64)
    axis = parameters.QuantizedDimension()
    if zero_point.size != scale.size:
        if zero_point.size != 1:
            raise InputError(
                f"a damaged TFLite file: {where} has {scale.size} scales and {zero_point.size} zero points"
            )
        zero_point = np.repeat(zero_point, scale.size)
    if scale.size > 1 and not (0 <= axis < len(shape) and shape[axis] == scale.size):
        raise InputError(
            f"a damaged TFLite file: {where} of shape {list(shape)} has {scale.size} scales on axis {axis}"
        )
    low, high = _ZERO_POINTS.get(kind, (-(1 << 62), 1 << 62))
    if (zero_point < low).any() or (zero_point > high).any():
        raise InputError(f"a damaged TFLite file: {where} has a zero point that no {kind} can be")
    if not np.isfinite(scale).all() or (scale < 0).any():
        raise InputError(f"a damaged TFLite file: {where} has a scale that is no positive number")
    return Quantization(scale, zero_point, axis) if scale.any() else None


def _ints(numbers: Any) -> tuple[int, ...]:
    """A vector of integers; what the generated code gives for a missing one is the number 0."""
    return tuple(int(n) for n in numbers) if isinstance(numbers, np.ndarray) else ()


def _text(raw: bytes | None) -> str:
    text = "" if raw is None else raw.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
