"""Export a Keras model or a SavedModel: trace it, let tf2onnx translate that, put the user's names back.

``tf2onnx.convert.from_keras`` is not used: it fails on every Sequential of Keras 3.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import io
from graphopt.conversion import Exported, Tolerance
from graphopt.converters.importers._interface import ordered_inputs
from graphopt.converters.importers._keras.subject import Port, Subject
from graphopt.errors import UnsupportedError
from graphopt.import_options import ImportOptions
from graphopt.runtime.evaluate import first_line

__all__ = ["export", "export_subject"]

#: The newest that tf2onnx writes.
_OPSET = 18


def export(source: str, options: ImportOptions, folder: Path) -> Exported:
    """Load ``source`` and export it into ``folder``; called in the child.

    Raises:
        InputError, UnsupportedError: It cannot be loaded or exported; one line says why and what to do.
    """
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    from graphopt.converters.importers._keras import loading

    return export_subject(loading.load(Path(source), options), folder)


def export_subject(subject: Subject, folder: Path) -> Exported:
    """Trace a model and write it into ``folder``.

    Raises:
        UnsupportedError: tf2onnx cannot translate it; names the operators.
    """
    import tf2onnx

    from graphopt.converters.importers._keras import operators

    proto = _translated(subject, operators.HANDLERS)
    model = _named(io.from_proto(proto), subject)
    target = folder / "raw.onnx"
    io.save(model, target)
    versions = {**subject.versions, "tf2onnx": tf2onnx.__version__}
    tolerance = Tolerance(rtol=1e-3 if subject.half else 1e-4)
    return Exported(target, subject.run, versions, tolerance=tolerance, notes=subject.notes)


def _translated(subject: Subject, handlers: dict[str, Any]) -> onnx.ModelProto:
    import tensorflow as tf
    import tf2onnx

    from graphopt.converters.importers._keras import layers

    specs = [tf.TensorSpec(port.shape, port.dtype, _traced(i)) for i, port in enumerate(subject.inputs)]
    function = tf.function(subject.call, input_signature=specs, autograph=False)
    try:
        proto: onnx.ModelProto
        with _failures() as failures, layers.traceable():
            proto, external = tf2onnx.convert.from_function(
                function, input_signature=specs, opset=_OPSET, custom_op_handlers=handlers
            )
    except Exception as error:  # tf2onnx raises anything
        raise UnsupportedError(f"tf2onnx cannot translate it: {first_line(error)}") from error
    assert not external
    _refuse_foreign(proto)
    if failures:
        raise UnsupportedError(
            f"tf2onnx cannot translate it: {failures[0]}; axes of a fixed size often help, as that of time "
            "in TimeDistributed"
        )
    return proto


@contextlib.contextmanager
def _failures() -> Iterator[list[str]]:
    """What tf2onnx fails at: it says so in its log, and goes on with what is left."""
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage().partition(" (fct=")[0].splitlines()[0])  # type: ignore[method-assign]
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _traced(index: int) -> str:
    """What an input is called in the trace."""
    return f"input_{index}"


def _refuse_foreign(proto: onnx.ModelProto) -> None:
    """tf2onnx leaves operators that it does not know as they are, and reports success."""
    foreign: dict[str, str] = {}
    pending = [proto.graph]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
                foreign.setdefault(node.op_type, node.name)
            elif node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
                foreign.setdefault(f"{node.domain}.{node.op_type}", node.name)
            pending += [a.g for a in node.attribute if a.HasField("g")]
    if foreign:
        named = ", ".join(f"{op} ('{name}')" for op, name in foreign.items())
        raise UnsupportedError(f"no ONNX form is known for the TensorFlow operators {named}")


def _named(model: ir.Model, subject: Subject) -> ir.Model:
    """The user's names for inputs, outputs and free axes."""
    names = [_traced(index) for index in range(len(subject.inputs))]
    inputs = ordered_inputs(model, names, [_dtype(port) for port in subject.inputs])
    for value, port in zip(inputs, subject.inputs, strict=True):
        value.name, value.shape = port.name, ir.Shape(_axes(port))
    taken = {port.name for port in subject.inputs}
    for index, (value, name) in enumerate(zip(list(model.graph.outputs), subject.outputs, strict=True)):
        named = f"{name}_output" if name in taken else name
        if value in inputs or value in model.graph.outputs[:index]:
            node = ir.node("Identity", [value])
            model.graph.append(node)
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            model.graph.outputs[index] = value = node.outputs[0]
        value.name = named
        _name_output_axes(value, subject)
    return model


def _name_output_axes(value: ir.Value, subject: Subject) -> None:
    """The first axis of an output is the batch if the inputs' is free; others keep tf2onnx's names."""
    if value.shape is None or not value.shape.rank():
        return
    batch = any(port.shape and port.shape[0] is None for port in subject.inputs)
    axes: list[Any] = list(value.shape)
    if batch and not isinstance(axes[0], int):
        axes[0] = "batch"
    value.shape = ir.Shape(axes)


def _axes(port: Port) -> list[int | str]:
    """A free first axis is ``batch``, others are called after the input."""
    return [
        size if size is not None else "batch" if number == 0 else f"{port.name}_{number}"
        for number, size in enumerate(port.shape)
    ]


def _dtype(port: Port) -> ir.DataType:
    import tensorflow as tf

    return ir.DataType.from_numpy(np.dtype(tf.as_dtype(port.dtype).as_numpy_dtype))
