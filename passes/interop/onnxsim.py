"""The library onnxsim (onnx-simplifier) as a pass."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt import io
from graphopt.errors import MissingExtraError, UnsupportedError
from graphopt.graph import all_nodes
from graphopt.limits import FOLD_RESULT, PROTOBUF_MAX
from graphopt.options import option
from graphopt.passes.interop._foreign import is_same, load_result, run_tool, take_over
from graphopt.registry import Pass, PassResult, register

__all__ = ["Onnxsim"]

_CHILD = "graphopt.passes.interop._onnxsim_child"


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
    alone: ClassVar[bool] = True
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
        if is_same(new, model):
            return PassResult(model, False, "nothing to simplify")
        take_over(model, new)
        return PassResult(model, True, f"{before} to {sum(1 for _ in all_nodes(model))} nodes")

    def _simplified(self, model: ir.Model) -> ir.Model:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            source, target = Path(folder, "model.onnx"), Path(folder, "simplified.onnx")
            io.save(model, source, external_data=False)
            run_tool("onnxsim", _CHILD, source, target, self._arguments(model), self.timeout)
            return load_result("onnxsim", target, model)

    def _arguments(self, model: ir.Model) -> dict[str, Any]:
        return {
            "perform_optimization": self.optimize,
            "skipped_optimizers": list(self.skip),
            "skip_constant_folding": not self.fold_constants,
            "tensor_size_threshold": f"{self.max_folded_bytes}B",
            "mutable_initializer": any(v.is_graph_input() for v in model.graph.initializers.values()),
        }
