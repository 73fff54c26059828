"""What patterns ask of single nodes and values."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph import constant_of, describe, is_default_domain, use_count

__all__ = ["input_at", "is_exclusive", "is_op", "only_user", "origin", "producer", "why_not_constant"]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these standard operators, with all of its attributes known.

    Inside a model-local function an attribute may refer to the caller's; nothing can be said of such a node.
    """
    if node is None or node.op_type not in op_types or not is_default_domain(node):
        return False
    attributes = node.attributes.data
    return not attributes or not any(a.is_ref() for a in attributes.values())


def producer(value: ir.Value | None, user: ir.Node, *op_types: str) -> ir.Node | None:
    """The node of one of these op types that makes ``value`` in the same graph as ``user``.

    A producer in an outer graph is none: fusing it would move its work into a branch or a loop.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type not in op_types or node.graph is not user.graph:
        return None
    return node if is_op(node, node.op_type) else None


def origin(value: ir.Value, *op_types: str, within: ir.Graph | None = None) -> ir.Value:
    """What nodes of these op types, each of one input (Identity, Cast), make ``value`` of.

    Args:
        value: Where to start.
        op_types: Which nodes are looked through.
        within: Only nodes of this graph are; of any where None.
    """
    while (node := value.producer()) is not None and is_op(node, *op_types):
        before = node.inputs[0]
        if before is None or (within is not None and node.graph is not within):
            break
        value = before
    return value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_exclusive(value: ir.Value) -> bool:
    """Whether the value has exactly one use and is no graph output."""
    return use_count(value) == 1 and not value.is_graph_output()


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that reads the value where it is the only one; there may be thousands of others."""
    for user, _ in value._uses:
        once = use_count(value) == 1
        few = use_count(value) <= len(user.inputs)
        return user if once or (few and len(value.consumers()) == 1) else None
    return None


def why_not_constant(value: ir.Value, role: str) -> str | None:
    """Why no rewrite may read ``value``, which is ``role`` ("the weight"); None where it is constant."""
    if constant_of(value) is not None:
        return None
    if value.is_graph_input():
        return f"{role} '{value.name}' is a graph input"
    node = value.producer()
    made = f"computed by {describe(node)}" if node is not None else "not known here"
    return f"{role} '{value.name}' is {made}"
