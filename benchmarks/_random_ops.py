"""The operators of the random graphs: each function adds some nodes to a grower, or does nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _random_attention import folded_heads, heads, requantize, rotary, windows
from _random_elementwise import (
    binary,
    by_constant,
    cast,
    clip,
    formula,
    guarded,
    integers,
    jump,
    unary,
    where,
)
from _random_graphs import Grower, Tensor
from _random_movement import (
    concat,
    expand,
    from_shape,
    gather,
    indexing,
    pad,
    reshape,
    slice_,
    split,
    squeeze,
    transpose,
)
from _random_networks import attention, conv, conv_transpose, einsum, matmul, normalize, pool, reduce, resize
from onnx import TensorProto, helper  # noqa: TID251 (protos, nothing of graphopt)

__all__ = ["OPERATORS"]


# Scopes.


def branch(g: Grower) -> None:
    """If on a constant or a computed condition; its branches capture a value."""
    x = g.pick()
    if x is None:
        return
    if g.flip(0.4):
        condition = g.const(g.flip(), np.bool_)
    else:
        rank = g.op("Size", [g.op("Shape", [x.name])])
        condition = g.op("Greater", [rank, g.const(g.number(0, 3), np.int64)])
    branches = [
        _body(g, x, op_type) for op_type in g.rng.permutation(["Relu", "Neg", "Identity", "Tanh"])[:2]
    ]
    g.add("If", [condition], x.shape, then_branch=branches[0], else_branch=branches[1])


def _body(g: Grower, x: Tensor, op_type: str) -> object:
    w, inner, out = g.name("w"), g.name("inner"), g.name("out")
    scale = helper.make_tensor(w, TensorProto.FLOAT, [], [g.choose((0.5, 1.0))])
    nodes = [
        helper.make_node(str(op_type), [x.name], [inner]),
        helper.make_node("Mul", [inner, w], [out]),
    ]
    result = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, g.name("body"), [], [result], [scale])


def loop(g: Grower) -> None:
    """Loop a few times; the body captures a value."""
    x = g.pick(least=1)
    if x is None:
        return
    i, c, v, keep, out, inner = (g.name(s) for s in ("i", "c", "v", "keep", "out", "inner"))
    nodes = [
        helper.make_node("Identity", [c], [keep]),
        helper.make_node("Tanh", [x.name], [inner]),
        helper.make_node("Add", [v, inner], [out]),
    ]
    infos = [
        helper.make_tensor_value_info(i, TensorProto.INT64, []),
        helper.make_tensor_value_info(c, TensorProto.BOOL, []),
        helper.make_tensor_value_info(v, TensorProto.FLOAT, None),
    ]
    results = [
        helper.make_tensor_value_info(keep, TensorProto.BOOL, []),
        helper.make_tensor_value_info(out, TensorProto.FLOAT, None),
    ]
    body = helper.make_graph(nodes, g.name("body"), infos, results)
    inputs = [g.const(g.number(0, 3), np.int64), g.const(True, np.bool_) if g.flip() else "", x.name]
    g.add("Loop", inputs, x.shape, body=body)


def call(g: Grower) -> None:
    """Call a function of the model."""
    x = g.pick()
    if x is None or g.opset < 13:
        return
    if not g.functions:
        nodes = [
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Mul", ["x", "one"], ["y"]),
            helper.make_node("Tanh", ["y"], ["t"]),
            helper.make_node("Tanh", ["y"], ["u"]),
            helper.make_node("Add", ["t", "u"], ["z"]),
        ]
        opsets = [helper.make_opsetid("", g.opset)]
        g.functions.append(helper.make_function("local", "Twice", ["x"], ["z"], nodes, opsets))
    g.add("Twice", [x], x.shape, domain="local")


#: Every operator with its weight.
OPERATORS: dict[Callable[[Grower], None], float] = {
    unary: 3, jump: 1, clip: 1, guarded: 2, by_constant: 5, binary: 4, where: 1.5, cast: 1.5, integers: 1,
    formula: 2, reshape: 4, squeeze: 3, transpose: 3, concat: 2, split: 1.5, slice_: 2, gather: 2, pad: 1.5,
    expand: 2, from_shape: 3, indexing: 1.5, conv: 4, conv_transpose: 1.5, pool: 2, resize: 0.7,
    normalize: 2.5, reduce: 2, matmul: 4, attention: 1, einsum: 0.4, branch: 1, loop: 0.5, call: 0.5,
    heads: 1.5, folded_heads: 0.5, rotary: 1, windows: 1, requantize: 1,
}  # fmt: skip
