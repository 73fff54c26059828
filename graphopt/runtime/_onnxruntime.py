"""One onnxruntime session: weights handed over without serializing them, every element type as numpy.

onnxruntime's Python binding knows no bfloat16, float8 or sub-byte arrays; they travel as their bytes.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import limits
from graphopt.errors import UnsupportedError
from graphopt.graph import release
from graphopt.runtime._weights import Structure

__all__ = ["InputsRefused", "NoKernelError", "OrtSession", "Settings", "first_line"]

_PROVIDERS = ["CPUExecutionProvider"]
#: Weights below which one thread is enough, and packed copies of them cost nothing.
_SMALL_MODEL = 8 * limits.MIB
#: Threads for a larger model: samples are small, and threads that wait for work cost more than they gain.
_MOST_THREADS = 4
#: Nodes above which onnxruntime may not plan which buffers to use again: its search is quadratic in the nodes
#: (3.4 s of 4,000 nodes, 0.2 s without it; a buffer is still freed after its last use).
_MOST_PLANNED_NODES = 500
_CPP_SIGNATURE = re.compile(r"/onnxruntime_src/\S*/(\S+:\d+) .*?\)(?: const)?(?: \[with [^\]]*\])? (?=\S)")


class InputsRefused(UnsupportedError):  # noqa: N818 (says what happened)
    """The model is loaded, but does not run on these inputs (names, dtypes, sizes or values)."""


class NoKernelError(UnsupportedError):
    """onnxruntime cannot execute this model; another engine might."""


@dataclass(frozen=True)
class Settings:
    """How sessions are built.

    Attributes:
        optimize: Whether onnxruntime's graph optimizations are on.
        threads: Threads inside an operator; None takes as many as the model's size asks for.
        lean: Save memory: no packed copies of weights, no memory arena.
    """

    optimize: bool = False
    threads: int | None = None
    lean: bool = False


class OrtSession:
    """A structure loaded into onnxruntime.

    Raises:
        NoKernelError: onnxruntime has no kernel, or does not know the IR version, opset or domain.
        UnsupportedError: onnxruntime found the model invalid.
    """

    def __init__(self, structure: Structure, settings: Settings) -> None:
        options = _session_options(settings)
        _fit(options, structure, settings)
        folder = structure.folder()
        if folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            names, values = _in_memory_weights(structure)
            if names:
                options.add_external_initializers(names, values)
            self._session = _load(structure.proto, options)
        except _errors() as error:
            raise _load_error(error) from error
        inputs = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._inputs = {i.name: i.type for i in inputs}
        self._outputs = {o.name: o.type for o in self._session.get_outputs()}

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name: arrays, lists for sequences, None for an absent optional.

        Raises:
            InputsRefused: The model does not run on this feed.
            NoKernelError: Only the run showed that onnxruntime cannot execute the model.
        """
        types = [*(self._inputs[name] for name in feed), *self._outputs.values()]
        try:
            if any(_has_no_numpy_type(t) for t in types):
                return self._run_on_values(feed)
            return dict(zip(self._outputs, self._session.run(None, dict(feed)), strict=True))
        except _errors() as error:
            if type(error).__name__ == "NotImplemented":
                raise NoKernelError(f"onnxruntime cannot run the model: {first_line(error)}") from error
            raise InputsRefused(f"the model does not run on these inputs: {first_line(error)}") from error

    def _run_on_values(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        types = {self._inputs[name] for name in feed} | set(self._outputs.values())
        if not all(t.startswith("tensor(") for t in types) or "tensor(string)" in types:
            listed = ", ".join(sorted(types))
            raise NoKernelError(f"onnxruntime's Python API cannot exchange these types: {listed}")
        given = {name: _value_of_array(np.asarray(array)) for name, array in feed.items()}
        made = self._session.run_with_ort_values(None, given)
        return {name: _array_of_value(value) for name, value in zip(self._outputs, made, strict=True)}


def _load(proto: onnx.ModelProto, options: Any) -> Any:
    """A session; a newer IR version than onnxruntime reads is lowered, since it does not change a number."""
    import onnxruntime as ort

    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=_PROVIDERS)
    except _errors() as error:
        newest = re.search(r"max supported IR version: (\d+)", str(error))
        if newest is None:
            raise
        lowered = onnx.ModelProto()
        lowered.CopyFrom(proto)
        lowered.ir_version = int(newest[1])
        return ort.InferenceSession(lowered.SerializeToString(), options, providers=_PROVIDERS)


