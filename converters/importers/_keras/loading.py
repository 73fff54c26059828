"""Load a Keras model or a SavedModel, after what it holds has been looked at."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from graphopt.converters.importers import _guard
from graphopt.converters.importers._keras import inspection, operations
from graphopt.converters.importers._keras.subject import Port, Subject, unique
from graphopt.errors import GraphoptError, InputError, MissingExtraError, UnsupportedError
from graphopt.import_options import ImportOptions
from graphopt.runtime.evaluate import first_line

__all__ = ["from_model", "load"]


def load(source: Path, options: ImportOptions) -> Subject:
    """What ``source`` holds, ready to be traced.

    Raises:
        InputError, UnsupportedError: It cannot be loaded; one line says why and what to do.
    """
    if source.is_dir():
        return _saved_model(source, options)
    if not source.is_file():
        raise InputError(f"'{source}': no such file")
    inspection.inspect_file(source, options)
    import keras

    if source.suffix.lower() != ".keras" and importlib.util.find_spec("tf_keras") is not None:
        importlib.import_module("tf_keras")  # before the guard: what it does on import is its own
    custom = {spec.rpartition(":")[2]: _named(spec) for spec in options.custom_objects}
    with _guard.loading(str(source), "Keras", pickles=True), operations.readable(source) as (file, known):
        try:
            model = keras.models.load_model(
                file, custom_objects={**known, **custom}, compile=False, safe_mode=not options.allow_code
            )
        except GraphoptError:
            raise
        except Exception as error:
            unknown = re.search(r"Could not locate class '([^']+)'|Unknown layer: '([^']+)'", str(error))
            if unknown:
                name = unknown[1] or unknown[2]
                raise InputError(
                    f"'{source}': class '{name}' is none of Keras: say --custom-object package.module:{name} "
                    "to import and run it, or export the model as a SavedModel (model.export)"
                ) from error
            if source.suffix.lower() == ".keras":
                raise
            return _keras_2(source, custom, error)  # under the same guard
    return from_model(model)


def _named(spec: str) -> Any:
    module, _, name = spec.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--custom-object {spec}: cannot be imported: {first_line(error)}") from error


def _keras_2(source: Path, custom: dict[str, Any], refused: Exception) -> Subject:
    """A file that Keras 3 refuses is read by Keras 2, if it is there."""
    if importlib.util.find_spec("tf_keras") is None:
        raise MissingExtraError(
            f"'{source}': Keras 3 cannot load it ({first_line(refused)}); a Keras 2 file", "keras2"
        ) from refused
    import tf_keras

    try:
        model = tf_keras.models.load_model(source, custom_objects=custom, compile=False)
    except Exception as error:
        raise InputError(
            f"'{source}': neither Keras 3 ({first_line(refused)}) nor Keras 2 ({first_line(error)}) "
            "can load it"
        ) from error
    return from_model(model, {"tf_keras": tf_keras.__version__})


def from_model(model: Any, versions: dict[str, str] | None = None) -> Subject:
    """A live model of Keras 3 or Keras 2.

    Raises:
        UnsupportedError: It does not say what it takes.
    """
    import keras
    import tensorflow as tf

    tensors = getattr(model, "inputs", None)
    if not tensors:
        raise UnsupportedError(
            "the model does not say what it takes; call it once on data, or export it as a SavedModel "
            "(model.export) and import that"
        )
    if any(getattr(layer, "stateful", False) for layer in _layers(model)):
        raise UnsupportedError("a layer is stateful, which keeps its state between calls; build it without")
    names = unique([str(t.name).split(":")[0] for t in tensors])
    ports = tuple(
        Port(name, tuple(t.shape), tf.as_dtype(t.dtype).name) for name, t in zip(names, tensors, strict=True)
    )
    structure = getattr(model, "_inputs_struct", None)

    def call(*given: Any) -> list[Any]:
        packed = tf.nest.pack_sequence_as(structure, list(given)) if structure is not None else list(given)
        single = len(given) == 1 and not isinstance(structure, dict | list | tuple)
        result = model(given[0] if single else packed, training=False)
        return [tf.identity(t) for t in tf.nest.flatten(result)]

    found = versions or {"keras": keras.__version__}
    half = any("16" in str(getattr(layer, "compute_dtype", "")) for layer in _layers(model))
    return Subject(call, ports, _output_names(model), {**found, "tensorflow": tf.__version__}, half)


def _layers(model: Any) -> list[Any]:
    flat = getattr(model, "_flatten_layers", None)
    return list(flat()) if flat is not None else list(model.layers)


def _output_names(model: Any) -> tuple[str, ...]:
    """Keys of a dict of outputs, else the names of the layers that make them."""
    import tensorflow as tf

    struct = getattr(model, "_outputs_struct", None)
    if isinstance(struct, dict) and all(not isinstance(v, dict | list | tuple) for v in struct.values()):
        return tuple(sorted(struct))  # the order in which TensorFlow flattens a dict
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    count = len(tf.nest.flatten(model.outputs))
    if names is None or len(names) != count:
        names = [f"output_{i}" for i in range(count)]
    return unique([str(name) for name in names])


def _saved_model(folder: Path, options: ImportOptions) -> Subject:
    """A signature of a SavedModel."""
    inspection.inspect_saved_model(folder, options)
    import tensorflow as tf

    with _guard.loading(str(folder), "TensorFlow", pickles=True):
        loaded = tf.saved_model.load(str(folder))
    signatures = dict(loaded.signatures)
    name = options.signature or ("serving_default" if "serving_default" in signatures else "serve")
    if name not in signatures:
        known = ", ".join(sorted(signatures)) or "none"
        raise InputError(f"'{folder}': has no signature '{name}'; --signature names one of: {known}")
    function = signatures[name]
    specs = function.structured_input_signature[1]
    ports = tuple(
        Port(key, _shape(spec), spec.dtype.name)
        for key, spec in sorted(specs.items(), key=_position(function))
    )
    outputs = tuple(sorted(function.structured_outputs, key=_numbered))

    def call(*given: Any) -> list[Any]:
        result = function(**{port.name: value for port, value in zip(ports, given, strict=True)})
        return [tf.identity(result[key]) for key in outputs]

    subject = Subject(call, ports, outputs, {"tensorflow": tf.__version__}, _computes_in_half(function))
    _kept_alive.append(loaded)
    return subject


#: A signature does not keep the variables of what it belongs to.
_kept_alive: list[Any] = []


def _numbered(name: str) -> list[tuple[int, str]]:
    """A key that puts ``output_10`` behind ``output_9``; the file keeps no order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _computes_in_half(function: Any) -> bool:
    """Whether an operator of a signature makes 16-bit floats."""
    from tensorflow.core.framework import types_pb2

    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(node for f in definition.library.function for node in f.node_def)]
    halves = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
    return any(value.type in halves for node in nodes for value in node.attr.values())


def _shape(spec: Any) -> tuple[int | None, ...]:
    if spec.shape.rank is None:
        raise UnsupportedError(f"input '{spec.name}' has no rank")
    return tuple(spec.shape)


def _position(function: Any) -> Any:
    """The order in which the signature was written, as far as its graph tells."""
    order = [tensor.name.split(":")[0] for tensor in function.inputs]

    def key(item: tuple[str, Any]) -> tuple[int, str]:
        names = [i for i, name in enumerate(order) if name in (item[0], item[1].name)]
        return (names[0] if names else len(order), item[0])

    return key
