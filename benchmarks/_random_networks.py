"""Operators of the random graphs that networks are made of."""

from __future__ import annotations

import numpy as np
from _random_graphs import Grower, Tensor
from _random_shapes import axes_form, some_axes


def _image(g: Grower) -> Tensor | None:
    x = g.pick(rank=4)
    if x is None or any(p for _, p in x.shape[1:]) or max(k for k, _ in x.shape[1:]) > 16:
        return None
    return x


def _behind(g: Grower, made: Tensor, channels: int) -> None:
    """What often follows a linear operator: BatchNormalization, scale, shift, an activation."""
    rank, current = len(made.shape), made
    sizes = [channels] + [1] * (rank - 2)
    for _ in range(g.number(0, 3)):
        form = g.number(0, 3)
        if form == 0:
            current = _batch_norm(g, current, channels)
        elif form == 1:
            shape = g.choose(([], sizes, [1, *sizes]))
            c = g.const(g.rng.uniform(0.5, 1.5, shape))
            current = g.add(g.choose(("Mul", "Div")), [current, c], current.shape)
        elif form == 2:
            c = g.const(g.rng.standard_normal(g.choose(([], sizes, [1, *sizes]))))
            op_type, left = g.choose(("Add", "Sub")), g.flip(0.7)
            current = g.add(op_type, [current, c] if left else [c, current], current.shape)
        else:
            current = g.add("Relu", [current], current.shape)


def _batch_norm(g: Grower, x: Tensor, channels: int) -> Tensor:
    parameters = [g.const(g.rng.uniform(0.5, 1.5, channels)) for _ in range(4)]
    return g.add("BatchNormalization", [x, *parameters], x.shape, epsilon=g.choose((1e-5, 1e-3)))


