"""Casts whose result every runtime agrees on; the others are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.kernels._call import Array, Call, Refused, element_bytes, kernel

_CASTABLE = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
    }
)
_HALVES = (np.dtype(np.float16), np.dtype(ir.DataType.BFLOAT16.numpy()))


def _castable(dtype: ir.DataType) -> np.dtype[Any]:
    if dtype not in _CASTABLE:
        raise Refused(f"casts of {dtype.name} differ between runtimes")
    return np.dtype(dtype.numpy())


def cast(array: Array, target: ir.DataType) -> Array:
    """``array`` as ``target``; a float that does not fit the integer type is refused."""
    source, wanted = np.dtype(_castable(ir.DataType.from_numpy(array.dtype))), _castable(target)
    if source == wanted:
        return array
    if source in _HALVES:  # runtimes go through float32, both ways
        array = array.astype(np.float32)
    if wanted.kind in "iu" and array.dtype.kind == "f":
        _check_range(array, wanted)
    if wanted in _HALVES and array.dtype != np.float32:
        array = array.astype(np.float32)
    return array.astype(wanted)


def _check_range(array: Array, wanted: np.dtype[Any]) -> None:
    limits = np.iinfo(wanted)
    whole = np.trunc(array)
    # Both bounds are powers of two, which every float type holds exactly or as infinity.
    low, high = float(limits.min), float(limits.max) + (1 if limits.bits < 64 else 0)
    if not np.all((whole >= low) & (whole < high)):
        raise Refused(f"a number does not fit {wanted}")


def _cast_bytes(call: Call) -> int:
    return call[0].size * element_bytes(_castable(_target(call)))


def _target(call: Call) -> ir.DataType:
    if call.node.op_type == "CastLike":
        return ir.DataType.from_numpy(call[1].dtype)
    return ir.DataType(call.integer("to"))


@kernel("Cast", "CastLike", measure=_cast_bytes)
def cast_node(call: Call) -> Array:
    """Cast to the type of the attribute, or of the second input (whose elements do not matter)."""
    return cast(call[0], _target(call))
