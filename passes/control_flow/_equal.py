"""Whether two graphs compute the same, node for node."""

from __future__ import annotations

import struct

import onnx_ir as ir

from graphopt.limits import MIB

__all__ = ["are_equal"]

#: Tensors above this size are equal only where they are one object.
_TENSOR_BYTES = 1 * MIB
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

Pairs = dict[ir.Value, ir.Value]


def are_equal(first: ir.Graph, second: ir.Graph) -> bool:
    """Whether both have the same nodes in the same order on the same outer values; names do not matter."""
    return _equal_graphs(first, second, {})


def _equal_graphs(first: ir.Graph, second: ir.Graph, pairs: Pairs) -> bool:
    sizes = [(len(g), len(g.inputs), len(g.outputs)) for g in (first, second)]
    if sizes[0] != sizes[1]:
        return False
    for a, b in zip(first.inputs, second.inputs, strict=True):
        if a.type != b.type or a.shape != b.shape or a.is_initializer() or b.is_initializer():
            return False
        pairs[a] = b
    if not all(_equal_nodes(a, b, pairs) for a, b in zip(first, second, strict=True)):
        return False
    return all(_equal_values(a, b, pairs) for a, b in zip(first.outputs, second.outputs, strict=True))


def _equal_nodes(a: ir.Node, b: ir.Node, pairs: Pairs) -> bool:
    if a.op_identifier() != b.op_identifier() or a.attributes.keys() != b.attributes.keys():
        return False
    if len(a.inputs) != len(b.inputs) or [bool(v.name) for v in a.outputs] != [
        bool(v.name) for v in b.outputs
    ]:
        return False
    if not all(_equal_values(x, y, pairs) for x, y in zip(a.inputs, b.inputs, strict=True)):
        return False
    if not all(_equal_attributes(x, b.attributes[x.name], pairs) for x in a.attributes.values()):
        return False
    pairs.update(zip(a.outputs, b.outputs, strict=True))
    return True


def _equal_values(a: ir.Value | None, b: ir.Value | None, pairs: Pairs) -> bool:
    if a is None or b is None or a in pairs:
        return (pairs.get(a) if a is not None else None) is b
    if a is b:
        return True
    if not (a.is_initializer() and b.is_initializer()) or a.is_graph_input() or b.is_graph_input():
        return False
    return (
        a.const_value is not None
        and b.const_value is not None
        and _equal_tensors(a.const_value, b.const_value)
    )


def _equal_tensors(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a is b:
        return True
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape) or a.dtype == ir.DataType.STRING:
        return False
    return a.nbytes <= _TENSOR_BYTES and a.tobytes() == b.tobytes()


def _equal_attributes(a: ir.Attr, b: ir.Attr, pairs: Pairs) -> bool:
    if a.type != b.type or a.ref_attr_name != b.ref_attr_name:
        return False
    if a.is_ref():
        return True
    if a.type in _GRAPHS:
        first = [a.as_graph()] if a.type == ir.AttributeType.GRAPH else list(a.as_graphs())
        second = [b.as_graph()] if b.type == ir.AttributeType.GRAPH else list(b.as_graphs())
        same = len(first) == len(second)
        return same and all(_equal_graphs(x, y, pairs) for x, y in zip(first, second, strict=True))
    if a.type == ir.AttributeType.TENSOR:
        return _equal_tensors(a.as_tensor(), b.as_tensor())
    if a.type == ir.AttributeType.FLOAT:
        return struct.pack("<d", a.value) == struct.pack("<d", b.value)
    if a.type == ir.AttributeType.FLOATS:
        form = f"<{len(a.value)}d"
        return len(a.value) == len(b.value) and struct.pack(form, *a.value) == struct.pack(form, *b.value)
    plain = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.STRINGS)
    return a.type in plain and bool(a.value == b.value)
