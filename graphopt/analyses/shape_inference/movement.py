"""Operators that regroup, reorder, cut, join or repeat elements."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analyses import dims as d
from graphopt.analyses import kernels
from graphopt.analyses.dims import Axis, Dim, fresh, is_axis
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, Sizes, Unknown, anew, counted, rule, size_or_new
from graphopt.analyses.shape_inference.elementwise import broadcast_all

__all__: list[str] = []

#: As the end of a slice: to the end, as no axis is longer.
_FULL_END = 2**31 - 1


@rule("Shape")
def _shape(op: Op) -> Inferred:
    data = op[0].dims
    if data is None:
        count = None if op.opset >= 15 and op.node.attributes else fresh()
        return Inferred(ir.DataType.INT64, None if count is None else (count,))
    if op.opset >= 15 and op.node.attributes:
        end = op.integer("end", len(data))
        data = data[slice(op.integer("start", 0), end)]
    return Inferred(ir.DataType.INT64, (len(data),), data)


@rule("Size")
def _size(op: Op) -> Inferred:
    data = op[0].dims
    return Inferred(ir.DataType.INT64, (), None if data is None else (d.product(data),))  # type: ignore[arg-type]


@rule("Reshape")
def _reshape(op: Op) -> Inferred:
    target = op.elements(1) if op.opset >= 5 else op.integers("shape")
    data = op[0].dims
    if target is None:
        rank = op[1].static if op.has(1) else None
        return Inferred(op[0].dtype, anew(rank[0]) if rank and len(rank) == 1 and rank[0] <= 64 else None)
    copies = op.opset < 14 or not op.integer("allowzero", 0)
    sizes: list[int | Axis | None] = []
    for place, element in enumerate(target):
        if isinstance(element, int) and element == 0 and copies:
            sizes.append(None if data is None else data[place])  # type: ignore[arg-type]
        elif isinstance(element, int):
            sizes.append(element)
        else:  # one that could turn out 0 or -1 at run time is not known, unless 0 keeps meaning 0
            sizes.append(element if isinstance(element, Axis) and _is_size(element, data) else None)
    return Inferred(op[0].dtype, _settled(sizes, target, data))


def _is_size(element: Axis, data: Sequence[Dim] | None) -> bool:
    """Whether an element of the target is never negative, as that of one of the input's axes is not."""
    return d.is_negative_never(element) or any(d.same(element, size) for size in data or ())


def _settled(sizes: list[int | Axis | None], target: Sequence[Dim], data: Sequence[Dim] | None) -> Sizes:
    """The sizes with what -1 comes to, and new axes for what is not known."""
    opened = [i for i, s in enumerate(sizes) if s is None or s == -1]
    if len(opened) == 1 and data is not None and (sizes[opened[0]] == -1 or target[opened[0]] != 0):
        rest = [s for i, s in enumerate(sizes) if i != opened[0] and s is not None]
        if 0 not in rest:
            sizes[opened[0]] = _left(data, rest)
    return tuple([fresh() if s is None or s == -1 else s for s in sizes])


def _left(data: Sequence[Dim], taken: Sequence[int | Axis]) -> int | Axis:
    """What is left of the elements for one more axis; axes on both sides cancel, sums among them too."""
    sizes, rest = list(data), list[int | Axis]()
    for size in taken:
        place = next((i for i, other in enumerate(sizes) if d.same(size, other)), None)
        if place is None:
            rest.append(size)
        else:
            sizes.pop(place)
    return d.ratio(d.product(sizes), d.product(rest))  # type: ignore[arg-type]


@rule("Flatten")
def _flatten(op: Op) -> Inferred:
    data = op[0].dims
    if data is None:
        return Inferred(op[0].dtype, anew(2))
    axis = op.integer("axis", 1)
    axis = len(data) if axis == len(data) else axis + len(data) if axis < 0 else axis
    return Inferred(op[0].dtype, (d.product(data[:axis]), d.product(data[axis:])))  # type: ignore[arg-type]


@rule("Squeeze")
def _squeeze(op: Op) -> Inferred:
    data = op.dims(0)
    axes = op.listed("axes", 1, 13)
    if axes is None:
        if any(not isinstance(size, int) for size in data):
            raise Unknown  # the rank depends on which axes turn out to be 1
        return Inferred(op[0].dtype, [size for size in data if size != 1])
    dropped = {counted(a, len(data)) for a in axes}
    return Inferred(op[0].dtype, [size for i, size in enumerate(data) if i not in dropped])


