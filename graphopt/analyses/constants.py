"""Which nodes of a model always give the same result, and what that is.

Evaluation runs forward through every graph of the model. A result is computed only after its size is known
and allowed; large constants are views into the model's own (possibly memory-mapped) tensors until somebody
reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses import costs, kernels, shapes
from graphopt.analyses.kernels.fallback import evaluate_by_runtime, runs_in_session
from graphopt.graph import constant_of, scopes, use_count

__all__ = ["Evaluation", "evaluate", "stored_bytes"]

Array = np.ndarray[Any, np.dtype[Any]]

#: A node may compute no more than this, and so many nodes may ask for a session of their own.
_MACS = 2**28
_SESSIONS = 256
#: Operators that need only the shape or type of an input.
_SHAPE_READERS = frozenset({"Shape", "Size", "CastLike", "EyeLike"})
#: Operators that neither read the elements of their first input nor copy them.
_VIEWS = frozenset({"Shape", "Size", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        results: For every node that can be replaced by constants, in topological order, one array per output.
        refused: Nodes with constant inputs that were not computed, with the reason.
    """

    results: dict[ir.Node, list[Array]] = field(default_factory=dict)
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)


def stored_bytes(array: Array) -> int:
    """Bytes that an array takes in a model file; types below 8 bits are packed there."""
    return math.ceil(array.size * ir.DataType.from_numpy(array.dtype).bitwidth / 8)


def evaluate(model: ir.Model, *, max_result_bytes: int, max_total_bytes: int) -> Evaluation:
    """Compute every node that depends on constants and fixed shapes alone.

    Not computed: nodes of other domains, calls of functions, nodes with subgraphs, operators that draw
    random numbers, DequantizeLinear and QuantizeLinear, strings, and nodes whose attributes a function's
    caller sets.

    Args:
        model: The model; it is left as it is.
        max_result_bytes: Largest result of a node, unless it takes in as many bytes of constants that nothing
            else uses.
        max_total_bytes: What all computed results may hold in memory, and what one node may read.
    """
    return _Evaluator(model, max_result_bytes, max_total_bytes).run()


