"""Operators of the random graphs that transformers are made of, each in several written forms."""

from __future__ import annotations

import math

import numpy as np
from _random_graphs import Dim, Grower, Tensor
from _random_shapes import axes_form


def _project(g: Grower, name: str, width: int, columns: int) -> str:
    """MatMul by weights, with a bias or without."""
    made = g.op("MatMul", [name, g.const(g.rng.standard_normal((width, columns)) * width**-0.5)])
    if g.flip(0.4):
        bias = g.weights(columns)
        made = g.op("Add", [made, bias] if g.flip() else [bias, made])
    return str(made)


def _reshape(g: Grower, name: str, shape: list[Dim], copied: int = 0) -> str:
    """Reshape to a constant target: open axes as -1, the first ``copied`` axes at times as 0."""
    entries = [-1 if p else k for k, p in shape]
    for i in range(copied):
        entries[i] = 0 if g.flip(0.6) or entries.count(-1) > 1 else entries[i]
    return str(g.op("Reshape", [name, g.const(entries, np.int64)]))


def _sequence(g: Grower) -> Tensor | None:
    """A value [batch, sequence, width] whose last axes are small and static."""
    x = g.pick(rank=3)
    if x is None or any(p for _, p in x.shape[1:]) or max(k for k, _ in x.shape[1:]) > 32:
        return None
    return x


def heads(g: Grower) -> None:
    """Attention over heads, as written anywhere: scales, masks, rotary positions, fewer heads of K and V."""
    x = _sequence(g)
    if x is None or x.shape[2][0] < 2:
        return
    b, (s, _), (e, _) = x.shape
    count = g.choose([h for h in (1, 2, 4) if e % h == 0])
    size = e // count
    fewer = g.choose([k for k in (1, 2, 4) if count % k == 0]) if g.flip(0.3) else count
    q, k, v = (
        _reshape(g, _project(g, x.name, e, h * size), [b, (s, 0), (h, 0), (size, 0)], 2)
        for h in (count, fewer, fewer)
    )
    q, v = (g.op("Transpose", [t], perm=[0, 2, 1, 3]) for t in (q, v))
    turned = size % 2 == 0 and g.flip(0.3)
    plain = turned or fewer != count or g.flip()
    k = g.op("Transpose", [k], perm=[0, 2, 1, 3] if plain else [0, 2, 3, 1])
    if turned:
        q, k = _rotate(g, q, s, size), _rotate(g, k, s, size)
    if fewer != count:
        k, v = (_repeat_heads(g, t, (b, (s, 0), (size, 0)), fewer, count) for t in (k, v))
    k = g.op("Transpose", [k], perm=[0, 1, 3, 2]) if plain else k
    made = _attend(g, (q, k, v), size, (b, (count, 0), (s, 0), (s, 0)), _mask(g, x, 4))
    made = g.op("Transpose", [made], perm=[0, 2, 1, 3])
    made = _reshape(g, made, [b, (s, 0), (e, 0)], 2)
    g.pool.append(Tensor(_project(g, made, e, e) if g.flip() else made, x.shape))


def folded_heads(g: Grower) -> None:
    """Attention with heads folded into the batch axis, sequence first, as torch.nn.MultiheadAttention."""
    x = _sequence(g)
    if x is None:
        return
    s, (b, _), (e, _) = x.shape
    count = g.choose([h for h in (1, 2) if e % h == 0])
    size = e // count
    parts = []
    for _ in range(3):
        folded = _reshape(g, _project(g, x.name, e, e), [s, (b * count, 0), (size, 0)], 1)
        parts.append(g.op("Transpose", [folded], perm=[1, 0, 2]))
    q, k, v = parts
    k = g.op("Transpose", [k], perm=[0, 2, 1])
    made = _attend(g, (q, k, v), size, ((b * count, 0), s, s), "")
    made = g.op("Transpose", [made], perm=[1, 0, 2])
    g.pool.append(Tensor(_reshape(g, made, [s, (b, 0), (e, 0)], 1), x.shape))


def _attend(g: Grower, given: tuple[str, str, str], size: int, shape: tuple[Dim, ...], mask: str) -> str:
    """Softmax(scale Q K + mask) V, where K is transposed already."""
    q, k, v = given
    form, scale = g.number(0, 4), size**-0.5
    if form == 0:
        q = g.op("Mul", [q, g.const(scale)])
    elif form == 1:
        q, k = (g.op("Mul", [t, g.const(math.sqrt(scale))]) for t in (q, k))
    scores = g.op("MatMul", [q, k])
    if form == 2:
        scores = g.op("Div", [scores, g.const(1 / scale)])
    elif form == 3:
        scores = g.op("Mul", [scores, g.const(scale)] if g.flip() else [g.const(scale), scores])
    if mask.startswith("where:"):
        scores = g.op("Where", [mask.removeprefix("where:"), scores, g.const(-1e9)])
    elif mask:
        scores = g.op("Add", [scores, mask] if g.flip() else [mask, scores])
    if g.flip(0.1):
        g.pool.append(Tensor(scores, shape))
    weights = g.op("Softmax", [scores], axis=g.choose((-1, len(shape) - 1)))
    weights = g.op("Dropout", [weights]) if g.flip(0.1) else weights
    return str(g.op("MatMul", [weights, v]))