@rule("Unsqueeze")
def _unsqueeze(op: Op) -> Inferred:
    data, axes = op.dims(0), op.listed("axes", 1, 13)
    if axes is None:
        raise LookupError("Unsqueeze has no axes")
    rank = len(data) + len(axes)
    places, rest = {counted(a, rank) for a in axes}, iter(data)
    return Inferred(op[0].dtype, [1 if i in places else next(rest) for i in range(rank)])


@rule("Transpose")
def _transpose(op: Op) -> Inferred:
    data = op.dims(0)
    order = op.integers("perm")
    if order is not None and sorted(order) != list(range(len(data))):
        raise ValueError("perm is no permutation of the axes")
    return Inferred(op[0].dtype, data[::-1] if order is None else [data[i] for i in order])


@rule("Expand")
def _expand(op: Op) -> Inferred:
    target = op.elements(1)
    if target is None:
        count = op[1].static
        data = op[0].dims
        known = count is not None and len(count) == 1 and count[0] <= 64 and data is not None
        return Inferred(op[0].dtype, anew(max(count[0], len(data))) if known else None)  # type: ignore[index,arg-type]
    wanted = tuple([size_or_new(e) for e in target])
    return Inferred(op[0].dtype, broadcast_all([op.dims(0), wanted]))


@rule("Tile")
def _tile(op: Op) -> Inferred:
    data = op.dims(0)
    if op.opset < 6:
        return Inferred(op[0].dtype, anew(len(data)))
    repeats = op.elements(1)
    if repeats is None or len(repeats) != len(data):
        return Inferred(op[0].dtype, anew(len(data)))
    pairs = zip(data, repeats, strict=True)
    sizes = [d.multiply(s, r) if isinstance(r, int | Axis) else fresh() for s, r in pairs]
    return Inferred(op[0].dtype, sizes)


@rule("Concat")
def _concat(op: Op) -> Inferred:
    shapes = [known.dims for known in op.inputs if known is not None]
    ranks = {len(dims) for dims in shapes if dims is not None}
    if len(ranks) != 1:
        return Inferred(op[0].dtype)
    rank = ranks.pop()
    axis = op.axis(rank, 1)
    sizes = [_agreed([dims[i] for dims in shapes if dims is not None]) for i in range(rank)]
    if any(dims is None for dims in shapes):
        sizes[axis] = fresh()
    else:
        total: int | Axis = 0
        for dims in shapes:
            total = d.add(total, dims[axis])  # type: ignore[index,arg-type]
        sizes[axis] = total
    return Inferred(op[0].dtype, sizes)


def _agreed(sizes: Sequence[Dim]) -> Dim:
    """Axes that must be equal: a number tells all of them."""
    return next((s for s in sizes if isinstance(s, int)), sizes[0])


@rule("Split")
def _split(op: Op) -> list[Inferred]:
    data, count = op.dims(0), len(op.node.outputs)
    axis = op.axis(len(data), 0)
    given = op.elements(1) if op.opset >= 13 else op.integers("split")
    sizes: Sequence[Dim] = anew(count)
    if given is not None and len(given) == count:
        sizes = [size_or_new(s) for s in given]
    elif not op.has(1):
        sizes = _equal_parts(data[axis], count, ceil=op.opset >= 18)
    return [Inferred(op[0].dtype, (*data[:axis], s, *data[axis + 1 :])) for s in sizes]


