"""onnxruntime's own offline optimizer as a pass."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphopt import io
from graphopt.analyses import shapes
from graphopt.analyses.costs import count_nodes
from graphopt.errors import UserError
from graphopt.graph import all_nodes, is_default_domain, scopes
from graphopt.options import option
from graphopt.passes.interop._foreign import is_same, load_result, run_tool, take_over
from graphopt.passes.interop._restore import values_of
from graphopt.registry import Pass, PassResult, Refusal, register
from graphopt.runtime import latency, samples

__all__ = ["OrtOptimize"]

_CHILD = "graphopt.passes.interop._ort_optimize_child"
#: Domains of operators whose weights lie as the machine that made them likes it.
_LAYOUT_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")

#: Names and imports make small files larger by this much.
_SMALL_GROWTH = 1024


@register
@dataclasses.dataclass(eq=False)
class OrtOptimize(Pass):
    """Optimize the model for onnxruntime on CPUs with onnxruntime's own offline optimizer.

    The result may hold operators of the domain com.microsoft, which other runtimes do not have: FusedConv,
    SkipLayerNormalization, BiasGelu, MatMulNBits ... onnxruntime makes the same ones when it loads a model,
    unless its optimizer is off there; made offline they are there at once, and have been verified.

    1. ``basic``: constant folding, elimination and fusion in the standard domain. ``extended``: and the fused
       operators. ``all-without-layout``: and what else the highest level does, but for the layouts NCHWc and
       NHWC: these fit the vector width of one CPU. The other results run on every CPU.
    2. Products with int8 weights keep their activations in float.
    3. The result is taken only if it is not slower: both models run in turns under onnxruntime's default
       settings on drawn inputs, and the median of the ratios of their times is at most 1 + ``tolerance``; a
       result of more nodes must be faster in three quarters of the turns. And if the file does not grow by
       more than ``growth``: onnxruntime folds all constants.

    Inputs, outputs, model metadata, the names and metadata of nodes that are still there, and tensors that
    have not changed stay as they were. onnxruntime works on files in a process of its own, so models above
    2 GB may come; weights that it changed are then held in memory. Functions are inlined. A model that
    onnxruntime refuses, or that comes out slower or unchanged, is left as it was; the report says why.
    """

    name = "ort-optimize"
    alone: ClassVar[bool] = True
    source = "https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html"

    level: Literal["basic", "extended", "all-without-layout"] = option("extended", help="How much it may do.")
    tolerance: float = option(0.05, help="How much slower, as a share, the result may be measured.", min=0)
    growth: float = option(0.05, help="How much larger, as a share, the file may become.", min=0)
    rounds: int = option(31, help="How often both models run to compare their times.", min=3)
    timeout: int = option(600, help="Seconds after which onnxruntime is stopped.", min=1)

    def call(self, model: ir.Model) -> PassResult:
        """Run onnxruntime's optimizer, compare the times, and take its graph."""
        try:
            new = self._optimized(model)
            if is_same(new, model):
                return PassResult(model, False, "nothing to optimize")
            foreign = sorted({n.domain for n in all_nodes(new)} & set(_LAYOUT_DOMAINS))
            if foreign:
                return self._refused(model, f"the result has the layout of one CPU ({', '.join(foreign)})")
            size, new_size = io.serialized_size(model), io.serialized_size(new)
            if new_size > size * (1 + self.growth) + _SMALL_GROWTH:
                return self._refused(model, f"the file would grow from {size} to {new_size} bytes")
            found = self._measured(model, new)
        except UserError as error:
            return self._refused(model, str(error))
        before, after = count_nodes(model), count_nodes(new)
        if found.ratio > 1 + self.tolerance:
            return self._refused(model, f"the result takes {found}; allowed is {1 + self.tolerance:.2f}x")
        if after > before and found.high > 1:
            return self._refused(model, f"the result has {after} nodes for {before}, and takes {found}")
        take_over(model, new)
        return PassResult(model, True, f"{before} to {after} nodes, {found}")

    def _measured(self, model: ir.Model, new: ir.Model) -> latency.Latency:
        """The times of the result over those of the model; a slow one gets a longer second chance."""
        feeds = samples.draw(model, 1, 0).feeds
        found = latency.compare(model, new, feeds, rounds=self.rounds)
        if found.ratio > 1 + self.tolerance:
            return latency.compare(model, new, feeds, rounds=3 * self.rounds)
        return found

    def _refused(self, model: ir.Model, reason: str) -> PassResult:
        return PassResult(model, False, reason, [Refusal(self.name, "the model", reason)])

    def _optimized(self, model: ir.Model) -> ir.Model:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            source, target = Path(folder, "model.onnx"), Path(folder, "optimized.onnx")
            io.save(model, source)
            arguments = {"level": self.level, "opset": model.opset_imports.get("", 1)}
            run_tool("onnxruntime", _CHILD, source, target, arguments, self.timeout)
            new = load_result("onnxruntime", target, model)
            _keep_tensors(new, model)
        _keep_opset_imports(new.graph, model)
        _declare_types(new, model)
        return new


def _keep_tensors(new: ir.Model, old: ir.Model) -> None:
    """The original's tensors where they have not changed; what lies in the tool's file comes into memory."""
    for name, value in new.graph.initializers.items():
        tensor, original = value.const_value, old.graph.initializers.get(name)
        if tensor is None:
            continue
        if original is not None and original.const_value is not None and _equal(tensor, original.const_value):
            value.const_value = original.const_value
        elif isinstance(tensor, ir.ExternalTensor):
            array = np.array(tensor.numpy())
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, shape=tensor.shape, name=name)
            tensor.release()


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.dtype == ir.DataType.STRING:
        return bool(a.string_data() == b.string_data())  # type: ignore[attr-defined]
    return a.tobytes() == b.tobytes()


def _declare_types(new: ir.Model, old: ir.Model) -> None:
    """What operators of other domains make gets the type that it had before: no shape inference knows it."""
    foreign = [o for n in new.graph if not is_default_domain(n) for o in n.outputs if not o.is_graph_output()]
    if not foreign:
        return
    known, before = shapes.infer(old), values_of(old.graph)
    axes = {d.value for v in old.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim)}
    for output in foreign:
        original = before.get(output.name or "")
        if original is None:
            continue
        found = known[original]
        if found.dtype is not None and found.shape is not None:
            output.type = ir.TensorType(found.dtype)
            output.shape = ir.Shape(
                [d if isinstance(d, int) or d.value in axes else None for d in found.shape]
            )


def _keep_opset_imports(new: ir.Graph, old: ir.Model) -> None:
    """onnxruntime imports every domain that it knows; only those that are used, or were there, stay."""
    used = {node.domain for graph, _ in scopes(ir.Model(new, ir_version=old.ir_version)) for node in graph}
    for domain in list(new.opset_imports):
        if domain not in used and domain not in old.graph.opset_imports and domain:
            del new.opset_imports[domain]
