"""What the passes that run another tool share: a process of its own, and taking its result over.

The tool reads a file and writes one, in a child process: a crash or a hang is an error message, and its
memory goes back when it is done. Its result gets back what such tools drop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import io
from graphopt.errors import InputError, UnsupportedError
from graphopt.graph import scopes
from graphopt.passes.interop._restore import (
    restore_graph,
    restore_metadata,
    restore_node,
    restore_value,
    values_of,
)
from graphopt.runtime import child
from graphopt.runtime.evaluate import first_line

__all__ = ["is_same", "load_result", "run_tool", "take_over"]


def run_tool(
    tool: str, module: str, source: Path, target: Path, arguments: Mapping[str, Any], timeout: int
) -> None:
    """Let ``module`` make ``target`` of ``source`` in a process of its own; its arguments travel as JSON.

    Raises:
        UnsupportedError: It fails, or does not end in time; one line says why.
    """
    ended = child.run_module(
        module, [str(source), str(target), json.dumps(arguments)], child.Limits(seconds=timeout)
    )
    if ended.timed_out:
        raise UnsupportedError(f"{tool} did not end within {timeout} s (option timeout)")
    if ended.code:
        raise UnsupportedError(f"{tool} failed: {first_line(RuntimeError(ended.reason()))}")


def load_result(tool: str, target: Path, old: ir.Model) -> ir.Model:
    """The model that a tool made of ``old``, with what it dropped put back.

    Raises:
        UnsupportedError: It is not valid, or has other inputs or outputs.
    """
    try:
        new = io.load(target)
    except InputError as error:
        reason = str(error).removeprefix(f"'{target}': ")
        raise UnsupportedError(f"{tool} made a model that is not valid: {reason}") from error
    _restore(tool, new, old)
    return new


def take_over(model: ir.Model, new: ir.Model) -> None:
    """Give ``model`` the graph and functions of the result; its own metadata stays."""
    model.graph, model.ir_version = new.graph, max(model.ir_version, new.ir_version)
    model.functions.clear()
    model.functions.update(new.functions)


def is_same(new: ir.Model, old: ir.Model) -> bool:
    """Whether two models are equal, large weights included."""
    after, before = io.structure_proto(new), io.structure_proto(old)
    if after.graph != before.graph or list(after.functions) != list(before.functions):
        return False
    weights = [
        [v.const_value for graph, _ in scopes(model) for v in graph.initializers.values()]
        for model in (new, old)
    ]
    return all(a is not None and b is not None and _same_data(a, b) for a, b in zip(*weights, strict=True))


def _same_data(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a is b or a.dtype == ir.DataType.STRING:  # text is part of the structure
        return True
    return a.tobytes() == b.tobytes()


def _restore(tool: str, new: ir.Model, old: ir.Model) -> None:
    """Inputs and outputs as they were, notes of nodes that are still there, no types that nobody declared."""
    _restore_interface(tool, new.graph, old.graph)
    restore_graph(new.graph, old.graph)
    interface = {*new.graph.inputs, *new.graph.outputs, *new.graph.initializers.values()}
    declared = values_of(old.graph)
    for name, value in values_of(new.graph).items():
        if value not in interface and (name not in declared or declared[name].shape is None):
            value.type = value.shape = None
    nodes = _by_output(old)
    for name, node in _by_output(new).items():
        original = nodes.get(name)
        if original is not None and original.op_type == node.op_type:
            restore_node(node, original)
        elif original is not None:  # fused with others: where it came from stays true
            restore_metadata(node, original)


def _by_output(model: ir.Model) -> dict[str, ir.Node]:
    """The nodes of the main graph and its subgraphs by their first output, where only one has that name."""
    found: dict[str, list[ir.Node]] = {}
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            found.setdefault((node.outputs[0].name if node.outputs else "") or "", []).append(node)
    return {name: nodes[0] for name, nodes in found.items() if name and len(nodes) == 1}


def _restore_interface(tool: str, new: ir.Graph, old: ir.Graph) -> None:
    """Same inputs and outputs, in order and typed as before; an input that nothing uses comes back."""
    known = {value.name: value for value in new.inputs}
    if not known.keys() <= {v.name for v in old.inputs} or [v.name for v in new.outputs] != [
        v.name for v in old.outputs
    ]:
        raise UnsupportedError(f"{tool} changed the inputs or outputs of the model")
    inputs = [known.get(v.name) or ir.Value(name=v.name) for v in old.inputs]
    new.inputs.clear()
    new.inputs.extend(inputs)
    for value, original in zip((*new.inputs, *new.outputs), (*old.inputs, *old.outputs), strict=True):
        restore_value(value, original)
