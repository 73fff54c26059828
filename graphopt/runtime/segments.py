"""Run a model whose weights are too large for one session: cut into segments, one in memory at a time.

The nodes are taken in the graph's order and cut where the weights of a run of nodes would pass a limit.
A segment is a model of its own: it reads what earlier segments left and keeps what later ones need. All
inputs go through a segment before the next one is built, so weights are read once however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.graph import release
from graphopt.runtime._onnxruntime import InputsRefused, OrtSession, Settings
from graphopt.runtime._weights import Structure, captures

__all__ = ["Segment", "cut", "run"]

#: Functions need IR version 8; below 4 every initializer would have to be a graph input as well.
_LEAST_IR_VERSION = 8


@dataclass(frozen=True)
class Segment:
    """A run of nodes of the main graph, by index, and the names of the values it exchanges.

    Attributes:
        start: Index of the first node.
        stop: Index after the last node.
        inputs: Values made outside it, in order of first use.
        outputs: Values that later segments or the caller need.
        initializers: Initializers that it uses.
    """

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: tuple[str, ...]


def cut(structure: Structure, limit: int, given: Iterable[str] = ()) -> list[Segment]:
    """Cut the main graph into segments whose weights stay within ``limit`` bytes.

    A node whose own weights pass the limit makes its own segment.

    Args:
        structure: The model.
        limit: Bytes of initializers and attributes in a segment.
        given: Initializers that the caller feeds; these count as inputs.
    """
    graph = structure.proto.graph
    constants = set(structure.tensors) - set(given)
    uses = [list(dict.fromkeys(n for n in (*node.input, *captures(node)) if n)) for node in graph.node]
    bounds = _bounds(structure, uses, constants, limit)
    last_use = {name: index for index, names in enumerate(uses) for name in names}
    last_use.update((output.name, len(uses)) for output in graph.output)
    return [_segment(graph, uses, constants, last_use, *bound) for bound in bounds]


def _bounds(
    structure: Structure, uses: list[list[str]], constants: set[str], limit: int
) -> list[tuple[int, int]]:
    starts, held, total = [0], set[str](), 0
    for index, node in enumerate(structure.proto.graph.node):
        names = constants.intersection(uses[index])
        added = node.ByteSize() + sum(structure.tensors[name].nbytes for name in names - held)
        if total and total + added > limit:
            starts.append(index)
            held, total = set(), 0
            added = node.ByteSize() + sum(structure.tensors[name].nbytes for name in names)
        held |= names
        total += added
    return list(zip(starts, [*starts[1:], len(uses)], strict=True))


def _segment(
    graph: onnx.GraphProto,
    uses: list[list[str]],
    constants: set[str],
    last_use: Mapping[str, int],
    start: int,
    stop: int,
) -> Segment:
    made = dict.fromkeys(name for node in graph.node[start:stop] for name in node.output if name)
    used = dict.fromkeys(name for names in uses[start:stop] for name in names)
    return Segment(
        start,
        stop,
        inputs=tuple(n for n in used if n not in constants and n not in made),
        outputs=tuple(n for n in made if last_use.get(n, -1) >= stop),
        initializers=tuple(n for n in used if n in constants),
    )


def run(
    structure: Structure, feeds: Sequence[Mapping[str, Any]], settings: Settings, limit: int
) -> list[dict[str, Any]]:
    """The outputs of the model for every feed, by name, with the weights of one segment in memory at a time.

    Raises:
        NoKernelError: onnxruntime cannot execute a segment.
        InputsRefused: The model does not run on one of the feeds.
        UnsupportedError: A segment is invalid, or an optional value crosses a cut.
    """
    for feed in feeds:
        _check(structure.proto.graph, feed)
    if not feeds:
        return []
    given = set().union(*feeds) & set(structure.tensors)
    segments = cut(structure, limit, given)
    wanted = [output.name for output in structure.proto.graph.output]
    states: list[dict[str, Any]] = [_initial_state(structure, given, wanted, feed) for feed in feeds]
    for index, segment in enumerate(segments):
        if segment.outputs:
            _run_segment(structure, segment, states, settings)
        needed = set(wanted).union(*(s.inputs for s in segments[index + 1 :]))
        states = [{name: value for name, value in state.items() if name in needed} for state in states]
    return [{name: state[name] for name in wanted} for state in states]


def _check(graph: onnx.GraphProto, feed: Mapping[str, Any]) -> None:
    """Segments take their types from what they are fed, so the model's declared types are checked here."""
    for value in graph.input:
        array = feed.get(value.name)
        if not isinstance(array, np.ndarray) or not value.type.HasField("tensor_type"):
            continue
        declared = value.type.tensor_type
        if _type_of(array, value.name).tensor_type.elem_type != declared.elem_type:
            raise InputsRefused(f"input '{value.name}' cannot be {array.dtype}")
        if not declared.HasField("shape"):
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in declared.shape.dim]
        fits = [dim < 0 or dim == size for dim, size in zip(dims, array.shape, strict=False)]
        if len(dims) != array.ndim or not all(fits):
            raise InputsRefused(f"input '{value.name}' cannot have the shape {list(array.shape)}")


def _initial_state(
    structure: Structure, given: set[str], wanted: Sequence[str], feed: Mapping[str, Any]
) -> dict[str, Any]:
    """The feed, the values of initializers that another feed overrides, and those that are graph outputs."""
    constants = given.union(wanted) & set(structure.tensors)
    return {**{name: np.array(structure.tensors[name].numpy()) for name in constants}, **feed}


def _run_segment(
    structure: Structure, segment: Segment, states: Sequence[dict[str, Any]], settings: Settings
) -> None:
    part = _model_of(structure, segment, states[0])
    session = OrtSession(part, settings)
    for state in states:
        state.update(session.run({name: state[name] for name in segment.inputs}))
    for tensor in part.tensors.values():
        release(tensor)


def _model_of(structure: Structure, segment: Segment, state: Mapping[str, Any]) -> Structure:
    whole = structure.proto
    proto = onnx.ModelProto(ir_version=max(whole.ir_version, _LEAST_IR_VERSION))
    proto.opset_import.extend(whole.opset_import)
    proto.functions.extend(whole.functions)
    proto.graph.name = f"{whole.graph.name or 'graph'}_{segment.start}_{segment.stop}"
    proto.graph.node.extend(whole.graph.node[segment.start : segment.stop])
    used = set(segment.initializers)
    proto.graph.initializer.extend(t for t in whole.graph.initializer if t.name in used)
    for name in segment.inputs:
        if name not in state:
            raise UnsupportedError(f"value '{name}' is used before it is made: the graph is not in order")
        proto.graph.input.append(onnx.ValueInfoProto(name=name, type=_type_of(state[name], name)))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in segment.outputs)
    return Structure(proto, {name: structure.tensors[name] for name in segment.initializers})


def _type_of(value: Any, name: str) -> onnx.TypeProto:
    """The ONNX type of a boundary value; its shape stays open, since it may differ between feeds."""
    made = onnx.TypeProto()
    if isinstance(value, np.ndarray):
        is_text = value.dtype.kind in "OUST"
        dtype = ir.DataType.STRING if is_text else ir.DataType.from_numpy(value.dtype)
        made.tensor_type.elem_type = dtype.value
    elif isinstance(value, list) and value:
        made.sequence_type.elem_type.CopyFrom(_type_of(value[0], name))
    else:
        raise UnsupportedError(
            f"value '{name}', an optional or an empty sequence, crosses the edge of a segment"
        )
    return made
