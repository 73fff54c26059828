"""Compute once what several nodes compute."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Hashable
from typing import Final

import onnx
import onnx_ir as ir

from graphopt.graph import can_replace, is_default_domain, is_used, replace_value, subgraphs_of
from graphopt.limits import MIB
from graphopt.passes.cleanup._common import WITH_BY_PRODUCTS, inherit_type, is_random, redirect
from graphopt.passes.cleanup._content import content
from graphopt.registry import Pass, PassResult, register

__all__ = ["EliminateCommonSubexpressions"]

#: Swapping the two inputs of these changes no bit of the result (not Max and Min: signs of zero).
_COMMUTATIVE: Final = frozenset(
    {"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mean", "Mul", "Or", "Sum", "Xor"}
)
#: Before, Add and its like broadcast the second input to the first only.
_BROADCAST_BOTH_WAYS_OPSET: Final = 7
#: Tensor attributes above this size are not read; weights belong into initializers.
_TENSOR_BYTES: Final = 16 * MIB

_PLAIN: Final = frozenset(
    {ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.STRINGS}
)

#: Nodes by what they compute, of one graph or of the graphs around it (innermost first).
_Table = dict[Hashable, ir.Node]


@register
@dataclasses.dataclass(eq=False)
class EliminateCommonSubexpressions(Pass):
    """Replace nodes by an earlier node that computes the same.

    Two nodes compute the same if operator, inputs and attributes are equal: inputs as values, numbers bit
    for bit, tensors by content; an attribute at its default is as good as none. Two inputs may be swapped
    where that changes no bit (Add, Mul, And, Equal ...). A node in a subgraph is also replaced by one of
    the graphs around it.

    It does not fire on random operators and Dropout that may be training, nodes with subgraphs, operators
    of other domains and model-local functions, when the later node has outputs that the earlier lacks, nor
    between sibling subgraphs. Where two equal nodes both make graph outputs, both stay, and only
    what reads the later one is moved to the earlier.
    """

    name = "eliminate-common-subexpressions"

    def call(self, model: ir.Model) -> PassResult:
        """Merge equal nodes in the main graph, subgraphs and functions, in one walk in node order."""
        merge = _Merge(frozenset(model.functions))
        opset = model.opset_imports.get("", 1)
        merge.visit(model.graph, opset, ())
        for function in model.functions.values():
            merge.visit(function.graph, function.opset_imports.get("", opset), ())
        summary = f"merged {merge.removed} node{'s' if merge.removed != 1 else ''}"
        return PassResult(model, merge.modified, summary)


class _Merge:
    """One run over a model: what was done, and the functions that shadow operators."""

    def __init__(self, functions: frozenset[ir.OperatorIdentifier]) -> None:
        self.functions = functions
        self.removed = 0
        self.modified = False

    def visit(self, graph: ir.Graph, opset: int, outer: tuple[_Table, ...]) -> None:
        """Merge the nodes of a graph with earlier ones, those of ``outer`` graphs included."""
        tables: tuple[_Table, ...] = ({}, *outer)
        merged = []
        for node in graph:
            shadowed = self.functions and node.op_identifier() in self.functions
            key = None if shadowed else _key(node, opset)
            if key is not None:
                keeper = next((table[key] for table in tables if key in table), None)
                if keeper is None:
                    tables[0][key] = node
                elif self._merge(node, keeper):
                    merged.append(node)
            if node.attributes.data:
                for subgraph in subgraphs_of(node):
                    self.visit(subgraph, opset, tables)
        graph.remove(merged, safe=True)
        self.removed += len(merged)
        self.modified |= bool(merged)

    def _merge(self, node: ir.Node, keeper: ir.Node) -> bool:
        """Make all uses of ``node`` uses of ``keeper``; whether the node can go."""
        if any(is_used(value) for value in node.outputs[len(keeper.outputs) :]):
            return False
        pairs = [(old, new) for old, new in zip(node.outputs, keeper.outputs, strict=False) if is_used(old)]
        if not all(new.name for _, new in pairs):  # an optional output that the earlier node leaves out
            return False
        if not all(can_replace(old, new) for old, new in pairs):
            for old, new in pairs:
                self.modified |= redirect(old, new)
            return False
        for old, new in pairs:
            inherit_type(new, old)
            replace_value(old, new)
        return True


def _key(node: ir.Node, opset: int) -> Hashable | None:
    """What the node computes; None where it must be left alone."""
    if not is_default_domain(node) or is_random(node, opset):
        return None
    attributes = []
    for attribute in node.attributes.data.values():
        key = _attribute_key(attribute)
        if key is None:
            return None
        if key != _defaults(node.op_type, opset).get(attribute.name):
            attributes.append((attribute.name, attribute.type, key))
    inputs: Hashable = _given(node)
    if node.op_type in _COMMUTATIVE and len(node.inputs) == 2 and opset >= _BROADCAST_BOTH_WAYS_OPSET:
        inputs = frozenset(node.inputs)
    outputs = None if node.op_type in WITH_BY_PRODUCTS else len(node.outputs)
    return node.op_identifier(), inputs, frozenset(attributes), outputs


def _given(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """The inputs without trailing ones that are left out."""
    inputs = node.inputs
    count = len(inputs)
    while count and inputs[count - 1] is None:
        count -= 1
    return tuple(inputs[:count])


@functools.cache
def _defaults(op_type: str, opset: int) -> dict[str, Hashable]:
    """The keys of the attributes' defaults, by name; empty for an operator that onnx does not know."""
    if not onnx.defs.has(op_type):
        return {}
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:  # of a later opset
        return {}
    written = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    return {name: _attribute_key(ir.serde.deserialize_attribute(proto)) for name, proto in written.items()}


def _attribute_key(attribute: ir.Attr) -> Hashable | None:
    """A value that equal attributes share, numbers bit for bit; None for what is not compared."""
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name
    if attribute.type in _PLAIN:
        return "plain", attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        return struct.pack("<d", attribute.value)
    if attribute.type == ir.AttributeType.FLOATS:
        return struct.pack(f"<{len(attribute.value)}d", *attribute.value)
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.value
        if tensor.nbytes <= _TENSOR_BYTES:
            return tensor.dtype, tuple(tensor.shape), content(tensor)
    return None
