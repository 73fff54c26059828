"""Operators of the random graphs that move elements or make them from shapes."""

from __future__ import annotations

import math

import numpy as np
from _random_graphs import Grower, Shape, Tensor, static
from _random_shapes import axes_form, product_of, sizes_of
from onnx import TensorProto, helper  # noqa: TID251 (protos, nothing of graphopt)


def _dim_of(g: Grower, x: Tensor, axis: int) -> str:
    """The size of an axis as int64 [1], the way exporters ask for it."""
    form = g.number(0, 3)
    if form == 0 and g.opset >= 15:
        return str(g.op("Shape", [x.name], start=axis, end=axis + 1))
    shape = g.op("Shape", [x.name])
    if form == 1:
        bounds = [g.const([axis], np.int64), g.const([axis + 1], np.int64), g.fixed([0])]
        return str(g.op("Slice", [shape, *bounds]))
    if form == 2:
        return str(g.op("Gather", [shape, g.const([axis], np.int64)], axis=0))
    scalar = g.op("Gather", [shape, g.const(axis, np.int64)], axis=0)
    return _unsqueeze(g, scalar, [0])


def _unsqueeze(g: Grower, name: str, axes: list[int]) -> str:
    extra, attributes = axes_form(g, axes, 13)
    return str(g.op("Unsqueeze", [name, *extra], **attributes))


def _target(g: Grower, x: Tensor, shape: Shape) -> str:
    """The sizes of ``shape`` as a computed int64 vector."""
    parts = []
    for size in shape:
        if size[1] == 0:
            parts.append(g.const([size[0]], np.int64))
            continue
        axis = next(i for i, d in enumerate(x.shape) if d[1])
        part, have = _dim_of(g, x, axis), x.shape[axis][0]
        part = g.op("Div", [part, g.const([have], np.int64)]) if have > 1 else part
        parts.append(g.op("Mul", [part, g.const([size[0]], np.int64)]) if size[0] > 1 else part)
    return str(g.op("Concat", parts, axis=0))


