"""Adapters of our own for operators that onnx's version converter gets wrong, and a test for "no change".

What the converter does with them (seen in onnx 1.23): Resize and Upsample lose their coordinate mode, so
that linear and downsampling results change; Hardmax keeps an axis whose meaning changed; Softmax is taken
to older opsets with that axis too, and a Flatten before or a Reshape after it is dropped; the constants it
makes for Clip and Pad are float32 for tensors of any type. Going down it leaves an attribute behind in
reductions, and has no adapter for operators that only learned more types or options, used or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Shapes
from graphopt.graph import Names, add_initializer, array_of, is_default_domain, replace_value
from graphopt.passes.interop._opset_schemas import new_defaults, newer_value, says_the_same

__all__ = ["CannotAdaptError", "Context", "adapter_for"]


class CannotAdaptError(Exception):
    """The node means something that the target opset cannot say."""


@dataclasses.dataclass(frozen=True)
class Context:
    """A conversion: from and to which opset, what is known of the original's values, and fresh names."""

    source: int
    target: int
    shapes: Shapes
    names: Names

    def crosses(self, version: int) -> bool:
        """Whether the conversion goes up over the opset in which an operator changed."""
        return self.source < version <= self.target

    def crosses_down(self, version: int) -> bool:
        """Whether the conversion goes down over the opset in which an operator changed."""
        return self.target < version <= self.source


#: Below, going down is left to onnx's converter: operators differ too much.
_OLDEST_DOWN: Final = 11

#: Edits the converted node, whose inputs and outputs have the names of the original's.
Adapter = Callable[[ir.Node, ir.Node, Context], None]


def adapter_for(node: ir.Node, context: Context) -> Adapter | None:
    """Our adapter for a node of the original model; None where onnx's converter is to do it."""
    if not is_default_domain(node):
        return None
    for version, adapter in _UP.get(node.op_type, ()):
        if context.crosses(version):
            return adapter
    if newer_value(node, context.target):
        return _refuse_value
    if context.target < _OLDEST_DOWN:
        return None
    if says_the_same(node, context.source, context.target, context.shapes):
        return _drop_defaults
    for version, adapter in _DOWN.get(node.op_type, ()):
        if context.crosses_down(version):
            return adapter
    return None


def _drop_defaults(node: ir.Node, old: ir.Node, context: Context) -> None:
    for name in new_defaults(old, context.target):
        del node.attributes[name]


def _refuse_value(_node: ir.Node, old: ir.Node, context: Context) -> None:
    raise CannotAdaptError(f"{newer_value(old, context.target)} does not exist there")


# Tools.


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _set(node: ir.Node, **attributes: int | str) -> None:
    for name, value in attributes.items():
        make = ir.AttrInt64 if isinstance(value, int) else ir.AttrString
        node.attributes[name] = make(name, value)  # type: ignore[arg-type]


def _insert(
    node: ir.Node, context: Context, op_type: str, inputs: Sequence[ir.Value], **attributes: Any
) -> ir.Value:
    """A new node before ``node``, named after it."""
    name = context.names.fresh(f"{node.outputs[0].name}_{op_type.lower()}")
    made = ir.node(op_type, inputs, attributes, name=name)
    made.outputs[0].name = name
    made.outputs[0].type = node.inputs[0].type if op_type != "Shape" and node.inputs[0] else None
    node.prepend(made)
    return made.outputs[0]


def _constant(node: ir.Node, context: Context, what: str, data: Any, dtype: ir.DataType) -> ir.Value:
    assert node.graph is not None
    name = context.names.fresh(f"{node.outputs[0].name}_{what}")
    return add_initializer(node.graph, name, np.asarray(data, dtype.numpy()))


def _dtype(old: ir.Node, context: Context) -> ir.DataType:
    dtype = context.shapes[old.inputs[0]].dtype if old.inputs[0] is not None else None
    if dtype is None:
        raise CannotAdaptError("the type of its input is not known")
    return dtype


def _give(node: ir.Node, value: ir.Value) -> None:
    """Let ``value`` stand for the node's output, name and all, and remove the node."""
    output, graph = node.outputs[0], node.graph
    assert graph is not None
    name = output.name
    value.type, value.shape, value.doc_string = output.type, output.shape, output.doc_string
    value.metadata_props.update(output.metadata_props)
    value.meta.update(output.meta)
    replace_value(output, value)
    output.name, value.name = None, name
    graph.remove(node, safe=True)