class _Evaluator:
    def __init__(self, model: ir.Model, max_result_bytes: int, max_total_bytes: int) -> None:
        self._model = model
        self._max_result = max_result_bytes
        self._left = max_total_bytes
        self._readable = max_total_bytes
        self._sessions = _SESSIONS
        self._functions = {(domain, name) for domain, name, _ in model.functions}
        self._shapes: shapes.Shapes | None = None
        self._has_readers: bool | None = None
        self._known: dict[ir.Value, Array | None] = {}
        #: Bytes of constants that have no other use than this value, directly or through what was computed.
        self._own: dict[ir.Value, float] = {}
        self._found = Evaluation()

    def run(self) -> Evaluation:
        for graph, opset in scopes(self._model):
            for node in graph:
                if self._is_candidate(node):
                    self._visit(node, opset)
        return self._found

    def _is_candidate(self, node: ir.Node) -> bool:
        if not (kernels.has_kernel(node) or runs_in_session(node)) or node.op_type == "Constant":
            return False
        if self._functions and (node.domain, node.op_type) in self._functions:
            return False
        attributes = node.attributes.data
        return not attributes or not any(a.is_ref() for a in attributes.values())

    def _visit(self, node: ir.Node, opset: int) -> None:
        results = None
        if self._are_constant(node.inputs):
            results = self._computed(
                node, [None if v is None else self._array(v) for v in node.inputs], opset
            )
        elif self._reads_shapes():
            results = self._from_shapes(node) or self._cast_like(node, opset)
        if results is not None and self._fits_types(node, results):
            self._keep(node, results)

    def _reads_shapes(self) -> bool:
        """Whether shapes can make a constant at all: only where the model asks for one."""
        if self._has_readers is None:
            nodes = (n for graph, _ in scopes(self._model) for n in graph)
            self._has_readers = any(n.op_type in _SHAPE_READERS for n in nodes)
        return self._has_readers

    def _inferred(self, value: ir.Value) -> shapes.Inferred:
        if self._shapes is None:
            self._shapes = shapes.infer(self._model)
        return self._shapes[value]

    def _are_constant(self, values: Sequence[ir.Value | None]) -> bool:
        return all(value is None or self._is_constant(value) for value in values)

    def _is_constant(self, value: ir.Value) -> bool:
        """Whether the value is known, without reading it: most weights meet an input that is not."""
        if value in self._known:
            return self._known[value] is not None
        tensor = constant_of(value)
        return tensor is not None and tensor.dtype != ir.DataType.STRING

    def _array(self, value: ir.Value) -> Array | None:
        if value not in self._known:
            tensor = constant_of(value)
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                self._known[value] = None
            else:
                self._known[value] = tensor.numpy()
                self._own[value] = tensor.nbytes / max(1, use_count(value))
        return self._known[value]

    def _own_bytes(self, node: ir.Node) -> float:
        return sum(self._own.get(v, 0) for v in dict.fromkeys(node.inputs) if v is not None)

    def _computed(self, node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array] | None:
        try:
            self._check_limits(node, inputs, opset)
            if kernels.has_kernel(node):
                return kernels.evaluate_node(node, inputs, opset)
            return evaluate_by_runtime(node, inputs, opset)
        except kernels.Refused as reason:
            self._found.refused.append((node, str(reason)))
            return None

    def _check_limits(self, node: ir.Node, inputs: Sequence[Array | None], opset: int) -> None:
        read = sum(a.nbytes for a in inputs if a is not None)
        size = kernels.output_bytes(node, inputs, opset)
        if size is None:
            size = self._session_bytes(node, inputs)
        allowed = max(self._max_result, int(self._own_bytes(node)))
        if size > allowed:
            raise kernels.Refused(f"its result of {size} bytes is above the limit of {allowed}")
        if node.op_type not in _VIEWS and (read > self._readable or size > self._left):
            raise kernels.Refused(f"folding would hold more than {self._readable} bytes in memory")

    def _session_bytes(self, node: ir.Node, inputs: Sequence[Array | None]) -> int:
        """The size of a result that onnxruntime is to compute, from its inferred shape."""
        known = self._inferred(node.outputs[0])
        if known.static is None or known.dtype is None:
            raise kernels.Refused("the size of its result is not known")
        dims = dict(zip(node.inputs, (None if a is None else a.shape for a in inputs), strict=True))
        dims[node.outputs[0]] = known.static
        macs = costs.macs_of(node, lambda value: dims.get(value))
        if macs is None or macs > _MACS or self._sessions == 0:
            raise kernels.Refused("it takes too long to compute")
        self._sessions -= 1
        return math.prod(known.static) * max(1, math.ceil(known.dtype.bitwidth / 8))

    def _from_shapes(self, node: ir.Node) -> list[Array] | None:
        """The outputs, where shape inference knows them as a whole although it does not know the inputs."""
        found = []
        for output in node.outputs:
            array = self._inferred(output).constant
            if array is None:
                return None
            found.append(array)
        return found

    def _cast_like(self, node: ir.Node, opset: int) -> list[Array] | None:
        """CastLike of a constant needs only the type of its second input."""
        if node.op_type != "CastLike" or len(node.inputs) != 2:
            return None
        data, like = node.inputs
        if data is None or like is None or not self._is_constant(data):
            return None
        dtype = self._inferred(like).dtype
        if dtype is None or dtype == ir.DataType.STRING:
            return None
        return self._computed(node, [self._array(data), np.empty(0, dtype.numpy())], opset)

    def _fits_types(self, node: ir.Node, results: list[Array]) -> bool:
        """A result of another type than declared means that the model is not what it says: leave it."""
        for value, array in zip(node.outputs, results, strict=True):
            if value.dtype is not None and value.dtype != ir.DataType.from_numpy(array.dtype):
                self._found.refused.append(
                    (node, f"its result is {array.dtype}, declared is {value.dtype.name}")
                )
                return False
        return True

    def _keep(self, node: ir.Node, results: list[Array]) -> None:
        self._found.results[node] = results
        uses = sum(map(use_count, node.outputs))
        share = self._own_bytes(node) / max(1, uses)
        sources = [a for a in (self._known.get(v) for v in node.inputs if v is not None) if a is not None]
        for value, array in zip(node.outputs, results, strict=True):
            self._known[value] = array
            self._own[value] = share
            view = any(np.may_share_memory(array, source) for source in sources)
            if not (view and array.flags.c_contiguous):
                self._left -= array.nbytes
