"""A Mul or Div by a constant behind a bias, a Transpose or both folds into the product before them.

With the output channel as the only axis along which the constant varies, and ``T`` a Transpose::

    T(x W + b) * c  =  T(x (W * c') + b * c')        c' = c with its axes put back as T found them

So ends every block of ConvNeXt and of CaiT (``layer_scale``), and so are the queries of Whisper and BART
scaled. The constant next to the product itself is :mod:`affine`'s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_of
from graphopt.passes.fusion.linear import FLOAT_TYPES, Affine, Linear, may_be_constant, per_channel
from graphopt.rewrite import Context, Rule, is_exclusive, producer, why_not_constant

__all__ = ["DistantScale"]

Array = np.ndarray[Any, np.dtype[Any]]


class Match(NamedTuple):
    """What stands between a product and its scale.

    Attributes:
        linear: The product.
        add: The Add of a bias, with the place of the bias among its inputs; None where there is none.
        transpose: The Transpose; None where there is none.
        node: The Mul or Div.
        side: The place of the scaled value among its inputs.
    """

    linear: Linear
    add: tuple[ir.Node, int] | None
    transpose: ir.Node | None
    node: ir.Node
    side: int

    @property
    def constant(self) -> ir.Value:
        """The scale, or the divisor."""
        value = self.node.inputs[1 - self.side]
        assert value is not None
        return value

    @property
    def bias(self) -> ir.Value | None:
        """The operand of the Add that is no product."""
        return None if self.add is None else self.add[0].inputs[self.add[1]]


class DistantScale(Rule[Match]):
    """A linear operator, Add and Transpose or one of them, then Mul or Div: no Mul or Div."""

    name = "distant-scale"
    roots = ("Mul", "Div")

    def match(self, node: ir.Node) -> Match | None:
        """A constant on one side, on the other a product with at least one of the two between."""
        for side in (0, 1):
            if len(node.inputs) != 2 or not may_be_constant(node.inputs[1 - side]):
                continue
            value = node.inputs[side]
            transpose = producer(value, node, "Transpose")
            if transpose is not None:
                value = transpose.inputs[0]
            add = _biased(value, node)
            if add is not None:
                value = add[0].inputs[1 - add[1]]
            found = producer(value, node, *Linear.op_types)
            if found is None or (add is None and transpose is None) or not may_be_constant(found.inputs[1]):
                continue
            return Match(Linear(found), add, transpose, node, side)
        return None

    def check(self, match: Match, context: Context) -> str | None:
        """Nothing else reads what changes, all is constant, the scale and the bias vary by channel alone."""
        if match.node.op_type == "Div" and match.side == 1:
            return "the product is the divisor"
        between = [n for n in (match.add[0] if match.add else None, match.transpose) if n is not None]
        for node in between:
            if not is_exclusive(node.outputs[0]):
                return f"'{node.outputs[0].name}' is used elsewhere"
        reason = match.linear.refuse(context) or why_not_constant(match.constant, "the constant")
        if reason is not None:
            return reason
        scale = _scale(match, context)
        if scale is None:
            return f"the constant '{match.constant.name}' does not vary by output channel alone"
        if match.bias is not None and _bias(match, scale, context) is None:
            return f"the bias '{match.bias.name}' does not vary by output channel alone, or would overflow"
        return match.linear.refuse_affine(Affine(scale), context)

    def rewrite(self, match: Match, context: Context) -> None:
        """Scale the weight and the biases; what stood between makes the output."""
        scale = _scale(match, context)
        assert scale is not None
        bias = None if match.bias is None else _bias(match, scale, context)
        old = match.bias
        match.linear.absorb(Affine(scale), match.linear.output, context, bias_from=None)
        if match.add is not None and bias is not None and old is not None:
            add, place = match.add
            inputs = list(add.inputs)
            inputs[place] = context.constant(old.name or "bias", bias, heir_of=old)
            context.replace(add.outputs[0], "Add", inputs, like=add)
        value = match.node.inputs[match.side]
        assert value is not None
        context.redirect(match.node.outputs[0], value, like=match.node)


def _biased(value: ir.Value | None, user: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add of a constant that makes ``value``, and the place of the constant."""
    add = producer(value, user, "Add")
    if add is None or len(add.inputs) != 2:
        return None
    places = [i for i, v in enumerate(add.inputs) if may_be_constant(v)]
    return (add, places[0]) if len(places) == 1 else None


def _scale(match: Match, context: Context) -> Array | None:
    """The factor of each output channel, float64; None where the constant varies otherwise."""
    linear, tensor = match.linear, constant_of(match.constant)
    rank = linear.output_rank(context)
    if tensor is None or tensor.dtype not in FLOAT_TYPES or rank is None or len(tensor.shape) > rank:
        return None
    constant = tensor.numpy()
    if match.transpose is not None:
        constant = constant.reshape([1] * (rank - constant.ndim) + list(constant.shape))
        order = match.transpose.attributes.get_ints("perm", tuple(reversed(range(rank))))
        if sorted(order) != list(range(rank)):
            return None
        constant = constant.transpose(np.argsort(order))
    scale = per_channel(constant, rank, linear.channel_axis, linear.channels)
    if scale is None or match.node.op_type == "Mul":
        return scale
    with np.errstate(divide="ignore"):  # what is not finite is refused later
        return 1.0 / scale


def _bias(match: Match, scale: Array, context: Context) -> Array | None:
    """The scaled bias, shaped for the product; None where it varies otherwise, or is not finite."""
    linear, tensor = match.linear, constant_of(match.bias)
    rank = linear.output_rank(context)
    if tensor is None or tensor.dtype not in FLOAT_TYPES or rank is None:
        return None
    bias = per_channel(tensor.numpy(), rank, linear.channel_axis, linear.channels)
    if bias is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (bias * scale).astype(tensor.dtype.numpy())
    behind = rank - 1 - linear.channel_axis % rank
    return scaled.reshape(-1, *[1] * behind) if np.all(np.isfinite(scaled.astype(np.float64))) else None
