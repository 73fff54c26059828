"""Adapters of our own for operators that onnx's version converter gets wrong, and a test for "no change".

What the converter does with them (seen in onnx 1.23): Resize and Upsample lose their coordinate mode, so
that linear and downsampling results change; Hardmax keeps an axis whose meaning changed; Softmax is taken
to older opsets with that axis too, and a Flatten before or a Reshape after it is dropped; the constants it
makes for Clip and Pad are float32 for tensors of any type; newer types of many operators have no
adapter to older opsets although nothing that the node uses is new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes import Shapes
from graphopt.graph import Names, add_initializer, array_of, is_default_domain, replace_value
from graphopt.passes.interop._opset_schemas import new_defaults, says_the_same

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


#: Edits the converted node, whose inputs and outputs have the names of the original's.
Adapter = Callable[[ir.Node, ir.Node, Context], None]


def adapter_for(node: ir.Node, context: Context) -> Adapter | None:
    """Our adapter for a node of the original model; None where onnx's converter is to do it."""
    if not is_default_domain(node):
        return None
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        if context.crosses(13):
            return _softmax_up
        return _softmax_down if context.crosses_down(13) else None
    if node.op_type in _ADAPTERS_TO_11:
        return _ADAPTERS_TO_11[node.op_type] if context.crosses(11) else None
    unchanged = says_the_same(node, context.source, context.target, context.shapes)
    return _drop_defaults if unchanged else None


def _drop_defaults(node: ir.Node, old: ir.Node, context: Context) -> None:
    for name in new_defaults(old, context.target):
        del node.attributes[name]


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
    value.type, value.shape = output.type, output.shape
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


_ADAPTERS_TO_11: Final[dict[str, Adapter]] = {
    "Clip": _clip_to_11,
    "Pad": _pad_to_11,
    "Resize": _resize_to_11,
    "Upsample": _resize_to_11,
}
