"""Operators without a kernel of ours, computed by onnxruntime in a session of one node.

Only operators on the list below: deterministic ones of the standard domain whose result is no larger than a
known shape says. onnxruntime's optimizer is off, and it never sees more than the one node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analyses.kernels._call import Array, Refused
from graphopt.graph import is_default_domain

__all__ = ["evaluate_by_runtime", "runs_in_session"]

_OPERATORS = frozenset(
    (
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "LRN"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"),
        *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu"),
        *("Softplus", "Softsign", "Softmax", "LogSoftmax", "Hardmax", "ThresholdedRelu"),
        *("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"),
        *("Compress", "DepthToSpace", "SpaceToDepth", "Mean", "Resize", "ReverseSequence", "Upsample"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
    )
)
#: The oldest IR version that all supported runtimes read.
_IR_VERSION = 8


def runs_in_session(node: ir.Node) -> bool:
    """Whether :func:`evaluate_by_runtime` takes the node."""
    return is_default_domain(node) and node.op_type in _OPERATORS and len(node.outputs) == 1


def evaluate_by_runtime(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of ``node`` as onnxruntime computes them.

    Raises:
        Refused: onnxruntime cannot run the node.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
    )
    try:
        return _run(_model_of(node, inputs, opset), inputs)
    except (*failures, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise Refused(f"onnxruntime cannot compute it ({reason})") from error


def _model_of(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> ir.Model:
    values = [None if a is None else _input(f"x{i}", a) for i, a in enumerate(inputs)]
    outputs = [ir.Value(name=f"y{i}") for i in range(len(node.outputs))]
    copy = ir.Node("", node.op_type, values, list(node.attributes.values()), outputs=outputs)
    given = [v for v in values if v is not None]
    graph = ir.Graph(given, outputs, nodes=[copy], opset_imports={"": opset}, name="one_node")
    return ir.Model(graph, ir_version=_IR_VERSION)


def _input(name: str, array: Array) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))


def _run(model: ir.Model, inputs: Sequence[Array | None]) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = {f"x{i}": np.asarray(a, order="C") for i, a in enumerate(inputs) if a is not None}
    return list(session.run(None, feeds))
