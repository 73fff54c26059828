"""Where the rules of ``onnx-shape-inference`` are not certain, and what is certain instead.

Each deviation was met by running the ONNX node tests, random nodes and real models in onnxruntime and
comparing real shapes with inferred ones. A correction gives an uncertain axis a new name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses import kernels
from graphopt.analyses.shape_dims import (
    PLACEHOLDER,
    Dim,
    Rule,
    axis_of,
    is_axis,
    is_placeholder,
    renew,
    same,
    static_dims,
)
from graphopt.analyses.shape_values import constant_array

__all__ = ["AUDITED", "CORRECTIONS", "REPLACED"]

_FULL_END = 2**31 - 1
_CAPPED = re.compile(r"Min\((\d+), ([A-Za-z_]\w*)\)")


def _correct_broadcast(context: Any, node: ir.Node) -> None:
    if node.outputs[0].shape is None or node.outputs[0].shape.is_static():
        return
    shapes = [v.shape for v in node.inputs if v is not None]
    if all(s is not None for s in shapes):
        _separate(context, node.outputs[0], [list(s or ()) for s in shapes], 0)


def _correct_matmul(context: Any, node: ir.Node) -> None:
    left, right = (v.shape if v is not None else None for v in node.inputs[:2])
    if left is not None and right is not None and min(len(left), len(right)) > 2:
        _separate(context, node.outputs[0], [list(left)[:-2], list(right)[:-2]], 2)


def _correct_expand(context: Any, node: ir.Node) -> None:
    data, target = node.inputs
    wanted = context.get_symbolic_value(target) if target is not None else None
    if data is not None and data.shape is not None and wanted is not None:
        _separate(context, node.outputs[0], [list(data.shape), list(wanted)], 0)


def _separate(context: Any, output: ir.Value, operands: list[list[Dim]], behind: int) -> None:
    """Give the output a new axis wherever differently named axes of the operands meet."""
    if output.shape is None:
        return
    dims = list(output.shape)
    for place, meeting in enumerate(itertools.zip_longest(*(reversed(o) for o in operands), fillvalue=1)):
        named = {d.value for d in meeting if isinstance(d, ir.SymbolicDim)}
        if len(named) > 1 and all(d == 1 for d in meeting if isinstance(d, int)):
            axis = _capped_axis(named)
            dims[len(dims) - 1 - behind - place] = context.new_symbolic_dim() if axis is None else axis
    if dims != list(output.shape):
        output.shape = ir.Shape(dims)


def _capped_axis(names: set[str | None]) -> ir.SymbolicDim | None:
    """``a`` where ``a`` meets ``Min(n, a)``: above ``n`` the two do not broadcast, so nothing runs there."""
    for name in names:
        capped = _CAPPED.fullmatch(name or "")
        if capped is not None and names == {name, capped[2]} and int(capped[1]) > 0:
            return ir.SymbolicDim(capped[2])
    return None


def _correct_squeeze(context: Any, node: ir.Node) -> None:
    """Without known axes, the rank depends on which axes turn out to be 1."""
    data = node.inputs[0]
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        certain = ir.convenience.get_const_tensor(axes) is not None
    else:
        certain = "axes" in node.attributes or data is None or static_dims(data.shape) is not None
    if not certain:
        node.outputs[0].shape = None


def _correct_split(context: Any, node: ir.Node) -> None:
    """The library takes sizes that it cannot read for equal ones."""
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if sizes is not None and ir.convenience.get_const_tensor(sizes) is None:
        for output in node.outputs:
            renew(context, output, [axis_of(node, 0)])


def _correct_unique(context: Any, node: ir.Node) -> None:
    """With an axis the first output keeps the rank of the input."""
    data = node.inputs[0]
    if "axis" in node.attributes and data is not None:
        node.outputs[0].shape = data.shape
        renew(context, node.outputs[0], [axis_of(node, 0)])


def _correct_range(context: Any, node: ir.Node) -> None:
    """The length of a range of floats hangs on the runtime's rounding."""
    dtype = node.outputs[0].dtype
    if dtype is None or dtype.is_floating_point():
        renew(context, node.outputs[0], [0])


