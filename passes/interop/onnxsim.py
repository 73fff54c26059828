"""The library onnxsim (onnx-simplifier) as a pass."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt import io
from graphopt.errors import InputError, MissingExtraError, UnsupportedError
from graphopt.graph import all_nodes, scopes
from graphopt.limits import FOLD_RESULT, PROTOBUF_MAX
from graphopt.options import option
from graphopt.passes.interop._restore import restore_graph, restore_node, restore_value, values_of
from graphopt.registry import Pass, PassResult, register

__all__ = ["Onnxsim"]


@register
@dataclasses.dataclass(eq=False)
class Onnxsim(Pass):
    """Simplify the model with onnxsim: its shape inference, constant folding and onnx-optimizer passes.

    The model goes through a file to a process of its own and back; inputs, outputs, model metadata, and the
    names and metadata of nodes that are still there stay as they were. Constants are folded up to a size.
    Initializers that a caller may override stay variable.

    It needs the extra ``onnxsim``, and refuses models too large for one protobuf message.
    """

    name = "onnxsim"
    source = "https://github.com/onnxsim/onnxsim"

    optimize: bool = option(True, help="Run the passes of onnx-optimizer.")
    fold_constants: bool = option(True, help="Fold constants.")
    skip: tuple[str, ...] = option((), help="Passes of onnx-optimizer to leave out, as fuse_bn_into_conv.")
    max_folded_bytes: int = option(FOLD_RESULT, help="Largest tensor that folding may make.", min=1)
    timeout: int = option(600, help="Seconds after which onnxsim is stopped.", min=1)

    def call(self, model: ir.Model) -> PassResult:
        """Run onnxsim and take its graph.

        Raises:
            MissingExtraError: onnxsim is not installed.
            UnsupportedError: The model is too large, or onnxsim fails, does not end, or changes the
                interface; the model is as it was.
        """
        if importlib.util.find_spec("onnxsim") is None:
            raise MissingExtraError("the onnxsim pass", "onnxsim")
        size = io.serialized_size(model)
        if size > PROTOBUF_MAX:
            raise UnsupportedError(f"onnxsim takes models up to 2 GiB; this one has {size:,} bytes")
        new = self._simplified(model)
        before = sum(1 for _ in all_nodes(model))
        if _is_same(new, model):
            return PassResult(model, False, "nothing to simplify")
        model.graph, model.ir_version = new.graph, max(model.ir_version, new.ir_version)
        model.functions.clear()
        model.functions.update(new.functions)
        return PassResult(model, True, f"{before} to {sum(1 for _ in all_nodes(model))} nodes")

    def _simplified(self, model: ir.Model) -> ir.Model:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            source, target = Path(folder, "model.onnx"), Path(folder, "simplified.onnx")
            io.save(model, source, external_data=False)
            self._run(source, target, self._arguments(model))
            try:
                new = io.load(target)
            except InputError as error:
                raise UnsupportedError(f"onnxsim made a model that is not valid: {error}") from error
        _restore(new, model)
        return new

    def _arguments(self, model: ir.Model) -> dict[str, Any]:
        return {
            "perform_optimization": self.optimize,
            "skipped_optimizers": list(self.skip),
            "skip_constant_folding": not self.fold_constants,
            "tensor_size_threshold": f"{self.max_folded_bytes}B",
            "mutable_initializer": any(v.is_graph_input() for v in model.graph.initializers.values()),
        }

    def _run(self, source: Path, target: Path, arguments: dict[str, Any]) -> None:
        module = "graphopt.passes.interop._onnxsim_child"
        command = [sys.executable, "-m", module, str(source), str(target), json.dumps(arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, timeout=self.timeout, check=False, text=True
            )
        except subprocess.TimeoutExpired as error:
            raise UnsupportedError(f"onnxsim did not end within {self.timeout} s (option timeout)") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UnsupportedError(f"onnxsim failed: {lines[-1][:200]}")


def _is_same(new: ir.Model, old: ir.Model) -> bool:
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
    if a.dtype == ir.DataType.STRING:  # part of the structure
        return True
    return a.tobytes() == b.tobytes()


def _restore(new: ir.Model, old: ir.Model) -> None:
    """Inputs and outputs as they were, notes of nodes that are still there, no types that nobody declared."""
    _restore_interface(new.graph, old.graph)
    restore_graph(new.graph, old.graph)
    interface = {*new.graph.inputs, *new.graph.outputs, *new.graph.initializers.values()}
    declared = values_of(old.graph)
    for name, value in values_of(new.graph).items():
        if value not in interface and (name not in declared or declared[name].shape is None):
            value.type = value.shape = None
    nodes = {node.outputs[0].name: node for node in old.graph if node.outputs}
    for node in new.graph:
        original = nodes.get(node.outputs[0].name) if node.outputs else None
        if original is not None and original.op_type == node.op_type:
            restore_node(node, original)


def _restore_interface(new: ir.Graph, old: ir.Graph) -> None:
    """Same inputs and outputs, in order and typed as before; an input that nothing uses comes back."""
    known = {value.name: value for value in new.inputs}
    if not known.keys() <= {v.name for v in old.inputs} or [v.name for v in new.outputs] != [
        v.name for v in old.outputs
    ]:
        raise UnsupportedError("onnxsim changed the inputs or outputs of the model")
    inputs = [known.get(v.name) or ir.Value(name=v.name) for v in old.inputs]
    new.inputs.clear()
    new.inputs.extend(inputs)
    for value, original in zip((*new.inputs, *new.outputs), (*old.inputs, *old.outputs), strict=True):
        restore_value(value, original)
