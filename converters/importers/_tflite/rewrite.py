"""The same file in a form whose every operator LiteRT's own kernels compute, on the inputs of the ONNX model.

LiteRT cannot run three things as the ONNX model means them, so they are rewritten before it runs:

- Variables become inputs and outputs, since nothing can read or set them from outside.
- MediaPipe's Convolution2DTransposeBias, which has no kernel outside MediaPipe, becomes the builtin
  TRANSPOSE_CONV, of which it is the older form.
- Weights of 8 bits below activations of 32 (dynamic-range quantization) become the float32 numbers they stand
  for: LiteRT would round the activations to 8 bits on the way, by a rule that differs from one of its kernel
  libraries to the next; the ONNX model does not.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

import flatbuffers
import numpy as np

from graphopt.converters.importers._tflite.context import dequantized
from graphopt.converters.importers._tflite.model import Model, Operator, Tensor
from graphopt.converters.importers._tflite.operators.custom import transpose_bias_options
from graphopt.converters.importers._tflite.schema import generated

__all__ = ["Rewriter", "has_dynamic_range", "has_variables"]

_VARIABLES: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
_CUSTOM: Final = "Convolution2DTransposeBias"
#: Operators that only look up or convert their quantized input.
_EXACT: Final = frozenset({"DEQUANTIZE", "EMBEDDING_LOOKUP", "GATHER", "QUANTIZE", "CAST", "DENSIFY"})


def has_variables(file: Model) -> bool:
    """Whether the file keeps variables."""
    return any(op.name == "READ_VARIABLE" for graph in file.subgraphs for op in graph.operators)


def has_custom(file: Model) -> bool:
    """Whether the file holds the custom operator that can be rewritten."""
    return any(op.custom == _CUSTOM for graph in file.subgraphs for op in graph.operators)


def has_dynamic_range(file: Model) -> bool:
    """Whether weights of few bits meet floating-point activations."""
    return any(_hybrid(graph.tensors, op) for graph in file.subgraphs for op in graph.operators)


def _hybrid(tensors: tuple[Tensor, ...], op: Operator) -> list[int]:
    """Places of the inputs that are quantized weights of an operator on floating-point numbers."""
    if op.name in _EXACT or not op.inputs or not any(tensors[i].floating for i in op.outputs):
        return []
    return [
        place
        for place, index in enumerate(op.inputs)
        if index >= 0 and tensors[index].quantized and tensors[index].array is not None
    ]


class Rewriter:
    """Takes a file apart and writes it anew.

    Args:
        content: The flatbuffer.
        file: The same, as read.
        subgraph: The subgraph that is run.
    """

    def __init__(self, content: bytes, file: Model, subgraph: int) -> None:
        self.file, self.subgraph = file, subgraph
        self.made = generated.ModelT.InitFromPackedBuf(bytearray(content))

    def content(self) -> bytes:
        """The new flatbuffer."""
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.made.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _constant(self, graph: Any, name: str, array: np.ndarray, kind: int) -> int:
        """A new constant tensor of a subgraph; its number."""
        buffer = generated.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self.made.buffers.append(buffer)
        tensor = generated.TensorT()
        tensor.name, tensor.type, tensor.shape = name.encode(), kind, np.array(array.shape, np.int32)
        tensor.buffer = len(self.made.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def _code(self, number: int, version: int) -> int:
        code = generated.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
        self.made.operatorCodes.append(code)
        return len(self.made.operatorCodes) - 1

    def float_weights(self) -> None:
        """Dynamic-range weights become the numbers they stand for."""
        for graph, read in zip(self.made.subgraphs, self.file.subgraphs, strict=True):
            done: dict[int, int] = {}
            for op, known in zip(graph.operators, read.operators, strict=True):
                for place in _hybrid(read.tensors, known):
                    index = known.inputs[place]
                    if index not in done:
                        tensor = read.tensors[index]
                        assert tensor.array is not None
                        array = dequantized(tensor.array, tensor)
                        done[index] = self._constant(graph, tensor.name, array, generated.TensorType.FLOAT32)
                    op.inputs[place] = done[index]
                if "asymmetricQuantizeInputs" in known.options:
                    op.builtinOptions.asymmetricQuantizeInputs = False

    def builtin_transpositions(self) -> None:
        """Convolution2DTransposeBias becomes TRANSPOSE_CONV."""
        code = None
        for graph, read in zip(self.made.subgraphs, self.file.subgraphs, strict=True):
            for op, known in zip(graph.operators, read.operators, strict=True):
                if known.custom != _CUSTOM:
                    continue
                if code is None:
                    code = self._code(generated.BuiltinOperator.TRANSPOSE_CONV, 3)
                shape = np.array(read.tensors[known.outputs[0]].shape, np.int32)
                size = self._constant(graph, "output shape", shape, generated.TensorType.INT32)
                data, weight, *bias = known.inputs
                op.opcodeIndex, op.inputs = code, [size, weight, data, *bias]
                op.customOptions = None
                op.builtinOptionsType = generated.BuiltinOptions.TransposeConvOptions
                options = generated.TransposeConvOptionsT()
                for name, value in transpose_bias_options(known).items():
                    setattr(options, name, value)
                op.builtinOptions = options

    def open_variables(self) -> None:
        """What is read of a variable first becomes an input, what it holds at the end an output."""
        graph, read = self.made.subgraphs[self.subgraph], self.file.subgraphs[self.subgraph]
        handles: dict[int, str] = {}
        holds: dict[str, int] = {}
        same: dict[int, int] = {}
        kept, inputs = [], []
        for op, known in zip(graph.operators, read.operators, strict=True):
            op.inputs = [same.get(index, index) for index in op.inputs if index is not None]
            if known.name == "VAR_HANDLE":
                handles[known.outputs[0]] = str(known.options.get("sharedName"))
            elif known.name == "READ_VARIABLE":
                name, index = handles[known.inputs[0]], known.outputs[0]
                if name in holds:
                    same[index] = holds[name]
                else:
                    holds[name] = index
                    inputs.append((name, index))
            elif known.name == "ASSIGN_VARIABLE":
                holds[handles[known.inputs[0]]] = same.get(known.inputs[1], known.inputs[1])
            elif known.name not in _VARIABLES:
                kept.append(op)
        graph.operators = kept
        graph.inputs = [*graph.inputs, *(index for _, index in inputs)]
        graph.outputs = [*(same.get(i, i) for i in graph.outputs), *(holds[name] for name, _ in inputs)]
        self.made.signatureDefs = None

    def cut_out(self, custom: Container[str]) -> list[Operator]:
        """What these custom operators read becomes outputs, what they make inputs; behind the others."""
        graph, read = self.made.subgraphs[self.subgraph], self.file.subgraphs[self.subgraph]
        cut = [known for known in read.operators if known.custom in custom]
        pairs = zip(graph.operators, read.operators, strict=True)
        graph.operators = [op for op, known in pairs if known.custom not in custom]
        graph.inputs = [*graph.inputs, *(index for known in cut for index in known.outputs)]
        graph.outputs = [*graph.outputs, *(index for known in cut for index in known.inputs)]
        self.made.signatureDefs = None
        return cut