def _mask(g: Grower, x: Tensor, rank: int) -> str:
    """The name of an addend, of a condition behind ``where:``, or nothing."""
    s, form = x.shape[1][0], g.number(0, 5)
    if form == 0:
        return g.const(np.triu(np.full((s, s), g.choose((-1e4, -3.4028234663852886e38))), 1))
    if form == 1:
        return "where:" + g.const(np.tril(np.ones([1] * (rank - 2) + [s, s])), np.bool_)
    if form == 2:
        return g.const(g.rng.standard_normal([1] * (rank - 2) + [s, s]))
    if form == 3 and x.exact:
        return _padding_mask(g, x)
    return ""


def _padding_mask(g: Grower, x: Tensor) -> str:
    """-10000 where the first feature of a token is not positive, [batch, 1, 1, sequence]."""
    first = g.op("Gather", [x.name, g.const(0, np.int64)], axis=2)
    kept = g.op("Cast", [g.op("Greater", [first, g.const(0.0)])], to=1)
    extra, attributes = axes_form(g, [1, 2], 13)
    kept = g.op("Unsqueeze", [kept, *extra], **attributes)
    return str(g.op("Mul", [g.op("Sub", [g.const(1.0), kept]), g.const(-1e4)]))


def _repeat_heads(g: Grower, name: str, shape: tuple[Dim, Dim, Dim], have: int, wanted: int) -> str:
    """Every head of K or V as often as queries share it."""
    b, s, size = shape
    extra, attributes = axes_form(g, [2], 13)
    made = g.op("Unsqueeze", [name, *extra], **attributes)
    times = [1, 1, wanted // have, 1, 1]
    made = g.op("Expand" if g.flip() else "Tile", [made, g.const(times, np.int64)])
    return _reshape(g, made, [b, (wanted, 0), s, size], 1)


# Rotary positions.


def rotary(g: Grower) -> None:
    """Rotary position embedding of the last axis, or of a part of it."""
    x = g.pick(least=2)
    if x is None or any(p for _, p in x.shape[-2:]) or x.shape[-1][0] % 2 or x.shape[-1][0] > 32:
        return
    length, size = x.shape[-2][0], x.shape[-1][0]
    if size % 4 or g.flip(0.7):
        g.pool.append(Tensor(_rotate(g, x.name, length, size), x.shape))
        return
    first, rest = (_cut(g, x.name, at, at + size // 2) for at in (0, size // 2))
    parts = [_rotate(g, first, length, size // 2), rest]
    g.add("Concat", parts, x.shape, axis=-1)


def _cut(g: Grower, name: str, begin: int, end: int, step: int = 1) -> str:
    """A part of the last axis."""
    bounds = [g.const([n], np.int64) for n in (begin, end)]
    return str(g.op("Slice", [name, *bounds, g.fixed([-1]), g.fixed([step])]))


def _rotate(g: Grower, name: str, length: int, size: int) -> str:
    """Turn pairs of numbers: halves, neighbours, or written as two products."""
    half = size // 2
    angles = g.rng.uniform(-3, 3, (length, half))
    if g.flip(0.2):  # a table that is no rotation by halves
        tables = [g.const(f(g.rng.uniform(-3, 3, (length, size)))) for f in (np.cos, np.sin)]
    else:
        tables = [g.const(np.concatenate([f(angles)] * 2, axis=1)) for f in (np.cos, np.sin)]
    form = g.number(0, 2)
    if form == 0:
        left, right = _cut(g, name, 0, half), _cut(g, name, half, g.choose((size, 2**31 - 1)))
        turned = g.op("Concat", [g.op("Neg", [right]), left], axis=-1)
    elif form == 1:
        even, odd = _cut(g, name, 0, size, 2), _cut(g, name, 1, size, 2)
        extra, attributes = axes_form(g, [-1], 13)
        pair = [g.op("Unsqueeze", [t, *extra], **attributes) for t in (g.op("Neg", [odd]), even)]
        turned = g.op("Concat", pair, axis=-1)
        turned = g.op("Reshape", [turned, g.op("Shape", [name])])
    else:
        c, s = (g.const(f(angles)) for f in (np.cos, np.sin))
        left, right = g.op("Split", [name], 2, axis=-1, **({"num_outputs": 2} if g.opset >= 18 else {}))
        up = g.op("Sub", [g.op("Mul", [left, c]), g.op("Mul", [right, s])])
        down = g.op("Add", [g.op("Mul", [right, c]), g.op("Mul", [s, left])])
        return str(g.op("Concat", [up, down], axis=-1))
    products = [g.op("Mul", pair) for pair in ([name, tables[0]], [turned, tables[1]])]
    return str(g.op("Add", products if g.flip() else products[::-1]))


# Windows.


def windows(g: Grower) -> None:
    """Cut an image into windows, work in them, put them together again; shifted at times, as Swin does."""
    x = g.pick(rank=4)
    if x is None or any(p for _, p in x.shape[1:]) or max(k for k, _ in x.shape[1:]) > 16:
        return
    n, (c, _), (h, _), (w, _) = x.shape
    sides = [k for k in (2, 3, 4) if h % k == 0 and w % k == 0]
    if not sides:
        return
    k = g.choose(sides)
    image = g.op("Transpose", [x.name], perm=[0, 2, 3, 1])
    shift = g.number(0, k - 1)
    rows, columns = h // k, w // k
    moved = _roll(g, image, shift)
    grid = _reshape(g, moved, [n, (rows, 0), (k, 0), (columns, 0), (k, 0), (c, 0)])
    grid = g.op("Transpose", [grid], perm=[0, 1, 3, 2, 4, 5])
    inside = (n[0] * rows * columns, n[1]), (k * k, 0), (c, 0)
    cut = _reshape(g, grid, list(inside))
    if g.flip(0.3):
        g.pool.append(Tensor(cut, inside, "f", x.exact))
    worked = g.op("Relu", [cut]) if g.flip(0.3) else _project(g, cut, c, c) if g.flip() else cut
    grid = _reshape(g, worked, [n, (rows, 0), (columns, 0), (k, 0), (k, 0), (c, 0)])
    grid = g.op("Transpose", [grid], perm=[0, 1, 3, 2, 4, 5])
    back = _roll(g, _reshape(g, grid, [n, (h, 0), (w, 0), (c, 0)]), -shift)
    back = g.op("Add", [image, back]) if g.flip(0.6) else back
    if g.flip():
        g.add("Transpose", [back], x.shape, perm=[0, 3, 1, 2])
    else:
        g.pool.append(Tensor(back, (n, (h, 0), (w, 0), (c, 0))))


def _roll(g: Grower, name: str, shift: int) -> str:
    """Move rows and columns around, by Slices and Concats."""
    for axis in (1, 2) if shift else ():
        cut = [
            g.op("Slice", [name, *(g.const([i], np.int64) for i in (begin, end)), g.fixed([axis])])
            for begin, end in ((shift, 2**63 - 1), (0, shift))
        ]
        name = g.op("Concat", cut, axis=axis)
    return name


# Quantization.


def requantize(g: Grower) -> None:
    """QuantizeLinear and DequantizeLinear again and again, with what only moves numbers between."""
    x = g.pick(exact=True, least=2)
    if x is None:
        return
    dtype, shape, name = g.choose((np.uint8, np.int8)), x.shape, x.name
    parameters = [g.const(0.05), g.const(3, dtype)]
    for _ in range(g.number(2, 3)):
        if g.flip(0.2):
            parameters = [g.const(g.choose((0.05, 0.07))), g.const(g.choose((0, 3)), dtype)]
        quantized = g.op("QuantizeLinear", [name, *parameters])
        name = g.op("DequantizeLinear", [quantized, *parameters])
        if g.flip(0.15):
            g.pool.append(Tensor(name, shape, "f", True))
        name, shape = _between(g, name, shape)
    quantized = g.op("QuantizeLinear", [name, *parameters])
    g.add("DequantizeLinear", [quantized, *parameters], shape, exact=True)


def _between(g: Grower, name: str, shape: tuple[Dim, ...]) -> tuple[str, tuple[Dim, ...]]:
    form = g.number(0, 5)
    if form == 0:
        order = [int(i) for i in g.rng.permutation(len(shape))]
        return g.op("Transpose", [name], perm=order), tuple(shape[i] for i in order)
    if form == 1 and len(shape) < 5:
        extra, attributes = axes_form(g, [0], 13)
        return g.op("Unsqueeze", [name, *extra], **attributes), ((1, 0), *shape)
    if form == 2:
        return g.op("Relu", [name]), shape
    if form == 3 and len(shape) == 4 and all(p == 0 and k >= 2 for k, p in shape[2:]):
        sizes = ((k - 1, 0) for k, _ in shape[2:])
        return g.op("MaxPool", [name], kernel_shape=[2, 2]), (*shape[:2], *sizes)
    return name, shape