def _correct_window(context: Any, node: ir.Node) -> None:
    """Runtimes differ in SAME padding of dilated or transposed windows, and in windows that do not fit."""
    padding, dilations = node.attributes.get("auto_pad"), node.attributes.get("dilations")
    dilated = dilations is not None and any(d != 1 for d in dilations.as_ints())
    same_padding = padding is not None and padding.as_string().startswith("SAME")
    for output in node.outputs:
        dims = output.shape.dims[2:] if output.shape is not None else ()
        too_small = any(isinstance(d, int) and d < 1 for d in dims)
        if too_small or (same_padding and (dilated or node.op_type == "ConvTranspose")):
            renew(context, output, range(2, len(dims) + 2))


def _correct_resize(context: Any, node: ir.Node) -> None:
    """Sizes that follow from scales are certain where all ways to round agree, or the scale is whole."""
    output, data = node.outputs[0], node.inputs[0]
    if output.shape is None or data is None or data.shape is None:
        return
    policy = node.attributes.get("keep_aspect_ratio_policy")
    by_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    if policy is not None and (policy.is_ref() or policy.as_string() != "stretch"):
        renew(context, output, range(len(output.shape)))
    elif not by_sizes and len(data.shape) == len(output.shape):
        given = constant_array(node.inputs[2 if node.op_type == "Resize" and len(node.inputs) > 2 else 1])
        scales = np.zeros(0, np.float32) if given is None else given.astype(np.float32).reshape(-1)
        if len(scales) == len(data.shape):
            rough = [i for i, d in enumerate(data.shape) if not _scales_certainly(d, scales[i])]
            renew(context, output, rough)
        else:
            renew(context, output, range(len(output.shape)))


def _scales_certainly(dim: Dim, scale: np.float32) -> bool:
    if float(scale).is_integer():
        return True
    return isinstance(dim, int) and int(np.float32(dim) * scale) == int(dim * float(scale))


def _infer_constant(context: Any, node: ir.Node) -> None:
    """A Constant whose tensor :mod:`shapes` has laid beside its output; another one holds no numbers."""
    tensor = node.outputs[0].const_value
    if tensor is not None:
        context.set_shape_and_dtype(node.outputs[0], ir.Shape(tensor.shape.numpy()), tensor.dtype)


def _infer_quantized_binary(context: Any, node: ir.Node) -> None:
    """QLinearAdd and QLinearMul: A and B stand at 0 and 3, each followed by its scale and zero point."""
    left, right = node.inputs[0], node.inputs[3]
    if left is None or right is None or left.shape is None or right.shape is None:
        return
    pairs = itertools.zip_longest(reversed(left.shape.dims), reversed(right.shape.dims), fillvalue=1)
    dims = [_broadcast(context, a, b) for a, b in pairs]
    context.set_shape_and_dtype(node.outputs[0], ir.Shape(reversed(dims)), left.dtype)


def _broadcast(context: Any, left: Dim, right: Dim) -> Dim:
    if left == 1 or same(left, right):
        return right
    known = [d for d in (left, right) if isinstance(d, int) and d != 1]
    if known or right == 1:
        return known[0] if known else left
    dim: Dim = context.new_symbolic_dim()
    return dim


def _infer_quantized_pool(context: Any, node: ir.Node) -> None:
    """The shape of the float operator of that name; the library takes these for elementwise operators."""
    from onnx_shape_inference import registry

    rule = registry.get("", node.op_type.removeprefix("QLinear"), version=11)
    layout = node.attributes.get("channels_last")
    if rule is not None and (layout is None or (not layout.is_ref() and layout.as_int() == 0)):
        rule(context, node)


def _infer_slice(context: Any, node: ir.Node) -> None:
    """Exact sizes, or new axes; the library's expressions are costly and assume that bounds are in range."""
    data, output = node.inputs[0], node.outputs[0]
    if data is None:
        return
    shape = None
    if data.shape is not None:
        bounds = _slice_bounds(context, node, len(data.shape))
        dims: list[Dim | None] = list(data.shape) if bounds is not None else [None] * len(data.shape)
        for axis, start, end, step in bounds or ():
            dims[axis] = _sliced(data.shape[axis], start, end, step)
        shape = ir.Shape([context.new_symbolic_dim() if d is None else d for d in dims])
    context.set_shape_and_dtype(output, shape, data.dtype)