def _equal_parts(size: int | Axis, count: int, *, ceil: bool) -> Sequence[Dim]:
    if isinstance(size, int):
        part = -(-size // count)
        return [max(0, min(part, size - i * part)) for i in range(count)]
    exact = d.divide_exactly(size, count)
    if exact is not None:
        return [exact] * count
    return anew(count) if ceil else [d.floor_divide(size, count)] * count  # older ones refuse a remainder


@rule("Slice")
def _slice(op: Op) -> Inferred:
    data = op[0].dims
    if data is None:
        return Inferred(op[0].dtype)
    bounds = _slice_bounds(op, len(data))
    if bounds is None:
        return Inferred(op[0].dtype, anew(len(data)))
    sizes = list(data)
    for axis, start, end, step in bounds:
        sizes[axis] = _sliced(data[axis], start, end, step)
    return Inferred(op[0].dtype, sizes)


def _slice_bounds(op: Op, rank: int) -> list[tuple[int, Dim | None, Dim | None, int]] | None:
    """(axis, start, end, step) for every sliced axis; None where the axes or steps are not known."""
    lists: list[Sequence[Dim] | None]
    if op.opset < 10:
        lists = [op.integers("starts"), op.integers("ends"), op.integers("axes"), None]
    else:
        lists = [op.elements(i) for i in range(1, 5)]
        if any(op.has(i) and lists[i - 1] is None for i in (3, 4)):
            return None
    count = next((len(x) for x in lists if x is not None), None)
    if count is None:
        return None
    starts, ends = (x if x is not None else [None] * count for x in lists[:2])
    axes, steps = lists[2] or range(count), lists[3] or [1] * count
    found: list[tuple[int, Dim | None, Dim | None, int]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(axis, int) or not isinstance(step, int) or step == 0:
            return None
        found.append((counted(axis, rank), start, end, step))
    return found


def _sliced(size: Dim, start: Dim | None, end: Dim | None, step: int) -> Dim:
    """The size of a slice of an axis; a new axis where it is not certain."""
    assert isinstance(size, int | Axis)
    if isinstance(start, int) and isinstance(end, int):
        if isinstance(size, int):
            try:
                return len(range(size)[kernels.slice_of(start, end, step, size)])
            except kernels.Refused:
                return fresh()
        return _cut(size, start, end, step) or fresh()
    if start == 0 and step == 1 and is_axis(end) and isinstance(size, int | Axis):
        assert isinstance(end, Axis)
        return d.minimum(size, end)  # position embeddings, cut to the length
    return fresh()


def _cut(size: Axis, start: int, end: int, step: int) -> Dim | None:
    """The size of a slice with fixed bounds of an open axis."""
    if step == -1 and (start == -1 or start >= _FULL_END) and end <= -_FULL_END:
        return size
    if step != 1:
        return None
    if end >= _FULL_END:
        if start < 0:
            return d.minimum(size, -start) if start > -_FULL_END else size
        return d.subtract(size, d.minimum(size, start))  # what is cut off, and what is left, add up
    if start != 0:
        return None
    return d.minimum(size, end) if end >= 0 else d.subtract(size, d.minimum(size, -end))


@rule("Pad")
def _pad(op: Op) -> Inferred:
    data = op.dims(0)
    pads: Sequence[Dim] | None
    pads = op.elements(1) if op.opset >= 11 else op.integers("pads") or op.integers("paddings")
    axes: Sequence[int] | None = range(len(data))
    if op.has(3):
        given = op.numbers(3)
        axes = None if given is None else [counted(a, len(data)) for a in given]
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return Inferred(op[0].dtype, anew(len(data)))
    sizes = list(data)
    for place, axis in enumerate(axes):
        ends = pads[place], pads[place + len(axes)]
        if all(isinstance(e, int | Axis) for e in ends):
            sizes[axis] = d.add(sizes[axis], d.add(*ends))  # type: ignore[arg-type]
        else:
            sizes[axis] = fresh()
    return Inferred(op[0].dtype, sizes)


@rule("DepthToSpace")
def _depth_to_space(op: Op) -> Inferred:
    n, c, h, w = op.dims(0)
    block = op.integer("blocksize", 0)
    depth = d.divide_exactly(c, block * block)
    return Inferred(
        op[0].dtype, (n, fresh() if depth is None else depth, d.multiply(h, block), d.multiply(w, block))
    )


@rule("SpaceToDepth")
def _space_to_depth(op: Op) -> Inferred:
    n, c, h, w = op.dims(0)
    block = op.integer("blocksize", 0)
    return Inferred(
        op[0].dtype,
        (n, d.multiply(c, block * block), d.floor_divide(h, block), d.floor_divide(w, block)),
    )


@rule("CenterCropPad")
def _center_crop_pad(op: Op) -> Inferred:
    data, wanted = op.dims(0), op.elements(1)
    given = op.integers("axes")
    axes = range(len(data)) if given is None else [counted(a, len(data)) for a in given]
    sizes = list(data)
    for place, axis in enumerate(axes):
        size = wanted[place] if wanted is not None else None
        sizes[axis] = fresh() if size is None else size_or_new(size)
    return Inferred(op[0].dtype, sizes)


@rule("Col2Im")
def _col2im(op: Op) -> Inferred:
    data, image, block = op.dims(0), op.numbers(1), op.numbers(2)
    if image is None or block is None:
        raise Unknown
    channels = d.divide_exactly(data[1], int(d.product(block)))  # type: ignore[arg-type]
    return Inferred(op[0].dtype, (data[0], fresh() if channels is None else channels, *image))
