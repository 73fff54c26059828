"""Normalizations."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, rule
from graphopt.analyses.shape_inference.elementwise import like

__all__: list[str] = []


@rule("BatchNormalization")
def _batch_normalization(op: Op) -> list[Inferred]:
    """The outputs behind the first are statistics of the shape of the input's own."""
    means = [like(op[3]), like(op[4])]
    return [like(op[0]), *(means * 2)[: len(op.node.outputs) - 1]]


@rule("InstanceNormalization", "GroupNormalization")
def _same_type(op: Op) -> Inferred:
    return like(op[0])


@rule("RMSNormalization")
def _rms_normalization(op: Op) -> Inferred:
    return Inferred(op[1].dtype, op[0].dims)


@rule("LayerNormalization")
def _layer_normalization(op: Op) -> list[Inferred]:
    stash = op.dtype("stash_type", ir.DataType.FLOAT)
    data = op[0].dims
    if data is None:
        return [like(op[0]), Inferred(stash), Inferred(stash)]
    axis = op.axis(len(data), -1)
    statistic = Inferred(stash, (*data[:axis], *([1] * (len(data) - axis))))
    return [like(op[0]), statistic, statistic]
