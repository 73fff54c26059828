"""Operators of the random graphs that work element by element, and formulas of them."""

from __future__ import annotations

import math

import numpy as np
from _random_graphs import Grower, Shape, Tensor, static
from _random_shapes import axes_form, broadcast
from onnx import TensorProto


def _broadcastable(g: Grower, shape: Shape) -> list[int]:
    """Sizes of a constant that broadcasts to the shape; sometimes of higher rank."""
    static_sizes = [k if p == 0 and g.flip() else 1 for k, p in shape]
    form = g.rng.random()
    if form < 0.3:
        return []
    if form < 0.6 and shape and shape[-1][1] == 0:
        return [shape[-1][0]]
    if form < 0.8 and len(shape) >= 2 and shape[1][1] == 0:
        return [shape[1][0]] + [1] * (len(shape) - 2)
    return [1, *static_sizes] if form > 0.96 and len(shape) < 4 else static_sizes


_SMOOTH = (
    "Relu",
    "Abs",
    "Neg",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Softplus",
    "LeakyRelu",
    "Elu",
    "Selu",
    "HardSigmoid",
)
_SMOOTH += ("Sin", "Cos", "Softsign", "Identity", "Dropout", "Atan")
_COPYING = ("Relu", "Abs", "Neg", "Identity", "Dropout")
_JUMPING = ("Floor", "Ceil", "Round", "Sign")


def unary(g: Grower) -> None:
    """One smooth function."""
    names = [*_SMOOTH, *(["HardSwish"] if g.opset >= 14 else []), *(["Mish"] if g.opset >= 18 else [])]
    names += ["Gelu"] if g.opset >= 20 else []
    op_type, x = g.choose(names), g.pick()
    if x is not None:
        g.add(op_type, [x], x.shape, exact=x.exact and op_type in _COPYING)


def jump(g: Grower) -> None:
    """A function that jumps, or rounding by QuantizeLinear and DequantizeLinear, of an exact value."""
    x = g.pick(exact=True)
    if x is None:
        return
    if g.flip(0.7):
        g.add(g.choose(_JUMPING), [x], x.shape, exact=True)
        return
    dtype = g.choose((np.uint8, np.int8))
    parameters = [g.const(0.05), g.const(3, dtype)]
    quantized = g.op("QuantizeLinear", [x.name, *parameters])
    if g.flip(0.3):
        quantized = g.op("QuantizeLinear", [g.op("DequantizeLinear", [quantized, *parameters]), *parameters])
    g.add("DequantizeLinear", [quantized, *parameters], x.shape, exact=True)


def clip(g: Grower) -> None:
    """Clip by constants, one of them left out at times."""
    x = g.pick()
    if x is not None:
        bounds = [g.const(-0.7) if g.flip(0.8) else "", g.const(0.9) if g.flip(0.8) else ""]
        while bounds and not bounds[-1]:
            bounds.pop()
        g.add("Clip", [x, *bounds], x.shape, exact=x.exact)


def guarded(g: Grower) -> None:
    """Sqrt, Log, Reciprocal, Exp, Pow and Div where they are well conditioned."""
    x = g.pick()
    if x is None:
        return
    positive = g.op("Add", [g.op("Abs", [x.name]), g.const(g.choose((0.5, 1.0, 2.0)))])
    form = g.number(0, 5)
    if form < 3:
        g.add(("Sqrt", "Log", "Reciprocal")[form], [positive], x.shape)
    elif form == 3:
        g.add("Exp", [g.op("Tanh", [x.name])], x.shape)
    elif form == 4:
        g.add("Pow", [positive, g.const(g.choose((0.5, 1.0, 2.0, -0.5)))], x.shape)
    else:
        g.add("Div", [x, positive], x.shape)


def by_constant(g: Grower) -> None:
    """Add, Sub, Mul, Div, Max, Min with a constant, neutral ones among them."""
    x = g.pick()
    if x is None:
        return
    op_type = g.choose(("Add", "Sub", "Mul", "Mul", "Add", "Div", "Max", "Min", "Pow", "PRelu"))
    sizes = _broadcastable(g, x.shape)
    data = np.full(sizes, g.choose((0.0, 1.0, -1.0))) if g.flip(0.25) else g.rng.uniform(0.5, 1.5, sizes)
    data = np.where(data == 0, 1, data) if op_type in ("Div", "Pow") else data
    c = g.const(data)
    shape = broadcast(x.shape, static(*sizes))
    if op_type == "Pow":
        g.add("Pow", [x, g.const(g.choose((1.0, 2.0, 3.0)))], x.shape)
    elif op_type == "PRelu":
        g.add("PRelu", [x, c], x.shape) if shape == x.shape else None
    elif shape is not None:
        left = op_type == "Div" or g.flip(0.7)
        g.add(op_type, [x, c] if left else [c, x], shape, exact=x.exact and op_type in ("Max", "Min"))


def binary(g: Grower) -> None:
    """Two values that broadcast."""
    a, b = g.pick(), g.pick()
    shape = None if a is None or b is None else broadcast(a.shape, b.shape)
    if a is not None and b is not None and shape is not None:
        op_type = g.choose(("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"))
        g.add(op_type, [a, b], shape, exact=a.exact and b.exact and op_type in ("Max", "Min"))