# Softmax, LogSoftmax, Hardmax: before opset 13 along all axes from one on, since then along one axis.


def _rank(old: ir.Node, context: Context) -> int | None:
    shape = context.shapes[old.inputs[0]].shape if old.inputs[0] is not None else None
    return None if shape is None else len(shape)


def _wide_axes(old: ir.Node, context: Context, axis: int) -> list[int]:
    """The axes from ``axis`` on that are not known to have size 1."""
    shape = context.shapes[old.inputs[0]].shape if old.inputs[0] is not None else None
    assert shape is not None
    return [index for index in range(axis, len(shape)) if shape[index] != 1]


def _softmax_up(node: ir.Node, old: ir.Node, context: Context) -> None:
    axis, rank = _attribute(old, "axis", 1), _rank(old, context)
    if rank is None and axis != -1:
        _softmax_flat(node, axis, context)
        return
    if rank is not None:
        wide = _wide_axes(old, context, axis % rank)
        if len(wide) > 1:
            _softmax_flat(node, axis, context)
            return
        axis = wide[0] if wide else rank - 1
    _set(node, axis=axis)


def _softmax_flat(node: ir.Node, axis: int, context: Context) -> None:
    data = node.inputs[0]
    assert data is not None
    shape = _insert(node, context, "Shape", [data])
    flat = _insert(node, context, "Flatten", [data], axis=axis)
    result = _insert(node, context, node.op_type, [flat], axis=1)
    back = _insert(node, context, "Reshape", [result, shape])
    made = result.producer()
    assert made is not None
    made.name = node.name
    made.metadata_props.update(node.metadata_props)
    _give(node, back)


def _softmax_down(node: ir.Node, old: ir.Node, context: Context) -> None:
    axis, rank = _attribute(old, "axis", -1), _rank(old, context)
    if rank is None:
        raise CannotAdaptError("the rank of its input is not known")
    axis %= rank
    if not _wide_axes(old, context, axis + 1):
        _set(node, axis=axis)
        return
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    assert node.inputs[0] is not None
    swapped = _insert(node, context, "Transpose", [node.inputs[0]], perm=order)
    result = _insert(node, context, node.op_type, [swapped], axis=rank - 1)
    back = _insert(node, context, "Transpose", [result], perm=order)
    made = result.producer()
    assert made is not None
    made.name = node.name
    made.metadata_props.update(node.metadata_props)
    _give(node, back)


# What changed in opset 11.


def _clip_to_11(node: ir.Node, old: ir.Node, context: Context) -> None:
    node.resize_inputs(3)
    for index, name in ((1, "min"), (2, "max")):
        if name in old.attributes:
            bound = _constant(node, context, name, _attribute(old, name, None), _dtype(old, context))
            node.replace_input_with(index, bound)
    node.attributes.clear()


def _pad_to_11(node: ir.Node, old: ir.Node, context: Context) -> None:
    mode, value = _attribute(old, "mode", "constant"), _attribute(old, "value", 0.0)
    node.resize_inputs(3)
    pads = _constant(node, context, "pads", old.attributes["pads"].as_ints(), ir.DataType.INT64)
    node.replace_input_with(1, pads)
    if mode == "constant" and value != 0:
        node.replace_input_with(2, _constant(node, context, "value", value, _dtype(old, context)))
    node.attributes.clear()
    _set(node, mode=mode)


def _resize_to_11(node: ir.Node, old: ir.Node, context: Context) -> None:
    """Both kept the corner in place; nearest rounded down where the axis grows, up where it shrinks."""
    mode = _attribute(old, "mode", "nearest")
    if "scales" in old.attributes:
        scales = _constant(node, context, "scales", old.attributes["scales"].as_floats(), ir.DataType.FLOAT)
    else:
        assert node.inputs[1] is not None
        scales = node.inputs[1]
    shrinks = mode == "nearest" and old.op_type == "Resize" and _shrinks(old)
    roi = None
    if context.target < 13:  # not optional yet
        roi = _constant(node, context, "roi", [], ir.DataType.FLOAT)
    node.op_type = "Resize"
    node.resize_inputs(3)
    node.replace_input_with(1, roi)
    node.replace_input_with(2, scales)
    node.attributes.clear()
    _set(node, mode=mode, coordinate_transformation_mode="asymmetric")
    _set(node, nearest_mode="ceil" if shrinks else "floor")


