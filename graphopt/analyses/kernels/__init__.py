"""Numpy kernels of the operators that occur in the arithmetic of shapes and constants.

Each follows the operator's specification at the opset asked for and onnxruntime's choices where the
specification leaves some; where runtimes differ, or could trap, the kernel refuses. Kernels never decide
whether a result is worth having: :func:`output_bytes` tells its size before it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.analyses.kernels import arithmetic, casting, creating, indexing, reducing, shaping  # noqa: F401
from graphopt.analyses.kernels._call import KERNELS, Array, Call, Refused
from graphopt.analyses.kernels.shaping import slice_of
from graphopt.graph import is_default_domain

__all__ = ["Refused", "evaluate_node", "has_kernel", "output_bytes", "slice_of"]

T = TypeVar("T")


def has_kernel(node: ir.Node) -> bool:
    """Whether the node's operator can be computed here at all."""
    return is_default_domain(node) and node.op_type in KERNELS


def evaluate_node(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array] | None:
    """The outputs of ``node`` for given inputs, of the types that ONNX prescribes.

    Args:
        node: A node whose attributes are no references.
        inputs: One array per input, None for one left out. Never written to; an output may be a view of one.
        opset: Version of the standard operator set that holds for the node.

    Returns:
        One array per output, or None where there is no kernel for the operator.

    Raises:
        Refused: The result is not defined, differs between runtimes, or the node is malformed.
    """
    if not has_kernel(node):
        return None
    call = Call(node, inputs, opset)
    with np.errstate(all="ignore"):
        result = _guarded(KERNELS[node.op_type].compute, call)
    outputs = result if isinstance(result, list) else [result]
    if len(outputs) != len(node.outputs):
        raise Refused(f"it has {len(node.outputs)} outputs")
    return [np.asarray(array) for array in outputs]


def output_bytes(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> int | None:
    """An upper bound of what :func:`evaluate_node` would return, without computing it; None without kernel.

    Raises:
        Refused: The node is malformed.
    """
    if not has_kernel(node):
        return None
    return _guarded(KERNELS[node.op_type].measure, Call(node, inputs, opset))


def _guarded(function: Callable[[Call], T], call: Call) -> T:
    """Numpy's complaints about a malformed node, as refusals."""
    try:
        return function(call)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Refused(f"it is malformed ({error})") from error