def where(g: Grower) -> None:
    """Where on a comparison of exact values; logic between comparisons."""
    x, y = g.pick(exact=True), g.pick()
    if x is None or y is None:
        return
    compare = g.choose(("Greater", "Less", "Equal") + (("GreaterOrEqual",) if g.opset >= 12 else ()))
    mask = g.op(compare, [x.name, g.const(g.choose((0.0, 0.5)))])
    if g.flip(0.3):
        mask = g.op("Not", [mask])
    if g.flip(0.2):
        mask = g.op(g.choose(("And", "Or")), [mask, g.const(g.flip(), np.bool_)])
    g.pool.append(Tensor(mask, x.shape, "b", True))
    shape = broadcast(x.shape, y.shape)
    if shape is not None:
        other = g.const(g.rng.standard_normal(()))
        g.add("Where", [mask, y.name, other] if g.flip() else [mask, other, y.name], shape)


def cast(g: Grower) -> None:
    """To another type and mostly back."""
    x = g.pick(g.choose("fffib"), exact=g.flip())
    if x is None:
        return
    if x.kind != "f":
        g.add("Cast", [x], x.shape, to=TensorProto.FLOAT, exact=x.exact)
        return
    through = [TensorProto.DOUBLE, TensorProto.FLOAT] + (
        [TensorProto.INT32, TensorProto.INT64] if x.exact else []
    )
    to = g.choose(through)
    middle = g.op("Cast", [x.name], to=to)
    if to == TensorProto.INT64:
        g.pool.append(Tensor(middle, x.shape, "i", True))
    elif g.opset >= 15 and g.flip(0.3):
        g.add("CastLike", [middle, x.name], x.shape, exact=x.exact)
    else:
        g.add("Cast", [middle], x.shape, to=TensorProto.FLOAT, exact=x.exact)


def integers(g: Grower) -> None:
    """Integer arithmetic, also past 2**31."""
    x = g.pick("i")
    if x is not None:
        op_type = g.choose(("Add", "Sub", "Mul", "Div", "Mod"))
        c = g.const(g.choose((1, 2, 3, -2, 7)), np.int64)
        g.add(op_type, [x, c], x.shape, kind="i", exact=x.exact)


def formula(g: Grower) -> None:
    """What exporters write for GELU, SiLU, hard swish, RMSNorm and LayerNorm."""
    x = g.pick(least=1)
    if x is not None:
        g.choose((_gelu, _silu, _hard_swish, _layer_norm, _rms_norm))(g, x)


def _gelu(g: Grower, x: Tensor) -> None:
    if g.flip():
        inner = g.op("Erf", [g.op("Div", [x.name, g.const(math.sqrt(2))])])
    else:
        cube = g.op("Mul", [g.const(0.044715), g.op("Pow", [x.name, g.const(3.0)])])
        inner = g.op("Tanh", [g.op("Mul", [g.op("Add", [x.name, cube]), g.const(math.sqrt(2 / math.pi))])])
    curve = g.op("Add", [inner, g.const(1.0)])
    g.add("Mul", [g.op("Mul", [x.name, curve]), g.const(g.choose((0.5, 0.5, 0.4)))], x.shape)


def _silu(g: Grower, x: Tensor) -> None:
    gate = g.op("Sigmoid", [x.name])
    g.add("Mul", [x.name, gate] if g.flip() else [gate, x.name], x.shape)


def _hard_swish(g: Grower, x: Tensor) -> None:
    gate = g.op("Clip", [g.op("Add", [x.name, g.const(3.0)]), g.const(0.0), g.const(6.0)])
    g.add("Div", [g.op("Mul", [x.name, gate]), g.const(6.0)], x.shape)


def _mean(g: Grower, name: str, keepdims: int = 1) -> str:
    extra, attributes = axes_form(g, [-1], 18)
    return str(g.op("ReduceMean", [name, *extra], keepdims=keepdims, **attributes))


def _layer_norm(g: Grower, x: Tensor) -> None:
    centered = g.op("Sub", [x.name, _mean(g, x.name)])
    square = g.op("Pow", [centered, g.const(2.0)]) if g.flip() else g.op("Mul", [centered, centered])
    epsilon = g.const(g.choose((1e-3, 1e-2)))  # a smaller one blows up the rounding of rows that are constant
    root = g.op("Sqrt", [g.op("Add", [_mean(g, square), epsilon])])
    _scale_and_shift(g, x, g.op("Div", [centered, root]))


def _rms_norm(g: Grower, x: Tensor) -> None:
    square = g.op("Pow", [x.name, g.const(2.0)]) if g.flip() else g.op("Mul", [x.name, x.name])
    sides = [_mean(g, square), g.const(g.choose((1e-5, 1e-3)))]
    inner = g.op("Add", sides if g.flip(0.7) else sides[::-1])
    form, root = g.number(0, 3), ""
    if form < 3:
        root = g.op("Sqrt", [inner])
    if form == 0:
        _scale_and_shift(g, x, g.op("Div", [x.name, root]))
        return
    if form == 1:
        inverse = g.op("Reciprocal", [root])
    elif form == 2:
        inverse = g.op("Div", [g.const(1.0), root])
    else:
        inverse = g.op("Pow", [inner, g.const(-0.5)])
    _scale_and_shift(g, x, g.op("Mul", [x.name, inverse] if g.flip() else [inverse, x.name]))


def _scale_and_shift(g: Grower, x: Tensor, name: str) -> None:
    sizes = [x.shape[-1][0]] if x.shape[-1][1] == 0 and g.flip(0.9) else []
    scale = g.const(g.rng.uniform(0.5, 1.5, sizes))
    scaled = g.op("Mul", [name, scale] if g.flip() else [scale, name])
    g.add("Add", [scaled, g.const(g.rng.standard_normal(sizes))], x.shape) if g.flip() else g.add(
        "Identity", [scaled], x.shape
    )
