"""Operators on transposed tensors: what each becomes when the Transpose comes behind it instead of before.

``v = Transpose(w, order)`` means that axis ``i`` of ``v`` is axis ``order[i]`` of ``w``. Each function here
looks at one node with such inputs and tells the operator that makes the same output from the ``w`` s, up to
an order of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of, release
from graphopt.limits import KIB, MIB
from graphopt.passes.layout._operands import axes_input, cuts_of, ints_at, normal_axis
from graphopt.rewrite import Context, input_at, is_exclusive, is_op

__all__ = ["MOVABLE", "Moved", "Operand", "Order", "Reshaped", "move", "settled"]

Order = tuple[int, ...]
#: A constant with other uses is copied only below this size; above, a copy would inflate the model.
_COPY_BELOW: Final = 4 * KIB
#: A constant that is larger than this is transposed when it is read: it may lie in a file.
_LAZY_ABOVE: Final = 16 * MIB


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNARY: Final = _names(
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin "
    "Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_ELEMENTWISE: Final = _names(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum "
    "Where Xor"
)
_REDUCING: Final = _names(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
)


class Reshaped(NamedTuple):
    """An operand that a Reshape of ``source`` makes, in place of ``value``, which another Reshape makes."""

    source: ir.Value
    target: ir.TensorProtocol
    value: ir.Value


Operand = ir.Value | ir.TensorProtocol | Reshaped | None


class Moved(NamedTuple):
    """What a node becomes.

    Attributes:
        inputs: A transposed value, which stands for the ``w`` behind it; a value to use as it is; a new
            constant; a new Reshape; None for an input that is left out.
        attributes: Those of the new node.
        order: In which the new output must be transposed.
    """

    inputs: Sequence[Operand]
    attributes: list[ir.Attr]
    order: Order


Orders = Mapping[ir.Value, Order]
_Mover = Callable[[ir.Node, Orders, Context], Moved | None]


def move(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    """What ``node`` becomes, given in which order its transposed inputs are; None where it must stay."""
    if len(node.outputs) != 1 or not is_op(node, node.op_type):
        return None
    mover = _MOVERS.get(node.op_type)
    return None if mover is None else mover(node, orders, context)


def _order_at(node: ir.Node, index: int, orders: Orders) -> Order | None:
    value = input_at(node, index)
    return None if value is None else orders.get(value)


def _attributes(node: ir.Node, *changed: ir.Attr) -> list[ir.Attr]:
    names = {a.name for a in changed}
    return [*(a for a in node.attributes.values() if a.name not in names), *changed]


def _unary(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    order = _order_at(node, 0, orders)
    if order is None or any(v in orders for v in node.inputs[1:]):
        return None
    return Moved(list(node.inputs), _attributes(node), order)


def _elementwise(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    found = {orders[v] for v in node.inputs if v is not None and v in orders}
    if len(found) != 1 or context.opset < 7:
        return None
    order = found.pop()
    inputs: list[Operand] = []
    for value in node.inputs:
        operand: Operand = value
        if value is not None and value not in orders:
            operand = _broadcast(value, order) or _reshaped(value, order)
        if operand is None:
            return None
        inputs.append(operand)
    return Moved(inputs, _attributes(node), order)


def _broadcast(value: ir.Value, order: Order) -> ir.Value | ir.TensorProtocol | None:
    """A constant operand for the other order of axes; None where it is none, or shared and large."""
    tensor = constant_of(value)
    if tensor is None or len(tensor.shape) > len(order) or tensor.dtype == ir.DataType.STRING:
        return None
    if tensor.size == 1:
        return value
    shape = (1,) * (len(order) - len(tensor.shape)) + tuple(tensor.shape.numpy())
    return _rearranged(value, tensor, shape, tuple(int(axis) for axis in np.argsort(order)))


def _reshaped(value: ir.Value, order: Order) -> Reshaped | None:
    """An operand that a Reshape makes, where the axes of more than one element stay in order: a row of
    channels [n, 1, 1, c] for squeeze and excitation becomes [n, c, 1, 1].
    """
    node = value.producer()
    if node is None or not is_op(node, "Reshape") or node.attributes.get_int("allowzero", 0) != 0:
        return None
    sizes, source = ints_at(node, 1), node.inputs[0]
    if source is None or sizes is None or len(sizes) != len(order) or 0 in sizes:
        return None
    inverse = [int(axis) for axis in np.argsort(order)]
    longer = [axis for axis in inverse if sizes[axis] != 1]
    if longer != sorted(longer):
        return None
    return Reshaped(source, axes_input(sizes[axis] for axis in inverse), value)


def _rearranged(
    value: ir.Value, tensor: ir.TensorProtocol, shape: tuple[int, ...], order: Order
) -> ir.TensorProtocol | None:
    if tensor.nbytes >= _COPY_BELOW and not is_exclusive(value):
        return None
    if tensor.dtype.bitwidth < 8:
        return None  # packed

    def rearrange() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy().reshape(shape).transpose(order))
        release(tensor)
        return ir.Tensor(array, dtype=tensor.dtype)

    return ir.LazyTensor(rearrange, tensor.dtype, ir.Shape([shape[axis] for axis in order]))


def settled(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A new constant as the model holds it: computed now, unless it is large."""
    if isinstance(tensor, ir.LazyTensor) and tensor.nbytes <= _LAZY_ABOVE:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    return tensor


