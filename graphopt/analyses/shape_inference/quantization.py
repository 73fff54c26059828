"""Quantization to and from integers and short floats."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, rule

__all__: list[str] = []


@rule("QuantizeLinear")
def _quantize(op: Op) -> Inferred:
    """The type is that of the zero point, or named, or uint8."""
    named = op.integer("output_dtype", 0)
    dtype = ir.DataType(named) if named else op[2].dtype if op.has(2) else ir.DataType.UINT8
    return Inferred(dtype, op[0].dims)


@rule("DequantizeLinear")
def _dequantize(op: Op) -> Inferred:
    named = op.integer("output_dtype", 0)
    dtype = ir.DataType(named) if named else op[1].dtype if op.opset >= 19 else ir.DataType.FLOAT
    return Inferred(dtype, op[0].dims)


@rule("DynamicQuantizeLinear")
def _dynamic_quantize(op: Op) -> list[Inferred]:
    scale, zero_point = Inferred(ir.DataType.FLOAT, ()), Inferred(ir.DataType.UINT8, ())
    return [Inferred(ir.DataType.UINT8, op[0].dims), scale, zero_point]
