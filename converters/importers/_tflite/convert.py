"""A TFLite model as an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.analyses import shapes
from graphopt.converters.importers._tflite.builder import OPSET, OPSET_16_BITS, Builder
from graphopt.converters.importers._tflite.context import Context, State, onnx_type
from graphopt.converters.importers._tflite.model import Model, Operator, Signature, Subgraph, Tensor
from graphopt.converters.importers._tflite.registry import check_supported
from graphopt.errors import InputError

__all__ = ["Converted", "convert"]

_IR_VERSION = 10
#: What TensorFlow's exporter puts before the name of an input, and behind any name.
_PREFIX, _SUFFIX = "serving_default_", ":0"
_CALLS = (
    "initSubgraphIndex",
    "condSubgraphIndex",
    "bodySubgraphIndex",
    "thenSubgraphIndex",
    "elseSubgraphIndex",
    "subgraph",
    "decompositionSubgraphIndex",
)


@dataclass(frozen=True)
class Converted:
    """An ONNX model and what its inputs and outputs are in the file.

    Attributes:
        model: The ONNX model.
        subgraph: The subgraph that was converted.
        signature: Its names, if it has any.
        inputs: Names in the order of the subgraph's inputs; with the variables' content behind them.
        outputs: Names in the order of the subgraph's outputs; with the variables' new content behind them.
        variables: Names of the variables, in the order of the extra inputs and outputs.
        initial: What each holds before the first run; None where that is computed.
        notes: What the user should know.
    """

    model: ir.Model
    subgraph: Subgraph
    signature: Signature | None
    inputs: Sequence[str]
    outputs: Sequence[str]
    variables: Sequence[str]
    initial: Mapping[str, np.ndarray | None]
    notes: Sequence[str]


def convert(file: Model, signature: str | None = None) -> Converted:
    """Convert a signature of the file; without one its default, or its first subgraph.

    Raises:
        InputError: There is no such signature, or the file is damaged.
        UnsupportedError: It holds operators that the reader does not know; all are named.
    """
    named, subgraph = _chosen(file, signature)
    check_supported(file, _reached(file, subgraph.index))
    build, state, notes = Builder(), State(), list[str]()
    ctx = Context(file, subgraph, build, state, notes)
    inputs = [_input(ctx, index, named) for index in subgraph.inputs]
    # Taken before any inner value can have them.
    names = [_output_name(ctx, index, named) for index in subgraph.outputs]
    ctx.convert()
    variables = list(state.inputs)
    results = [ctx.stored(index) for index in subgraph.outputs]
    outputs = [_output(ctx, *given) for given in zip(subgraph.outputs, results, names, strict=True)]
    for name in variables:
        inputs.append(state.inputs[name])
        outputs.append(_state_output(build, name, state))
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=build.nodes,
        initializers=list(build.initializers.values()),
        name=subgraph.name or "main",
        opset_imports={"": _opset(file)},
    )
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="graphopt")
    tensors = [ctx.tensor(index) for index in subgraph.outputs]
    _declare_outputs(model, [*tensors, *(state.tensors[name] for name in variables)])
    if variables:
        notes += _state_notes(model, variables, state)
    if len(file.signatures) > 1 and signature is None:
        keys = ", ".join(f"'{s.key}'" for s in file.signatures)
        notes.append(f"the file has the signatures {keys}; --signature chooses another")
    initial = {name: state.initial.get(name) for name in variables}
    return Converted(
        model,
        subgraph,
        named,
        [str(value.name) for value in inputs],
        [str(value.name) for value in outputs],
        variables,
        initial,
        notes,
    )


def _chosen(file: Model, key: str | None) -> tuple[Signature | None, Subgraph]:
    if key is not None:
        found = next((s for s in file.signatures if s.key == key), None)
        if found is None:
            known = ", ".join(f"'{s.key}'" for s in file.signatures) or "none"
            raise InputError(f"no signature '{key}'; the file has: {known}")
        return found, file.subgraphs[found.subgraph]
    by_key = {s.key: s for s in file.signatures}
    default = by_key.get("serving_default") or next(iter(file.signatures), None)
    return default, file.subgraphs[default.subgraph if default else 0]


def _opset(file: Model) -> int:
    tensors = (tensor for graph in file.subgraphs for tensor in graph.tensors)
    return OPSET_16_BITS if any(t.type == "INT16" and t.quantized for t in tensors) else OPSET


def _reached(file: Model, start: int) -> list[int]:
    """The subgraphs that are called from ``start``, itself included."""
    found, queue = [start], [start]
    while queue:
        for operator in file.subgraphs[queue.pop()].operators:
            for index in _called_by(operator):
                if 0 <= index < len(file.subgraphs) and index not in found:
                    found.append(index)
                    queue.append(index)
    return found


def _called_by(operator: Operator) -> Iterable[int]:
    return (int(operator.options[key]) for key in _CALLS if key in operator.options)


def _plain_name(name: str) -> str:
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX)


def _shape(tensor: Tensor, name: str) -> ir.Shape:
    """Free axes get names: the first is the batch, which all inputs share."""
    axes = ("batch" if axis == 0 else f"{name}_axis_{axis}" for axis in range(tensor.rank))
    return ir.Shape([axis if size < 0 else size for size, axis in zip(tensor.signature, axes, strict=True)])


def _input(ctx: Context, index: int, signature: Signature | None) -> ir.Value:
    tensor = ctx.tensor(index)
    if ctx.is_set(index):
        raise InputError(f"a damaged TFLite file: '{tensor.name}' is two inputs")
    wanted = signature.inputs.get(index) if signature else None
    name = ctx.build.unique(wanted or _plain_name(tensor.name) or "input")
    dtype = onnx_type(tensor, f"input '{name}'")
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=_shape(tensor, name))
    ctx.set(index, value)
    return value


def _output_name(ctx: Context, index: int, signature: Signature | None) -> str:
    wanted = (signature.outputs.get(index) if signature else None) or _plain_name(ctx.tensor(index).name)
    return ctx.build.unique(wanted or "output")


def _output(ctx: Context, index: int, value: ir.Value, name: str) -> ir.Value:
    """A value of its own for each output, under the user's name."""
    made = ctx.build.op("Identity", value)
    made.name = name
    made.type = ir.TensorType(onnx_type(ctx.tensor(index), f"output '{name}'"))
    return made


