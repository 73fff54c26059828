"""What QuantizeLinear and DequantizeLinear nodes say, where all of it is constant."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import array_of, constant_of
from graphopt.rewrite import Context, input_at

__all__ = ["LARGEST_STEPS", "Parameters", "parameters_of"]

Array = np.ndarray[Any, np.dtype[Any]]

#: Integer types, with the largest distance of a value to a zero point.
LARGEST_STEPS: Final = {
    ir.DataType.INT4: 15,
    ir.DataType.UINT4: 15,
    ir.DataType.INT8: 255,
    ir.DataType.UINT8: 255,
    ir.DataType.INT16: 65535,
    ir.DataType.UINT16: 65535,
}


class Parameters(NamedTuple):
    """How numbers become integers: ``saturate(round(x / scale) + zero_point)`` of type ``dtype``.

    ``axis`` is None where there is one scale for all; zero points are int64, of the shape of the scale.
    """

    dtype: ir.DataType
    scale: Array
    zero_point: Array
    axis: int | None

    @property
    def lowest(self) -> int:
        """The smallest value of the type."""
        return int(self.dtype.min)

    @property
    def highest(self) -> int:
        """The largest value of the type."""
        return int(self.dtype.max)

    def agrees(self, other: Parameters) -> bool:
        """Whether both mean the same, scales bit for bit."""
        return (
            self.dtype == other.dtype
            and self.axis == other.axis
            and self.scale.dtype == other.scale.dtype
            and self.scale.shape == other.scale.shape
            and self.scale.tobytes() == other.scale.tobytes()
            and np.array_equal(self.zero_point, other.zero_point)
        )


def parameters_of(node: ir.Node, context: Context) -> Parameters | str:
    """The parameters of a QuantizeLinear or DequantizeLinear, or why nothing can be said of them."""
    for name, default in (("block_size", 0), ("precision", 0), ("saturate", 1)):
        found = node.attributes.get(name)
        if found is not None and found.as_int() != default:
            return f"its attribute '{name}' is {found.as_int()}"
    scale, zero_value = array_of(node.inputs[1]), input_at(node, 2)
    zero_point = array_of(zero_value)
    if scale is None or (zero_value is not None and zero_point is None):
        return "its scale or zero point is not constant"
    if not (scale.dtype in (np.float32, np.float16) and np.all(np.isfinite(scale) & (scale > 0))):
        return "its scale is not positive"
    dtype = _dtype(node, context)
    if dtype not in LARGEST_STEPS:
        return "its integers are of a type that this pass does not know"
    scale, zeros = _shaped(scale, zero_point)
    if zeros.shape != scale.shape:
        return "its zero point has another shape than its scale"
    axis = None
    if scale.ndim:
        found = node.attributes.get("axis")
        axis = 1 if found is None else found.as_int()
    return Parameters(dtype, scale, zeros, axis)


def _shaped(scale: Array, zero_point: Array | None) -> tuple[Array, Array]:
    """Scale and int64 zero point; a single number is a scalar, whatever its shape."""
    zeros = np.zeros(scale.shape, np.int64) if zero_point is None else zero_point.astype(np.int64)
    if scale.size == 1 and zeros.size == 1:
        return scale.reshape(()), zeros.reshape(())
    return scale, zeros


def _dtype(node: ir.Node, context: Context) -> ir.DataType | None:
    """The integer type: that of the zero point, else of the input or the one asked for."""
    zero_value = input_at(node, 2)
    tensor = constant_of(zero_value)
    if tensor is not None:
        return tensor.dtype
    if node.op_type == "DequantizeLinear":
        value = node.inputs[0]
        return None if value is None else context.infer(value).dtype
    asked = node.attributes.get("output_dtype")
    return ir.DataType(asked.as_int()) if asked is not None and asked.as_int() else ir.DataType.UINT8
