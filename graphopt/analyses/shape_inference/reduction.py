"""Reductions."""

from __future__ import annotations

from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Unknown, anew, counted, rule

__all__: list[str] = []

#: Since then the axes are an input.
_AXES_INPUT = {"ReduceSum": 13}
_REST = 18


@rule("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin")
@rule("ReduceProd", "ReduceSum", "ReduceSumSquare")
def _reduce(op: Op) -> Inferred:
    data = op[0].dims
    if data is None:
        return Inferred(op[0].dtype)
    keep = op.integer("keepdims", 1) != 0
    try:
        axes = op.listed("axes", 1, _AXES_INPUT.get(op.node.op_type, _REST))
    except Unknown:  # the axes are not known: the rank is, where they stay
        return Inferred(op[0].dtype, anew(len(data)) if keep else None)
    if axes is None or not axes:
        if op.integer("noop_with_empty_axes", 0):
            return Inferred(op[0].dtype, data)
        axes = tuple(range(len(data)))
    gone = {counted(a, len(data)) for a in axes}
    if keep:
        return Inferred(op[0].dtype, [1 if i in gone else s for i, s in enumerate(data)])
    return Inferred(op[0].dtype, [s for i, s in enumerate(data) if i not in gone])