def _state_output(build: Builder, name: str, state: State) -> ir.Value:
    made = build.op("Identity", state.values[name])
    made.name = build.unique(f"{state.inputs[name].name}_next")
    made.type = state.inputs[name].type
    return made


def _declare_outputs(model: ir.Model, tensors: Sequence[Tensor]) -> None:
    """The outputs' shapes as they follow from the graph; else their number of axes as the file has it."""
    inferred = shapes.infer(model)
    for value, tensor in zip(model.graph.outputs, tensors, strict=True):
        found = inferred[value].shape if value in inferred else None
        value.shape = ir.Shape([None] * tensor.rank) if found is None else found


def _state_notes(model: ir.Model, variables: Sequence[str], state: State) -> list[str]:
    """Tell how the state goes round: to the user, and to programs in ``metadata_props``."""
    count = len(variables)
    described: list[dict[str, object]] = []
    starts: dict[str, list[str]] = {}
    for name, given, made in zip(
        variables, model.graph.inputs[-count:], model.graph.outputs[-count:], strict=True
    ):
        start, value = _start(state.initial.get(name), state.tensors[name])
        described.append({"input": given.name, "output": made.name, "initial": value})
        starts.setdefault(start, []).append(f"'{given.name}'")
    if described:
        model.metadata_props["graphopt.state"] = json.dumps(described)
    return [
        f"variables became inputs, and outputs with '_next' behind the name: {', '.join(names)}; before the "
        f"first run {start}"
        for start, names in starts.items()
    ]


def _start(array: np.ndarray | None, tensor: Tensor) -> tuple[str, float | int | bool | None]:
    """What a variable holds at the start: in words, and the number where it is one everywhere."""
    if array is None:
        return "they hold what the file computes", None
    values = np.unique(array)
    if values.size != 1:
        return "they hold what the file lists", None
    zero = tensor.quantization is not None and values[0] == tensor.quantization.zero_point[0] != 0
    return f"they hold {values[0]} everywhere{' (0.0)' if zero else ''}", values[0].item()
