"""Whether a node that an older opset would accept means the same there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx
import onnx_ir as ir

from graphopt.analyses.shapes import Shapes
from graphopt.graph import subgraphs_of

__all__ = ["new_defaults", "says_the_same"]

#: Below, negative axes and indices are not allowed, and more operators differ in meaning than in form.
_OLDEST: Final = 11

#: Operators whose meaning changed in an opset although older attributes and inputs would still be accepted.
_CHANGED: Final = {
    "GridSample": 20,
    "GroupNormalization": 21,
    "Hardmax": 13,
    "LogSoftmax": 13,
    "Range": 27,
    "RoiAlign": 16,
    "Softmax": 13,
}

#: Values that an attribute accepts only since an opset.
_NEW_VALUES: Final = {
    ("Pad", "mode"): (19, {"wrap"}),
    ("Resize", "coordinate_transformation_mode"): (19, {"half_pixel_symmetric"}),
    ("ScatterElements", "reduction"): (18, {"max", "min"}),
    ("ScatterND", "reduction"): (18, {"max", "min"}),
}

Schema = onnx.defs.OpSchema


def says_the_same(node: ir.Node, source: int, target: int, shapes: Shapes) -> bool:
    """Whether the node, going down from one opset to another, may stay but for :func:`new_defaults`.

    It may where everything it uses (attributes, inputs, outputs, types) exists there, what it does not
    use had the same default, and the operator did not change its meaning in between.
    """
    if not _OLDEST <= target < source or any(True for _ in subgraphs_of(node)):
        return False
    now, then = _schema(node.op_type, source), _schema(node.op_type, target)
    if now is None or then is None or now.since_version == then.since_version or then.deprecated:
        return False
    if target < _CHANGED.get(node.op_type, 0) <= source:
        return False
    return _attributes_fit(node, now, then, target) and _values_fit(node, then, shapes)


def new_defaults(node: ir.Node, target: int) -> list[str]:
    """The attributes of a node that the older opset does not know."""
    schema = _schema(node.op_type, target)
    return [] if schema is None else [name for name in node.attributes if name not in schema.attributes]


def _schema(op_type: str, opset: int) -> Schema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _default(schema: Schema, name: str) -> onnx.AttributeProto | None:
    default = schema.attributes[name].default_value
    return default if default.type else None


def _attributes_fit(node: ir.Node, now: Schema, then: Schema, target: int) -> bool:
    for name, attribute in node.attributes.items():
        since, values = _NEW_VALUES.get((node.op_type, name), (0, set()))
        if target < since and attribute.value in values:
            return False
        if name not in then.attributes and not _is_default(attribute, now):
            return False
    unsaid = [name for name in then.attributes if name not in node.attributes]
    return all(name in now.attributes and _default(now, name) == _default(then, name) for name in unsaid)


def _is_default(attribute: ir.Attr, schema: Schema) -> bool:
    if attribute.name not in schema.attributes or attribute.is_ref():
        return False
    default = _default(schema, attribute.name)
    return default is not None and bool(ir.serde.deserialize_attribute(default).value == attribute.value)


def _values_fit(node: ir.Node, then: Schema, shapes: Shapes) -> bool:
    return _fit(node.inputs, then.inputs, shapes) and _fit(node.outputs, then.outputs, shapes)


def _fit(values: Sequence[ir.Value | None], formal: Sequence[Schema.FormalParameter], shapes: Shapes) -> bool:
    variadic = bool(formal) and formal[-1].option == Schema.FormalParameterOption.Variadic
    if len(values) > len(formal) and not variadic:
        return False
    for index, value in enumerate(values):
        parameter = formal[min(index, len(formal) - 1)]
        if value is None or not value.name:
            if parameter.option != Schema.FormalParameterOption.Optional:
                return False
        elif _type_name(value, shapes) not in parameter.types:
            return False
    return True


def _type_name(value: ir.Value, shapes: Shapes) -> str:
    """A tensor's type as schemas spell it; empty where it is not known or no tensor."""
    dtype = shapes[value].dtype
    return "" if dtype is None else f"tensor({dtype.name.lower()})"