def _session_options(settings: Settings) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if settings.optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # below fatal, failures come as exceptions and need not be printed too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    if settings.lean:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    return options


def _fit(options: Any, structure: Structure, settings: Settings) -> None:
    """Set what depends on the size of the model; a few runs do not pay for packed copies of large weights."""
    small = structure.weight_bytes() < _SMALL_MODEL
    options.intra_op_num_threads = settings.threads or (
        1 if small else min(_MOST_THREADS, os.cpu_count() or 1)
    )
    options.enable_mem_reuse = len(structure.proto.graph.node) <= _MOST_PLANNED_NODES
    if settings.lean or not (small or settings.optimize):
        options.add_session_config_entry("session.disable_prepacking", "1")


def _in_memory_weights(structure: Structure) -> tuple[list[str], list[Any]]:
    """Placeholders that onnxruntime cannot map from the structure's folder itself, with their data."""
    folder = structure.folder()
    names, values = [], []
    for name in structure.placeholders():
        tensor = structure.tensors[name]
        if isinstance(tensor, ir.ExternalTensor) and _is_below(tensor, folder):
            continue
        names.append(name)
        values.append(_value_of_tensor(tensor))
        release(tensor)
    return names, values


def _is_below(tensor: ir.ExternalTensor, folder: str | None) -> bool:
    return bool(tensor.base_dir) and os.path.abspath(tensor.base_dir) == folder  # noqa: PTH100


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its classes have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)  # the last three: pybind's conversions


def _load_error(error: Exception) -> UnsupportedError:
    message = f"onnxruntime cannot load the model: {first_line(error)}"
    invalid = type(error).__name__ in ("InvalidGraph", "InvalidArgument", "InvalidProtobuf")
    if invalid or re.search(r"Type Error|TypeInferenceError|ShapeInferenceError", str(error)):
        return UnsupportedError(message)
    return NoKernelError(message)


def first_line(error: BaseException) -> str:
    """The first line of an engine's message, without error codes and C++ signatures, cut at 400 letters."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = _CPP_SIGNATURE.sub(r"\1 ", line, count=1)
    return line if len(line) <= 400 else f"{line[:399]}…"


def _has_no_numpy_type(ort_type: str) -> bool:
    return bool(re.search(r"\((?:bfloat16|float8\w*|u?int[24]|float4\w*)\)", ort_type))


def _value_of_tensor(tensor: ir.TensorProtocol) -> Any:
    import onnxruntime as ort

    if _travels_as_bytes(tensor.dtype):
        return _value_of_bytes(tensor.tobytes(), tensor.dtype, tuple(tensor.shape.numpy()))
    # not a view: the map behind it is released once onnxruntime has copied the data
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(tensor.numpy(), order="C"))


def _value_of_array(array: np.ndarray) -> Any:
    import onnxruntime as ort

    dtype = ir.DataType.from_numpy(array.dtype)
    if _travels_as_bytes(dtype):
        return _value_of_bytes(ir.Tensor(np.asarray(array, order="C")).tobytes(), dtype, array.shape)
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))  # a scalar stays one


def _travels_as_bytes(dtype: ir.DataType) -> bool:
    return _has_no_numpy_type(f"({dtype.name.lower()})")


def _value_of_bytes(data: bytes, dtype: ir.DataType, shape: tuple[int, ...]) -> Any:
    """An OrtValue of a dtype that numpy lacks; sub-byte elements lie packed at the start of its buffer."""
    import onnxruntime as ort

    buffer = np.zeros(shape, np.uint16 if dtype.bitwidth == 16 else np.uint8)
    buffer.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(buffer, dtype.value)


def _array_of_value(value: Any) -> np.ndarray:
    dtype, shape = ir.DataType(value.element_type()), tuple(value.shape())
    if not _travels_as_bytes(dtype):
        return np.array(value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    if dtype.bitwidth < 8:
        return ir.PackedTensor(np.frombuffer(data, np.uint8), dtype, shape=shape).numpy()
    return np.frombuffer(data, dtype.numpy()).reshape(shape)