def conv(g: Grower) -> None:
    """Conv behind an optional Pad, with groups, strides, dilations, auto_pad."""
    x = _image(g)
    if x is None:
        return
    n, c, (h, _), (w, _) = x.shape
    k = g.choose((1, 2, 3))
    group = g.choose([d for d in (1, 2, c[0]) if c[0] % d == 0])
    m = group * g.number(1, 3)
    source, extra = x.name, 0
    if g.flip(0.3):
        pads = [0, 0, 1, 1, 0, 0, 1, 1]
        value = [g.const(g.choose((0.0, 0.0, 0.5)))] if g.flip(0.5) else []
        source, extra = g.op("Pad", [x.name, g.const(pads, np.int64), *value]), 2
    stride = g.number(1, 2)
    same = stride == 1 and k == 3 and g.flip(0.2)
    pads, more = (2, {"auto_pad": "SAME_UPPER"}) if same else (2, {"pads": [1] * 4}) if g.flip() else (0, {})
    if h + extra + pads < k or w + extra + pads < k:
        return
    sizes = [((side + extra + pads - k) // stride + 1, 0) for side in (h, w)]
    inputs = [source, g.weights(m, c[0] // group, k, k)] + ([g.weights(m)] if g.flip() else [])
    strides = [stride] * 2
    made = g.add("Conv", inputs, (n, (m, 0), *sizes), group=group, strides=strides, **more)
    _behind(g, made, m)


def conv_transpose(g: Grower) -> None:
    """ConvTranspose with groups."""
    x = _image(g)
    if x is None or x.shape[2][0] > 8:
        return
    n, c, (h, _), (w, _) = x.shape
    group = g.choose([d for d in (1, 2) if c[0] % d == 0])
    columns, k, stride = g.number(1, 3), g.choose((1, 2, 3)), g.number(1, 2)
    inputs = [x, g.weights(c[0], columns, k, k, scale=0.4)] + (
        [g.weights(columns * group)] if g.flip() else []
    )
    sizes = [((side - 1) * stride + k, 0) for side in (h, w)]
    shape = (n, (columns * group, 0), *sizes)
    made = g.add("ConvTranspose", inputs, shape, group=group, strides=[stride] * 2)
    _behind(g, made, columns * group)


def pool(g: Grower) -> None:
    """AveragePool and MaxPool, behind an optional Pad, and the global ones."""
    x = _image(g)
    if x is None:
        return
    n, c, (h, _), (w, _) = x.shape
    if g.flip(0.3):
        op_type = g.choose(("GlobalAveragePool", "GlobalMaxPool"))
        g.add(op_type, [x], (n, c, (1, 0), (1, 0)))
        return
    source, extra = x.name, 0
    if g.flip(0.4):
        value = [g.const(g.choose((0.0, 0.0, 0.5, -1.0)))] if g.flip() else []
        source = g.op("Pad", [x.name, g.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64), *value])
        extra = 2
    k, stride = g.choose((2, 3)), g.number(1, 2)
    pads = g.number(0, 1)
    more = (
        {"count_include_pad": g.number(0, 1)}
        if (op := g.choose(("AveragePool", "MaxPool"))) == "AveragePool"
        else {}
    )
    if min(h, w) + extra + 2 * pads >= k:
        sizes = [((side + extra + 2 * pads - k) // stride + 1, 0) for side in (h, w)]
        g.add(
            op, [source], (n, c, *sizes), kernel_shape=[k, k], strides=[stride] * 2, pads=[pads] * 4, **more
        )


def resize(g: Grower) -> None:
    """Resize by a constant scale."""
    x = _image(g)
    if x is not None:
        n, c, (h, _), (w, _) = x.shape
        scale = g.choose((1.0, 2.0))
        scales = g.const([1.0, 1.0, scale, scale])
        sizes = [(int(side * scale), 0) for side in (h, w)]
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        g.add("Resize", [x.name, "", scales], (n, c, *sizes), **how)


def normalize(g: Grower) -> None:
    """BatchNormalization alone, InstanceNormalization, LayerNormalization, Softmax."""
    x = g.pick(least=2)
    if x is None:
        return
    form = g.number(0, 3)
    channels = x.shape[1]
    if form == 0 and channels[1] == 0:
        _batch_norm(g, x, channels[0])
    elif form == 1 and channels[1] == 0 and len(x.shape) >= 3:
        inputs = [g.const(g.rng.uniform(0.5, 1.5, channels[0])) for _ in range(2)]
        g.add("InstanceNormalization", [x, *inputs], x.shape, epsilon=1e-3)
    elif form == 2 and g.opset >= 17 and x.shape[-1][1] == 0:
        inputs = [g.const(g.rng.uniform(0.5, 1.5, x.shape[-1][0])) for _ in range(g.number(1, 2))]
        g.add("LayerNormalization", [x, *inputs], x.shape, axis=-1, epsilon=1e-3)
    else:
        axis = g.number(-len(x.shape), len(x.shape) - 1)
        g.add(g.choose(("Softmax", "LogSoftmax")), [x], x.shape, axis=axis)


def reduce(g: Grower) -> None:
    """A reduction; axes as attribute or input, all axes where none are given."""
    x = g.pick(least=1)
    if x is None:
        return
    op_type = g.choose(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"))
    axes, keep = some_axes(g, len(x.shape)), g.number(0, 1)
    named = {a % len(x.shape) for a in axes}
    extra, attributes = axes_form(g, axes, 13 if op_type == "ReduceSum" else 18)
    kept = [(i, d) for i, d in enumerate(x.shape) if keep or i not in named]
    shape = tuple((1, 0) if i in named else d for i, d in kept)
    exact = x.exact and op_type in ("ReduceMax", "ReduceMin")
    g.add(op_type, [x, *extra], shape, exact=exact, keepdims=keep, **attributes)


def matmul(g: Grower) -> None:
    """MatMul by constant weights with what follows, Gemm with all its attributes."""
    x = g.pick(least=2)
    if x is None or x.shape[-1][1] or x.shape[-1][0] > 64:
        return
    k, m = x.shape[-1][0], g.number(1, 6)
    shape = (*x.shape[:-1], (m, 0))
    if len(x.shape) == 2 and g.flip():
        transposed = g.number(0, 1)
        inputs = [x.name, g.weights(m, k) if transposed else g.const(g.rng.standard_normal((k, m)) * k**-0.5)]
        inputs += [g.weights(*g.choose(([m], [1, m], [1], []))) for _ in range(g.number(0, 1))]
        scales = {"alpha": g.choose((1.0, 0.5)), "beta": g.choose((1.0, 2.0))} if g.flip(0.4) else {}
        made = g.add("Gemm", inputs, shape, transB=transposed, **scales)
    else:
        made = g.add("MatMul", [x, g.const(g.rng.standard_normal((k, m)) * k**-0.5)], shape)
        if g.flip():
            c = g.weights(*g.choose(([m], [1, m], [])))
            made = g.add("Add", [made, c] if g.flip() else [c, made], shape)
    if len(shape) == 2:
        _behind(g, made, m)


def attention(g: Grower) -> None:
    """Softmax(x x^T) x with a scale, and products of two values."""
    x = g.pick(least=3)
    if x is None or x.shape[-1][1] or x.shape[-1][0] > 64 or x.shape[-2][1]:
        return
    rank = len(x.shape)
    order = [*range(rank - 2), rank - 1, rank - 2]
    key = g.op("Transpose", [x.name], perm=order)
    scores = g.op("MatMul", [x.name, key])
    scores = g.op("Div", [scores, g.const(x.shape[-1][0] ** 0.5)]) if g.flip() else scores
    if g.opset < 13 or g.flip(0.7):
        g.add("MatMul", [g.op("Softmax", [scores], axis=rank - 1), x.name], x.shape)
    else:
        g.pool.append(Tensor(scores, (*x.shape[:-1], x.shape[-2])))


def einsum(g: Grower) -> None:
    """A contraction by Einsum."""
    x = g.pick(rank=3)
    if x is not None and g.opset >= 12 and x.shape[-1][1] == 0 and x.shape[-1][0] <= 64:
        w = g.const(g.rng.standard_normal((x.shape[-1][0], 3)) * 0.3)
        g.add("Einsum", [x.name, w], (*x.shape[:-1], (3, 0)), equation="bij,jk->bik")
