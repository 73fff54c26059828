"""Small TFLite models written here, without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = ["Graph", "Op", "Tensor", "constant", "quantized", "signature", "write"]

TYPES = {
    np.dtype(np.float32): "FLOAT32",
    np.dtype(np.float16): "FLOAT16",
    np.dtype(np.float64): "FLOAT64",
    np.dtype(np.int8): "INT8",
    np.dtype(np.int16): "INT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.uint32): "UINT32",
    np.dtype(np.bool_): "BOOL",
}


@dataclasses.dataclass
class Tensor:
    """A tensor of a small model.

    ``array`` gives type and shape; it is the content of a constant, else of what is fed.
    """

    array: np.ndarray
    constant: bool = False
    scale: Sequence[float] = ()
    zero: Sequence[int] = ()
    axis: int = 0
    signature: Sequence[int] | None = None
    name: str = ""
    type: str = ""
    variable: bool = False
    data: bytes | None = None

    def pack(self, buffers: list[Any], name: str) -> Any:
        made = schema.TensorT()
        made.name = (self.name or name).encode()
        made.shape = np.array(self.array.shape, np.int32)
        made.shapeSignature = None if self.signature is None else np.array(self.signature, np.int32)
        made.type = getattr(schema.TensorType, self.type or TYPES[self.array.dtype])
        made.isVariable = self.variable
        if len(self.scale):
            q = made.quantization = schema.QuantizationParametersT()
            q.scale = np.array(self.scale, np.float32)
            q.zeroPoint = np.array(self.zero or [0] * len(self.scale), np.int64)
            q.quantizedDimension = self.axis
        if self.constant:
            buffer = schema.BufferT()
            content = self.array.tobytes() if self.data is None else self.data
            buffer.data = np.frombuffer(content, np.uint8)
            buffers.append(buffer)
            made.buffer = len(buffers) - 1
        return made


@dataclasses.dataclass
class Op:
    """An operator on tensors by number; ``kind`` names its options, without "Options"."""

    name: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    kind: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = 1
    custom: str = ""
    custom_options: bytes = b""

    def pack(self, codes: list[Any]) -> Any:
        code = schema.OperatorCodeT()
        number = getattr(schema.BuiltinOperator, self.name)
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.version, code.customCode = self.version, self.custom.encode() or None
        codes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = len(codes) - 1
        made.inputs, made.outputs = np.array(self.inputs, np.int32), np.array(self.outputs, np.int32)
        made.customOptions = np.frombuffer(self.custom_options, np.uint8) if self.custom_options else None
        if self.kind and hasattr(schema.BuiltinOptions2, f"{self.kind}Options"):
            made.builtinOptions2Type = getattr(schema.BuiltinOptions2, f"{self.kind}Options")
            made.builtinOptions2 = getattr(schema, f"{self.kind}OptionsT")()
            vars(made.builtinOptions2).update(self.options)
        elif self.kind:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{self.kind}Options")
            made.builtinOptions = getattr(schema, f"{self.kind}OptionsT")()
            for name, value in self.options.items():
                assert hasattr(made.builtinOptions, name)
                setattr(made.builtinOptions, name, value)
        return made


@dataclasses.dataclass
class Graph:
    """A subgraph; the tensors that are neither constant nor made are its inputs, unless it says so."""

    tensors: Sequence[Tensor]
    ops: Sequence[Op]
    outputs: Sequence[int] | None = None
    inputs: Sequence[int] | None = None

    def given(self) -> list[int]:
        if self.inputs is not None:
            return list(self.inputs)
        made = {i for op in self.ops for i in op.outputs}
        return [i for i, t in enumerate(self.tensors) if not t.constant and i not in made and not t.variable]

    def pack(self, codes: list[Any], buffers: list[Any]) -> Any:
        made = schema.SubGraphT()
        made.name = b"main"
        made.tensors = [tensor.pack(buffers, f"t{i}") for i, tensor in enumerate(self.tensors)]
        made.operators = [op.pack(codes) for op in self.ops]
        made.inputs = np.array(self.given(), np.int32)
        outputs = self.ops[-1].outputs if self.outputs is None else self.outputs
        made.outputs = np.array(outputs, np.int32)
        return made


def write(*graphs: Graph, signatures: Sequence[Any] = ()) -> bytes:
    """The flatbuffer."""
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    model.subgraphs = [graph.pack(model.operatorCodes, model.buffers) for graph in graphs]
    model.signatureDefs = list(signatures) or None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def signature(key: str, inputs: Mapping[str, int], outputs: Mapping[str, int], subgraph: int = 0) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = key.encode(), subgraph
    for field, names in (("inputs", inputs), ("outputs", outputs)):
        maps = []
        for name, index in names.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            maps.append(entry)
        setattr(made, field, maps)
    return made


def constant(array: Any, dtype: type | None = None, **more: Any) -> Tensor:
    """A constant tensor."""
    return Tensor(np.asarray(array, dtype), constant=True, **more)


def quantized(array: np.ndarray, scale: float, zero: int = 0, **more: Any) -> Tensor:
    """A tensor whose numbers stand for ``scale * (number - zero)``."""
    return Tensor(array, scale=[scale], zero=[zero], **more)