def _shrinks(old: ir.Node) -> bool:
    scales = array_of(old.inputs[1])
    if scales is None:
        raise CannotAdaptError("its scales are computed, and say how to round")
    if (scales < 1).any() and (scales > 1).any():
        raise CannotAdaptError("it shrinks one axis and grows another, and rounds differently in each")
    return bool((scales < 1).any())


# Down: what became an input or an option goes back to where it was, where it is constant.


def _constant_ints(value: ir.Value | None, what: str) -> list[int]:
    array = array_of(value)
    if array is None:
        raise CannotAdaptError(f"its {what} are computed; the older operator takes constants")
    return [int(number) for number in array.ravel()]


def _reduce_down(node: ir.Node, old: ir.Node, _: Context) -> None:
    axes = _constant_ints(old.inputs[1], "axes") if len(old.inputs) > 1 and old.inputs[1] else []
    if not axes and _attribute(old, "noop_with_empty_axes", 0):
        raise CannotAdaptError("it reduces no axes, which the older operator cannot say")
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    if axes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)


def _split_down(node: ir.Node, old: ir.Node, context: Context) -> None:
    given = len(old.inputs) > 1 and old.inputs[1] is not None
    sizes = _constant_ints(old.inputs[1], "sizes") if given else _equal_sizes(old, context)
    node.resize_inputs(1)
    node.attributes.pop("num_outputs", None)
    if context.target < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.resize_inputs(2)
    node.replace_input_with(1, _constant(node, context, "sizes", sizes, ir.DataType.INT64))


def _equal_sizes(old: ir.Node, context: Context) -> list[int]:
    """All pieces but the last have the same size, rounded up."""
    shape = context.shapes[old.inputs[0]].shape if old.inputs[0] is not None else None
    size = shape[_attribute(old, "axis", 0)] if shape is not None else None
    if not isinstance(size, int):
        raise CannotAdaptError("the size of the axis that it splits is not known")
    count = len(old.outputs)
    piece = -(-size // count)
    return [piece] * (count - 1) + [size - piece * (count - 1)]


def _reshape_down(node: ir.Node, old: ir.Node, _: Context) -> None:
    """Reached only with allowzero, which means nothing where the target holds no zero."""
    if 0 in _constant_ints(old.inputs[1], "target axes"):
        raise CannotAdaptError("it reshapes to an empty axis, which the older operator cannot say")
    node.attributes.pop("allowzero", None)


def _shape_down(node: ir.Node, old: ir.Node, context: Context) -> None:
    ends = [_attribute(old, "start", 0)], [_attribute(old, "end", 2**63 - 1)]
    assert node.inputs[0] is not None
    whole = _insert(node, context, "Shape", [node.inputs[0]])
    start, end = (
        _constant(node, context, what, data, ir.DataType.INT64)
        for what, data in zip(("start", "end"), ends, strict=True)
    )
    node.op_type = "Slice"
    node.attributes.clear()
    node.resize_inputs(3)
    for index, value in enumerate((whole, start, end)):
        node.replace_input_with(index, value)


_Table = dict[str, tuple[tuple[int, Adapter], ...]]
_SOFTMAX: Final = ("Softmax", "LogSoftmax", "Hardmax")
_REDUCTIONS: Final = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

#: Operators by the opset that changed them, for conversions over it.
_UP: Final[_Table] = {
    **dict.fromkeys(_SOFTMAX, ((13, _softmax_up),)),
    "Clip": ((11, _clip_to_11),),
    "Pad": ((11, _pad_to_11),),
    "Resize": ((11, _resize_to_11),),
    "Upsample": ((11, _resize_to_11),),
}
_DOWN: Final[_Table] = {
    **dict.fromkeys(_SOFTMAX, ((13, _softmax_down),)),
    **{f"Reduce{name}": ((18, _reduce_down),) for name in _REDUCTIONS},
    "ReduceSum": ((13, _reduce_down),),
    "Reshape": ((14, _reshape_down),),
    "Shape": ((15, _shape_down),),
    "Split": ((18, _split_down), (13, _split_down)),
}
