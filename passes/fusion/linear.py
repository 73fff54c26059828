"""Conv, ConvTranspose, Gemm and MatMul as one thing: a linear map plus bias, seen per output channel.

Whatever the operator, output channel ``c`` is ``y_c = W_c . x + b_c`` with the weights ``W_c`` that lead to
it. An affine map per channel behind it folds into both::

    scale_c * y_c + shift_c  =  (scale_c * W_c) . x  +  (scale_c * b_c + shift_c)

===============  ==========================  ==========================================================
operator         weight                      output channel of a weight
===============  ==========================  ==========================================================
Conv             [M, C/group, k...]          axis 0
ConvTranspose    [C, M/group, k...]          (row * group // C) * (M/group) + column: axis 1, by group
Gemm             [K, N], transB: [N, K]      axis 1, transB: axis 0; alpha stays, beta goes into the bias
MatMul           [K, N]                      axis 1; has no bias, so a shift makes it a Gemm (rank 2 only)
===============  ==========================  ==========================================================

All is computed in float64 and rounded once to the type of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt._streams import StreamedTensor
from graphopt.graph import constant_of, describe, release
from graphopt.limits import KIB, MIB
from graphopt.rewrite import Context, input_at, is_exclusive, why_not_constant

__all__ = ["FLOAT_TYPES", "Affine", "Linear", "may_be_constant", "per_channel"]

#: Element types that these fusions understand, each with its smallest normal number.
FLOAT_TYPES: Final = {
    ir.DataType.FLOAT: 2.0**-126,
    ir.DataType.DOUBLE: 2.0**-1022,
    ir.DataType.FLOAT16: 2.0**-14,
    ir.DataType.BFLOAT16: 2.0**-126,
}
#: A weight with other uses is copied only below this size; above, a copy would inflate the model.
_COPY_BELOW: Final = 4 * KIB
#: A scaled weight that lies in a file and is larger than this stays there, and is scaled when it is read.
_LAZY_ABOVE: Final = 16 * MIB
#: Bytes of a weight that are worked on at once: what is written next is still in the processor's cache.
_BLOCK: Final = MIB
#: Broadcasting of Add, Mul and Gemm had other rules before.
_MIN_OPSET: Final = 7

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Affine:
    """``y -> scale * y + shift``: float64 [channels] each; None is a scale of 1 or a shift of 0."""

    scale: Array | None = None
    shift: Array | None = None


def may_be_constant(value: ir.Value | None) -> bool:
    """Whether a match may go on: an initializer, or a constant; a check then says why the former is none."""
    return value is not None and (value.is_initializer() or constant_of(value) is not None)


def per_channel(constant: Array, rank: int | None, axis: int, channels: int) -> Array | None:
    """The constant as float64 [channels]; None where broadcasting it does anything else than vary by channel.

    Args:
        constant: The other operand of an elementwise operator.
        rank: Rank of the tensor that it meets; None where unknown.
        axis: The channel axis, from the front (>= 0) or from the end (< 0).
        channels: Size of the channel axis.
    """
    if rank is None and axis == -1:
        rank = 1  # at least; that will do for a constant of rank 0 or 1
    if rank is None or constant.ndim > rank:
        return None  # a longer shape would grow the result
    shape = [1] * (rank - constant.ndim) + list(constant.shape)
    size = shape.pop(axis)
    if size not in (1, channels) or any(dim != 1 for dim in shape):
        return None
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (channels,))


class Linear:
    """A view of one Conv, ConvTranspose, Gemm or MatMul node; it holds nothing but the node."""

    op_types: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.op_type = node.op_type
        weight = input_at(node, 1)
        assert weight is not None
        self.weight: ir.Value = weight
        self.bias = input_at(node, 2) if node.op_type != "MatMul" else None
        self.output = node.outputs[0]

    # What the node says of itself.

    @property
    def _tensor(self) -> ir.TensorProtocol:
        tensor = constant_of(self.weight)
        assert tensor is not None
        return tensor

    @property
    def _group(self) -> int:
        return self.node.attributes.get_int("group", 1)

    @property
    def _rows_are_channels(self) -> bool:
        return self.op_type == "Conv" or self.node.attributes.get_int("transB", 0) != 0

    @property
    def channels(self) -> int:
        """Number of output channels."""
        shape = self._tensor.shape.numpy()
        if self.op_type == "ConvTranspose":
            return int(shape[1]) * self._group
        return int(shape[0 if self._rows_are_channels else 1])

    def output_rank(self, context: Context) -> int | None:
        """Rank of the output; None where unknown."""
        if self.op_type != "MatMul":
            return len(self._tensor.shape)
        data = self.node.inputs[0]
        return None if data is None else context.rank(data)

    @property
    def channel_axis(self) -> int:
        """The channel axis of the output: 1, or the last for MatMul."""
        return -1 if self.op_type == "MatMul" else 1

    # Why not.

    def refuse(self, context: Context) -> str | None:
        """Why nothing at all may be folded into the node; None where something may."""
        if context.opset < _MIN_OPSET:
            return f"opset {context.opset} broadcasts by other rules; convert to {_MIN_OPSET} or later"
        if not is_exclusive(self.output):
            return f"the output '{self.output.name}' of {describe(self.node)} is used elsewhere"
        reason = why_not_constant(self.weight, "the weight")
        if reason is None and self.bias is not None:
            reason = why_not_constant(self.bias, "the bias")
        return reason or self._refuse_weight() or self._refuse_bias()

    def _refuse_weight(self) -> str | None:
        tensor = self._tensor
        name, rank = self.weight.name, len(tensor.shape.numpy())
        if tensor.dtype not in FLOAT_TYPES:
            return f"the weight '{name}' is {tensor.dtype.name}"
        if rank != 2 if self.op_type in ("Gemm", "MatMul") else rank < 3:
            return f"the weight '{name}' has rank {rank}"
        if tensor.size == 0:
            return f"the weight '{name}' is empty"
        if self._group < 1 or tensor.shape.numpy()[0] % self._group:
            return f"{describe(self.node)} has {self._group} groups for {tensor.shape[0]} channels"
        return None

    def _refuse_bias(self) -> str | None:
        if self.bias is not None and self._bias_vector() is None:
            return f"the bias '{self.bias.name}' is not one number per output channel"
        return None

    def refuse_affine(self, affine: Affine, context: Context) -> str | None:
        """Why ``affine`` in particular may not be folded into the node; None where it may."""
        return (
            self._refuse_scale(affine.scale)
            or self._refuse_new_bias(affine)
            or (self._refuse_gemm(context) if self._becomes_gemm(affine) else None)
        )

    def _refuse_scale(self, scale: Array | None) -> str | None:
        if scale is None:
            return None
        tensor, name = self._tensor, self.weight.name
        if not is_exclusive(self.weight) and tensor.nbytes >= _COPY_BELOW:
            return f"the weight '{name}' is used elsewhere"
        largest = self._largest_per_channel() * np.abs(scale)
        if not _is_finite(largest, tensor.dtype):
            return f"the weight '{name}' would not be finite"
        if np.any((largest > 0) & (largest < FLOAT_TYPES[tensor.dtype])):
            return f"the weight '{name}' would become denormal"
        return None

    def _refuse_new_bias(self, affine: Affine) -> str | None:
        bias = self._new_bias(affine)
        if bias is not None and not _is_finite(bias, self._tensor.dtype):
            return f"the bias of {describe(self.node)} would not be finite"
        return None

    def _becomes_gemm(self, affine: Affine) -> bool:
        return self.op_type == "MatMul" and affine.shift is not None

    def _refuse_gemm(self, context: Context) -> str | None:
        if self._tensor.dtype == ir.DataType.BFLOAT16:
            return "Gemm in bfloat16 has no kernel in onnxruntime"
        rank = self.output_rank(context)
        if rank != 2:
            return (
                f"Gemm needs rank 2; {describe(self.node)} has {'an unknown rank' if rank is None else rank}"
            )
        return None

    # The arithmetic.

    def _by_channel(self, weight: Array) -> tuple[Array, tuple[int, ...]]:
        """The weight in a shape where its channels are whole axes, and these axes."""
        if self.op_type == "ConvTranspose":
            rows, columns = weight.shape[:2]
            return weight.reshape(self._group, rows // self._group, columns, -1), (0, 2)
        return weight.reshape(*weight.shape[:2], -1), (0,) if self._rows_are_channels else (1,)

    def _row_blocks(self, tensor: ir.TensorProtocol) -> Iterator[slice]:
        """The first axis of the weight in pieces; of a mapped file, one of them at a time is in memory."""
        rows = int(tensor.shape.numpy()[0])
        mapped = isinstance(tensor, ir.ExternalTensor)  # any other is copied each time it is asked for
        whole = self.op_type == "ConvTranspose" or not mapped or tensor.nbytes <= _BLOCK
        step = rows if whole else max(1, rows * _BLOCK // tensor.nbytes)
        for start in range(0, rows, step):
            yield slice(start, start + step)
            release(tensor)

    def _largest_per_channel(self) -> Array:
        parts = []
        for rows in self._row_blocks(self._tensor):
            grouped, kept = self._by_channel(self._tensor.numpy()[rows])
            others = tuple(axis for axis in range(grouped.ndim) if axis not in kept)
            parts.append(np.maximum(grouped.max(axis=others), -grouped.min(axis=others)).astype(np.float64))
            del grouped  # a view of the map that is let go of
        if self._rows_are_channels or len(parts) == 1:
            return np.concatenate(parts).reshape(-1)
        largest: Array = np.maximum.reduce(parts)
        return largest.reshape(-1)

    def _scaled(self, scale: Array) -> ir.TensorProtocol:
        tensor = self._tensor

        def blocks() -> Iterator[Array]:
            for rows in self._row_blocks(tensor):
                grouped, kept = self._by_channel(tensor.numpy()[rows])
                factor = scale[rows] if self._rows_are_channels else scale
                factor = factor.reshape([n if axis in kept else 1 for axis, n in enumerate(grouped.shape)])
                product = np.empty(grouped.shape, tensor.dtype.numpy())
                np.multiply(grouped, factor, out=product, casting="unsafe", dtype=np.float64)
                del grouped  # a view of the map that is let go of
                yield product.reshape(-1)

        scaled = StreamedTensor(blocks, tensor.dtype, ir.Shape(tensor.shape.numpy()))
        lazy = isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > _LAZY_ABOVE
        return scaled if lazy else scaled.whole()

    def _bias_vector(self) -> Array | None:
        """The bias as float64 [channels]; None where it is left out or varies by row."""
        tensor = constant_of(self.bias)
        if tensor is None or (self.op_type != "Gemm" and tuple(tensor.shape) != (self.channels,)):
            return None
        rank = 2 if self.op_type == "Gemm" else 1
        vector = per_channel(tensor.numpy(), rank, -1, self.channels)
        beta = self.node.attributes.get_float("beta", 1.0)
        return vector if vector is None or self.op_type != "Gemm" else beta * vector

    def _new_bias(self, affine: Affine) -> Array | None:
        bias = self._bias_vector()
        if bias is not None and affine.scale is not None:
            bias = bias * affine.scale
        if bias is None or affine.shift is None:
            return affine.shift if bias is None else bias
        return bias + affine.shift

    def absorb(
        self, affine: Affine, output: ir.Value, context: Context, *, bias_from: ir.Value | None
    ) -> None:
        """Let one node compute ``output``, which is ``affine`` of this node's output.

        Args:
            affine: The map, after :meth:`refuse` and :meth:`refuse_affine` had no objection.
            output: The value to replace.
            context: Of the match.
            bias_from: The constant that lends its name to a bias where there was none.
        """
        weight, bias = self.weight, self._new_bias(affine)
        if affine.scale is not None:
            weight = context.constant(weight.name or "weight", self._scaled(affine.scale), heir_of=weight)
        inputs = [self.node.inputs[0], weight]
        if bias is not None:
            old = self.bias if self.bias is not None else bias_from
            wanted = (old.name if old is not None else None) or f"{self.weight.name}_bias"
            data = bias.astype(self._tensor.dtype.numpy())
            inputs.append(context.constant(wanted, data, heir_of=old))
        op_type = "Gemm" if self._becomes_gemm(affine) else self.op_type
        kept = [a for a in self.node.attributes.values() if a.name != "beta"]
        context.replace(output, op_type, inputs, kept, like=self.node)


def _is_finite(numbers: Array, dtype: ir.DataType) -> bool:
    """Whether the float64 numbers are finite after rounding to ``dtype``."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.all(np.isfinite(numbers.astype(dtype.numpy()).astype(np.float64))))