def _slice_bounds(context: Any, node: ir.Node, rank: int) -> list[tuple[int, Dim, Dim, int]] | None:
    """(axis, start, end, step) for every sliced axis; None where the axes or steps are not known."""
    lists: list[Sequence[Dim] | None] = [None] * 4
    if context.opset < 10:
        for i, name in enumerate(("starts", "ends", "axes")):
            lists[i] = node.attributes[name].as_ints() if name in node.attributes else None
    else:
        for i, value in enumerate(node.inputs[1:5]):
            lists[i] = context.get_symbolic_value(value) if value is not None else None
            if lists[i] is None and value is not None and i > 1:
                return None
    count = next((len(x) for x in lists if x is not None), None)
    if count is None:
        return None
    unknown: list[Dim] = [ir.SymbolicDim(PLACEHOLDER)] * count
    defaults: list[list[Dim]] = [unknown, unknown, list(range(count)), [1] * count]
    starts, ends, axes, steps = (d if x is None else list(x) for x, d in zip(lists, defaults, strict=True))
    found: list[tuple[int, Dim, Dim, int]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(axis, int) or not isinstance(step, int) or not -rank <= axis < rank:
            return None
        found.append((axis % rank, start, end, step))
    return found


def _sliced(dim: Dim, start: Dim, end: Dim, step: int) -> Dim | None:
    """The size of a slice of an axis; None where it is not certain."""
    if isinstance(dim, int) and start == 0 and step == 1 and not isinstance(end, int) and is_axis(end):
        return ir.SymbolicDim(f"Min({dim}, {end.value})")  # position embeddings, cut to the length
    if not isinstance(start, int) or not isinstance(end, int) or step == 0:
        return None
    if isinstance(dim, int):
        try:
            return len(range(dim)[kernels.slice_of(start, end, step, dim)])
        except kernels.Refused:
            return None
    forwards = start == 0 and step == 1 and end >= _FULL_END
    backwards = (start == -1 or start >= _FULL_END) and step == -1 and end <= -_FULL_END
    return dim if forwards or backwards else None


def _correct_constant_of_shape(context: Any, node: ir.Node) -> None:
    wanted = context.get_symbolic_value(node.inputs[0]) if node.inputs[0] is not None else None
    if wanted is None or any(isinstance(d, int) and d < 0 for d in wanted):
        return
    node.outputs[0].shape = ir.Shape([context.new_symbolic_dim() if is_placeholder(d) else d for d in wanted])


REPLACED: dict[tuple[str, str], Rule] = {
    ("", "Slice"): _infer_slice,
    ("", "Constant"): _infer_constant,
    ("com.microsoft", "QLinearAdd"): _infer_quantized_binary,
    ("com.microsoft", "QLinearMul"): _infer_quantized_binary,
    ("com.microsoft", "QLinearAveragePool"): _infer_quantized_pool,
    ("com.microsoft", "QLinearGlobalAveragePool"): _infer_quantized_pool,
}
#: Rules of the library outside of the standard domain that were checked; all others are switched off.
AUDITED = frozenset(
    ("com.microsoft", name)
    for name in (
        *("BiasGelu", "FastGelu", "Gelu", "QuickGelu"),
        *("QLinearConcat", "QLinearConv", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"),
    )
)

_BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow"),
    *("Sub", "Sum", "Where", "Xor"),
)
CORRECTIONS: dict[str, Rule] = {
    **dict.fromkeys(_BROADCASTING, _correct_broadcast),
    "MatMul": _correct_matmul,
    "MatMulInteger": _correct_matmul,
    "Expand": _correct_expand,
    "Squeeze": _correct_squeeze,
    "Split": _correct_split,
    "Unique": _correct_unique,
    "Range": _correct_range,
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool", "ConvTranspose"), _correct_window),
    "Resize": _correct_resize,
    "Upsample": _correct_resize,
    "ConstantOfShape": _correct_constant_of_shape,
}