def _new_shape(g: Grower, shape: Shape) -> Shape:
    """The same elements in other axes: neighbours merged, static sizes split, ones put in."""
    dims = list(shape)
    for _ in range(g.number(0, 3)):
        i = g.number(0, len(dims) - 1)
        form = g.number(0, 2)
        if form == 0 and i + 1 < len(dims) and dims[i][1] + dims[i + 1][1] < 2:
            dims[i : i + 2] = [product_of((dims[i], dims[i + 1]))]
        elif form == 1 and len(dims) < 5:
            factors = [f for f in range(2, dims[i][0]) if dims[i][0] % f == 0]
            if factors:
                f = g.choose(factors)
                dims[i : i + 1] = [(dims[i][0] // f, dims[i][1]), (f, 0)]
        elif form == 2 and len(dims) < 5:
            dims.insert(i, (1, 0))
    return tuple(dims)


def reshape(g: Grower) -> None:
    """Reshape to a constant target (0 and -1 in it) or a computed one."""
    x = g.pick(g.choose("fffi"), least=1)
    if x is None:
        return
    shape = _new_shape(g, x.shape)
    is_open = [p for _, p in shape]
    if sum(is_open) > 1 or (any(is_open) and g.flip(0.4)):
        target = _target(g, x, shape)
    else:
        entries = [-1 if p else k for k, p in shape]
        if not any(is_open) and g.flip():
            entries[g.number(0, len(entries) - 1)] = -1
        for i, size in enumerate(shape):
            if i < len(x.shape) and x.shape[i] == size and g.flip(0.3):
                entries[i] = 0
        target = g.const(entries, np.int64)
    g.add("Reshape", [x, target], shape, kind=x.kind, exact=x.exact)


def squeeze(g: Grower) -> None:
    """Flatten, Unsqueeze, or Squeeze."""
    x = g.pick(least=1)
    if x is None:
        return
    ones = [i for i, d in enumerate(x.shape) if d == (1, 0)]
    if ones and g.flip():
        axis = g.choose(ones)
        extra, attributes = axes_form(g, [axis], 13)
        kept = x.shape[:axis] + x.shape[axis + 1 :]
        g.add("Squeeze", [x, *extra], kept, exact=x.exact, **attributes)
    elif g.flip() and len(x.shape) < 5:
        axis = g.number(0, len(x.shape))
        extra, attributes = axes_form(g, [axis], 13)
        shape = (*x.shape[:axis], (1, 0), *x.shape[axis:])
        g.add("Unsqueeze", [x, *extra], shape, exact=x.exact, **attributes)
    else:
        axis = g.number(0, len(x.shape))
        halves = product_of(x.shape[:axis]), product_of(x.shape[axis:])
        if max(p for _, p in halves) < 2:
            g.add("Flatten", [x], halves, exact=x.exact, axis=axis)


def transpose(g: Grower) -> None:
    """Transpose by any order, often there and back."""
    x = g.pick(least=2)
    if x is None:
        return
    order = [int(i) for i in g.rng.permutation(len(x.shape))]
    there = g.add("Transpose", [x], tuple(x.shape[i] for i in order), exact=x.exact, perm=order)
    if g.flip(0.4):
        name = g.op("Relu", [there.name]) if g.flip() else there.name
        back = [int(i) for i in np.argsort(order)]
        g.add("Transpose", [name], x.shape, exact=x.exact, perm=back)


def concat(g: Grower) -> None:
    """Concat of values, a constant, or one value twice."""
    x = g.pick(least=1)
    if x is None:
        return
    axes = [i for i, d in enumerate(x.shape) if d[1] == 0]
    if not axes:
        return
    axis = g.choose(axes)
    rest = lambda s: s[:axis] + s[axis + 1 :]  # noqa: E731
    fits = [
        t for t in g.pool if t.kind == "f" and len(t.shape) == len(x.shape) and rest(t.shape) == rest(x.shape)
    ]
    others = [t for t in (g.choose(fits) for _ in range(g.number(0, 2))) if t.shape[axis][1] == 0]
    total = sum(t.shape[axis][0] for t in (x, *others))
    exact = all(t.exact for t in (x, *others))
    shape = (*x.shape[:axis], (total, 0), *x.shape[axis + 1 :])
    g.add("Concat", [x, *others], shape, exact=exact, axis=axis - len(x.shape) if g.flip(0.3) else axis)


def split(g: Grower) -> None:
    """Split in two; at times both halves are put together again."""
    x = g.pick(least=1)
    axes = [] if x is None else [i for i, d in enumerate(x.shape) if d[1] == 0 and d[0] >= 2]
    if x is None or not axes:
        return
    axis = g.choose(axes)
    size = x.shape[axis][0]
    first = size // 2 if g.flip() else g.number(1, size - 1)
    pieces = [first, size - first]
    if g.opset >= 13 and (first * 2 != size or g.opset >= 18 or g.flip()):
        names = g.op("Split", [x.name, g.const(pieces, np.int64)], 2, axis=axis)
    elif g.opset >= 13:
        names = g.op("Split", [x.name], 2, axis=axis)
    else:
        names = g.op("Split", [x.name], 2, axis=axis, split=pieces)
    for name, piece in zip(names, pieces, strict=True):
        shape = (*x.shape[:axis], (piece, 0), *x.shape[axis + 1 :])
        g.pool.append(Tensor(name, shape, "f", x.exact))
    if g.flip(0.3):
        g.add("Concat", names, x.shape, exact=x.exact, axis=axis)


def slice_(g: Grower) -> None:
    """Slice one axis: forward, backward, everything."""
    x = g.pick(g.choose("ffi"), least=1)
    if x is None:
        return
    axis = g.number(0, len(x.shape) - 1)
    size, power = x.shape[axis]
    if power or g.flip(0.2):
        begin, end, step, length = 0, g.choose((2**31 - 1, 2**63 - 1)), 1, (size, power)
    elif g.flip(0.2):
        begin, end, step, length = -1, -(2**31), -1, (size, 0)
    else:
        begin = g.number(0, size - 1)
        end, step = g.number(begin + 1, size), g.number(1, 2)
        length = (len(range(begin, end, step)), 0)
        begin = begin - size if g.flip(0.3) else begin
    bounds = [g.const([n], np.int64) for n in (begin, end)]
    inputs = [*bounds, g.fixed([axis]), g.fixed([step])]
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    g.add("Slice", [x, *inputs[: 3 if step == 1 and g.flip() else 4]], shape, kind=x.kind, exact=x.exact)


def gather(g: Grower) -> None:
    """Gather by a constant, or an embedding by indices that are computed."""
    ids = g.pick("i")
    if ids is not None and g.flip(0.4):
        rows = g.op("Mod", [ids.name, g.const(4, np.int64)])
        table = g.weights(4, 6, scale=1.0)
        g.add("Gather", [table, rows], (*ids.shape, (6, 0)))
        return
    x = g.pick(least=1)
    axes = [] if x is None else [i for i, d in enumerate(x.shape) if d[1] == 0]
    if x is None or not axes:
        return
    axis = g.choose(axes)
    size = x.shape[axis][0]
    count = g.choose(([], [1], [2], [size]))
    index = np.arange(size) if count == [size] and g.flip() else g.rng.integers(-size, size, count)
    shape = x.shape[:axis] + static(*count) + x.shape[axis + 1 :]
    g.add("Gather", [x, g.const(index, np.int64)], shape, exact=x.exact, axis=axis)


def pad(g: Grower) -> None:
    """Pad some static axes, often by nothing."""
    x = g.pick(least=1)
    if x is None:
        return
    amounts = [[g.number(0, 1) if p == 0 and g.flip(0.4) else 0 for _ in (0, 1)] for k, p in x.shape]
    pads = [a for a, _ in amounts] + [b for _, b in amounts]
    mode = g.choose(("constant", "constant", "edge"))
    value = [g.const(g.choose((0.0, 1.5)))] if mode == "constant" and g.flip() else []
    shape = tuple((k + sum(a), p) if p == 0 else (k, p) for (k, p), a in zip(x.shape, amounts, strict=True))
    g.add("Pad", [x, g.const(pads, np.int64), *value], shape, exact=x.exact, mode=mode)


def expand(g: Grower) -> None:
    """Expand to one's own or a larger shape, Tile, constant or computed."""
    x = g.pick(least=1)
    if x is None:
        return
    if g.flip(0.4):
        repeats = [g.choose((1, 1, 2)) if p == 0 else 1 for _, p in x.shape]
        shape = tuple((k * r, p) for (k, p), r in zip(x.shape, repeats, strict=True))
        g.add("Tile", [x, g.const(repeats, np.int64)], shape, exact=x.exact)
        return
    shape = tuple((3, 0) if d == (1, 0) and g.flip() else d for d in x.shape)
    own = [1 if p else k for k, p in shape]
    target = _target(g, x, shape) if g.flip(0.5) else g.const(own, np.int64)
    g.add("Expand", [x, target], shape, exact=x.exact)


def from_shape(g: Grower) -> None:
    """Values made from shapes: Shape, Size, ConstantOfShape, Range, and masks of them."""
    x = g.pick(least=1)
    if x is None:
        return
    form = g.number(0, 5)
    if form == 0:
        g.add("Shape", [x], static(len(x.shape)), kind="i", exact=True)
    elif form == 1:
        g.add("Size", [x], (), kind="i", exact=True)
    elif form == 2:
        value = helper.make_tensor("v", TensorProto.FLOAT, [1], [g.choose((0.0, 1.0, 0.5))])
        filled = g.op("ConstantOfShape", [g.op("Shape", [x.name])], value=value)
        g.add(g.choose(("Add", "Mul")), [x, filled], x.shape)
    elif form == 3:
        _positions(g, x)
    elif form == 4:
        _selected_shape(g, x)
    else:
        dims = g.op("Cast", [g.op("Shape", [x.name])], to=TensorProto.FLOAT)
        extra, attributes = axes_form(g, [0], 18)
        total = g.op("ReduceProd", [dims, *extra], keepdims=0, **attributes)
        g.add("Div", [x, total], x.shape)


def _positions(g: Grower, x: Tensor) -> None:
    axis = g.number(0, len(x.shape) - 1)
    scalar = g.op("Gather", [g.op("Shape", [x.name]), g.const(axis, np.int64)], axis=0)
    steps = g.op("Range", [g.const(0, np.int64), scalar, g.const(1, np.int64)])
    g.pool.append(Tensor(steps, (x.shape[axis],), "i", True))
    if axis == len(x.shape) - 1:
        g.add("Add", [x.name, g.op("Cast", [steps], to=TensorProto.FLOAT)], x.shape)


def _selected_shape(g: Grower, x: Tensor) -> None:
    """Expand by a Where of shapes: -1 entries replaced, as PyTorch exports expand."""
    target = _target(g, x, x.shape)
    ones = np.ones(len(x.shape))
    wanted = g.const([-1 if g.flip() or p else k for k, p in x.shape], np.int64)
    is_open = g.op("Equal", [wanted, g.const(-ones, np.int64)])
    chosen = g.op("Where", [is_open, target if g.flip() else g.const(ones, np.int64), wanted])
    g.add("Expand", [x, chosen], x.shape, exact=x.exact)


def indexing(g: Grower) -> None:
    """OneHot, CumSum, ArgMax, TopK, Trilu, DepthToSpace, channel shuffle, ScatterElements, GatherND."""
    x = g.pick(least=2, exact=True)
    if x is not None and x.shape[-1][1] == 0:
        g.choose((_arg_max, _cum_sum, _triangle, _shuffle, _scatter, _top_k, _reverse))(g, x)


def _arg_max(g: Grower, x: Tensor) -> None:
    found = g.add("ArgMax", [x], x.shape[:-1], kind="i", exact=True, axis=-1, keepdims=0)
    if g.flip():
        values = [g.const([x.shape[-1][0]], np.int64), g.const([0.0, 1.0])]
        g.add("OneHot", [found.name, *values], x.shape, exact=True, axis=-1)


def _cum_sum(g: Grower, x: Tensor) -> None:
    g.add("CumSum", [x, g.const(g.choose((-1, 1)), np.int64)], x.shape, exclusive=g.number(0, 1))


def _triangle(g: Grower, x: Tensor) -> None:
    if g.opset >= 14:
        g.add("Trilu", [x, g.const(g.number(-1, 1), np.int64)], x.shape, exact=True, upper=g.number(0, 1))


def _shuffle(g: Grower, x: Tensor) -> None:
    if (
        len(x.shape) == 4
        and x.shape[1][1] == 0
        and x.shape[1][0] % 2 == 0
        and not any(p for _, p in x.shape[1:])
    ):
        c, h, w = (k for k, _ in x.shape[1:])
        grouped = g.op("Reshape", [x.name, g.const([-1, 2, c // 2, h, w], np.int64)])
        swapped = g.op("Transpose", [grouped], perm=[0, 2, 1, 3, 4])
        if x.shape[0][1] <= 1:
            g.add("Reshape", [swapped, g.const([-1, c, h, w], np.int64)], x.shape, exact=True)


def _scatter(g: Grower, x: Tensor) -> None:
    sizes = sizes_of(x.shape)
    if sizes is not None and math.prod(sizes):
        places = g.const(np.zeros([1] * len(sizes)), np.int64)
        g.add("ScatterElements", [x.name, places, g.const(np.ones([1] * len(sizes)))], x.shape, exact=True)


def _top_k(g: Grower, x: Tensor) -> None:
    k = g.number(1, x.shape[-1][0])
    values, places = g.op("TopK", [x.name, g.const([k], np.int64)], 2, axis=-1)
    shape = (*x.shape[:-1], (k, 0))
    g.pool += [Tensor(values, shape, "f", True), Tensor(places, shape, "i", True)]


def _reverse(g: Grower, x: Tensor) -> None:
    if len(x.shape) == 4 and x.shape[1][1] == 0 and x.shape[1][0] % 4 == 0:
        n, c, h, w = x.shape
        shape = (n, (c[0] // 4, 0), (h[0] * 2, h[1]), (w[0] * 2, w[1]))
        g.add("DepthToSpace", [x], shape, exact=True, blocksize=2, mode=g.choose(("DCR", "CRD")))
