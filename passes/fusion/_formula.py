"""Helpers for rules that recognise a formula spelled out in elementary operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import onnx_ir as ir

from graphopt.graph import constant_of, describe
from graphopt.rewrite import Context, input_at, is_op, producer

__all__ = [
    "axes_of",
    "float_types",
    "ints",
    "is_power",
    "number",
    "only_user",
    "other_input",
    "same_number",
    "scalar_pairs",
    "square_of",
    "why_broadcast",
    "why_shared",
]

#: Types that onnxruntime's CPU kernels of the activations and normalizations have in common. A double is
#: left alone as well where the operator would compute in float (``stash_type``).
_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def float_types(value: ir.Value, context: Context, op_type: str, *, half: bool = True) -> str | None:
    """Why ``op_type`` cannot take ``value`` for its type; None where it can."""
    dtype = context.infer(value).dtype
    if dtype is None:
        return f"the type of '{value.name}' is not known"
    if dtype not in (_FLOATS if half else _FLOATS[:1]):
        return f"'{value.name}' is of type {dtype.name}, where {op_type} is not sure to compute the same"
    return None


def number(value: ir.Value | None) -> float | None:
    """The one number inside a constant of one element; None for anything else."""
    tensor = constant_of(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def ints(value: ir.Value | None) -> list[int] | None:
    """The integers inside a constant; None for anything else."""
    tensor = constant_of(value)
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.size > 64:
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The operand of a binary node that is not ``value``."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def only_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The only node that uses the value, where it is one of these operators in the same graph."""
    users = {node for node, _ in value.uses()}
    if len(users) != 1 or value.is_graph_output():
        return None
    node = users.pop()
    return node if is_op(node, *op_types) and node.graph is value.graph else None


def scalar_pairs(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, float]]:
    """The operands of a commutative node in both orders, where the second is one number: it, and which."""
    for side in (0, 1):
        value, constant = input_at(node, side), input_at(node, 1 - side)
        found = number(constant)
        if value is not None and constant is not None and found is not None and len(node.inputs) == 2:
            yield value, constant, found


def is_power(node: ir.Node | None, exponent: float) -> bool:
    """Whether the node is a Pow by this number."""
    return node is not None and is_op(node, "Pow") and number(input_at(node, 1)) == exponent


def _interior(output: ir.Value, stops: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes between ``stops`` and ``output``, whose producer comes first; constants are no part."""
    last = output.producer()
    assert last is not None
    found: dict[ir.Node, None] = {last: None}
    pending = [last]
    while pending:
        node = pending.pop()
        for value in node.inputs:
            before = None if value is None or value in stops else value.producer()
            if before is not None and before not in found and constant_of(before.outputs[0]) is None:
                found[before] = None
                pending.append(before)
    return list(found)


def why_shared(output: ir.Value, stops: Sequence[ir.Value]) -> str | None:
    """Which value computed between ``stops`` and ``output`` is used elsewhere; None where none is."""
    nodes = _interior(output, stops)
    inside = set(nodes)
    for node in nodes:
        for value in node.outputs:
            if value is output:
                continue
            if value.is_graph_output() or any(user not in inside for user, _ in value.uses()):
                return f"the output '{value.name}' of {describe(node)} is used elsewhere"
    return None


def why_broadcast(x: ir.Value, constants: Sequence[ir.Value | None], context: Context) -> str | None:
    """Which constant of one element has more axes than ``x``, so that the result would grow axes."""
    rank = max((len(t.shape) for c in constants if (t := constant_of(c)) is not None), default=0)
    own = context.rank(x) if rank else 0
    if own is None or own < rank:
        return f"'{x.name}' may have fewer axes than a constant of the formula"
    return None


def square_of(value: ir.Value | None, user: ir.Node) -> ir.Value | None:
    """``d`` where ``value`` is ``d * d`` or ``d ** 2``."""
    node = producer(value, user, "Mul", "Pow")
    if node is None or len(node.inputs) != 2:
        return None
    if node.op_type == "Pow":
        return node.inputs[0] if is_power(node, 2.0) else None
    return node.inputs[0] if node.inputs[0] is node.inputs[1] else None


def axes_of(reduce: ir.Node) -> list[int] | None:
    """The axes of a Reduce node, sorted as written; [] for all; None where they are not constant."""
    if "axes" in reduce.attributes:
        return list(reduce.attributes.get_ints("axes", ()))
    given = input_at(reduce, 1)
    found = [] if given is None else ints(given)
    reduces_nothing = not found and reduce.attributes.get_int("noop_with_empty_axes", 0) != 0
    return None if reduces_nothing else found


def same_number(found: float, wanted: float, constant: ir.Value | None = None) -> bool:
    """Whether a number, read from ``constant``, is the one wanted up to the rounding of its type."""
    tensor = constant_of(constant)
    is_half = tensor is not None and tensor.dtype == ir.DataType.FLOAT16
    return math.isclose(found, wanted, rel_tol=2.0**-10 if is_half else 1e-6)
