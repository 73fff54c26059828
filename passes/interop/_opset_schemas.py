"""Whether a node that an older opset would accept means the same there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx
import onnx_ir as ir

from graphopt.analyses.shapes import Shapes
from graphopt.graph import subgraphs_of

__all__ = ["new_defaults", "newer_value", "says_the_same"]

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

_ADDED_TO_SCATTER: Final = {"add": 16, "mul": 16, "max": 18, "min": 18}

#: Values of attributes by the opset that added them.
_NEW_VALUES: Final[dict[tuple[str, str], dict[str, int]]] = {
    ("Pad", "mode"): {"wrap": 19},
    ("Resize", "coordinate_transformation_mode"): {"half_pixel_symmetric": 19},
    ("ScatterElements", "reduction"): _ADDED_TO_SCATTER,
    ("ScatterND", "reduction"): _ADDED_TO_SCATTER,
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
    return _attributes_fit(node, now, then) and _values_fit(node, then, shapes)


def newer_value(node: ir.Node, target: int) -> str:
    """An attribute value that the older opset does not know, as ``mode=wrap``; empty where there is none."""
    for name, attribute in node.attributes.items():
        since = _NEW_VALUES.get((node.op_type, name), {}).get(str(attribute.value), 0)
        if target < since:
            return f"{name}={attribute.value}"
    return ""


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


def _attributes_fit(node: ir.Node, now: Schema, then: Schema) -> bool:
    new = [a for name, a in node.attributes.items() if name not in then.attributes]
    if not all(_is_default(attribute, now) for attribute in new):
        return False
    unsaid = [name for name in then.attributes if name not in node.attributes]
    return all(name in now.attributes and _default(now, name) == _default(then, name) for name in unsaid)


def _is_default(attribute: ir.Attr, schema: Schema) -> bool:
    if attribute.name not in schema.attributes or attribute.is_ref():
        return False
    default = _default(schema, attribute.name)
    return default is not None and bool(ir.serde.deserialize_attribute(default).value == attribute.value)


def _values_fit(node: ir.Node, then: Schema, shapes: Shapes) -> bool:
    inputs = _with_parameters(node.inputs, then.inputs)
    outputs = _with_parameters(node.outputs, then.outputs)
    if inputs is None or outputs is None or not all(_fits(v, p, shapes) for v, p in inputs):
        return False
    like_inputs = {parameter.type_str for _, parameter in inputs}
    return all(
        _fits(v, p, shapes) or (p.type_str in like_inputs and not _known(v, shapes)) for v, p in outputs
    )


_Pairs = list[tuple[ir.Value | None, Schema.FormalParameter]]


def _with_parameters(
    values: Sequence[ir.Value | None], formal: Sequence[Schema.FormalParameter]
) -> _Pairs | None:
    """Values with their formal parameters, of which the last may take many; None where there are too many."""
    variadic = bool(formal) and formal[-1].option == Schema.FormalParameterOption.Variadic
    if len(values) > len(formal) and not variadic:
        return None
    return [(value, formal[min(index, len(formal) - 1)]) for index, value in enumerate(values)]


def _fits(value: ir.Value | None, parameter: Schema.FormalParameter, shapes: Shapes) -> bool:
    if value is None or not value.name:
        return bool(parameter.option == Schema.FormalParameterOption.Optional)
    dtype = _known(value, shapes)
    return dtype is not None and f"tensor({dtype.name.lower()})" in parameter.types


def _known(value: ir.Value | None, shapes: Shapes) -> ir.DataType | None:
    if value is None:
        return None
    declared = value.type.dtype if isinstance(value.type, ir.TensorType) else None
    return shapes[value].dtype or declared