def _matmul(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    """``A^T W = (W^T A)^T``: the operands change places, the constant is transposed.

    Where the last axis stays the last, a product with a constant matrix does not mind the others' order.
    """
    data, constant = _order_at(node, 0, orders), constant_of(node.inputs[1])
    if data is not None and data[-1] == len(data) - 1 and constant is not None and len(constant.shape) == 2:
        return Moved(list(node.inputs), [], data)
    for side in (0, 1):
        order, other = _order_at(node, side, orders), node.inputs[1 - side]
        tensor = constant_of(other)
        if order is None or other is None or tensor is None or len(tensor.shape) != 2:
            continue
        if len(order) < 2 or order != (*range(len(order) - 2), len(order) - 1, len(order) - 2):
            continue
        rows, columns = tensor.shape.numpy()
        weight = _rearranged(other, tensor, (rows, columns), (1, 0))
        if weight is not None:
            return Moved([weight, node.inputs[0]] if side == 0 else [node.inputs[1], weight], [], order)
    return None


def _softmax(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    order = _order_at(node, 0, orders)
    if order is None or context.opset < 13:  # before, it flattened the axes behind its own
        return None
    axis = order[node.attributes.get_int("axis", -1)]
    return Moved(list(node.inputs), _attributes(node, ir.AttrInt64("axis", axis)), order)


def _concat(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    moved = _whole_operands(node, orders)
    axis = node.attributes.get_int("axis", 1)
    if moved is None or not -len(moved[1]) <= axis < len(moved[1]):
        return None
    return Moved(moved[0], [ir.AttrInt64("axis", moved[1][axis])], moved[1])


def _whole_operands(
    node: ir.Node, orders: Orders
) -> tuple[list[ir.Value | ir.TensorProtocol | None], Order] | None:
    found = {orders[v] for v in node.inputs if v is not None and v in orders}
    if len(found) != 1:
        return None
    order = found.pop()
    inverse = tuple(int(axis) for axis in np.argsort(order))
    inputs: list[ir.Value | ir.TensorProtocol | None] = []
    for value in node.inputs:
        tensor = constant_of(value)
        if value is None or (value not in orders and tensor is None):
            return None
        if value in orders or tensor is None:
            inputs.append(value)
            continue
        operand = _rearranged(value, tensor, tuple(tensor.shape.numpy()), inverse)
        if operand is None:
            return None
        inputs.append(operand)
    return inputs, order


def _reduce(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    order, axes = _order_at(node, 0, orders), ints_at(node, 1, "axes")
    if order is None or not axes or any(not -len(order) <= axis < len(order) for axis in axes):
        return None
    reduced = {axis % len(order) for axis in axes}
    new_axes = sorted(order[axis] for axis in reduced)
    keep = node.attributes.get_int("keepdims", 1)
    result = order if keep else _without(order, reduced)
    if "axes" in node.attributes:
        return Moved([node.inputs[0]], _attributes(node, ir.AttrInt64s("axes", new_axes)), result)
    return Moved([node.inputs[0], axes_input(new_axes)], _attributes(node), result)


def _without(order: Order, axes: set[int]) -> Order:
    """The order of the axes that are left, these counted anew."""
    left = [place for axis, place in enumerate(order) if axis not in axes]
    return tuple(sorted(left).index(place) for place in left)


def _pad(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    order, pads = _order_at(node, 0, orders), ints_at(node, 1)
    if order is None or pads is None or context.opset < 11 or len(pads) != 2 * len(order):
        return None
    if input_at(node, 3) is not None or any(v in orders for v in node.inputs[1:]):
        return None
    inverse = [int(axis) for axis in np.argsort(order)]
    begins, ends = pads[: len(order)], pads[len(order) :]
    new = axes_input([*(begins[axis] for axis in inverse), *(ends[axis] for axis in inverse)])
    return Moved([node.inputs[0], new, *node.inputs[2:]], _attributes(node), order)


def _slice(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    order, cuts = _order_at(node, 0, orders), cuts_of(node, context)
    if order is None or not cuts or any(axis >= len(order) for axis in cuts):
        return None
    columns = [(c.start, c.end, order[axis], c.step) for axis, c in cuts.items()]
    inputs = [axes_input(column) for column in zip(*columns, strict=True)]
    return Moved([node.inputs[0], *inputs], [], order)


def _layer_normalization(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    """Over the last axis, where that stays the last one."""
    order = _order_at(node, 0, orders)
    if order is None or order[-1] != len(order) - 1:
        return None
    if any(v in orders or (v is not None and context.rank(v) != 1) for v in node.inputs[1:]):
        return None
    if normal_axis(node.attributes.get_int("axis", -1), node.inputs[0], context) != len(order) - 1:
        return None
    return Moved(list(node.inputs), _attributes(node), order)


def _linear(node: ir.Node, orders: Orders, context: Context) -> Moved | None:
    """With one scale for the whole tensor."""
    order = _order_at(node, 0, orders)
    if order is None or any(v is not None and context.rank(v) != 0 for v in node.inputs[1:]):
        return None
    return Moved(list(node.inputs), _attributes(node), order)


_MOVERS: Final[dict[str, _Mover]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCING, _reduce),
    "Concat": _concat,
    "DequantizeLinear": _linear,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Pad": _pad,
    "QuantizeLinear": _linear,
    "Slice": _slice,
    "Softmax": _softmax,
}
#: Operators of which some can do without the Transposes before them.
MOVABLE: Final = frozenset(_MOVERS)
