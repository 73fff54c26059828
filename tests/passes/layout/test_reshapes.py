from __future__ import annotations

import math

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from graphopt.passes.layout.simplify_layout import SimplifyLayout

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def graph(x: str, y: str, body: str, more: str = "") -> str:
    return f"{HEAD} g ({x}) => ({y}{more}) {{ {body} }}"


def ints(name: str, *numbers: int) -> str:
    return f"{name} = Constant <value = int64[{len(numbers)}] {{{', '.join(map(str, numbers))}}}> ()\n"


SHUFFLE = graph(
    "float[N, 6, H, W] x",
    "float[N, 6, H, W] y",
    "s = Shape <start = 2> (x)"
    + ints("a", -1)
    + ints("b", 2, 3)
    + ints("c", 6)
    + """
    t1 = Concat <axis = 0> (n, b, s)
    t2 = Concat <axis = 0> (n, c, s)
    r = Reshape (x, t1)
    p = Transpose <perm = [0, 2, 1, 3, 4]> (r)
    y = Reshape (p, t2)""",
).replace("s = Shape <start = 2>", "n = Shape <start = 0, end = 1> (x)\n s = Shape <start = 2>")


@pytest.mark.parametrize(
    ("perms", "left"),
    [
        (([0, 2, 1], [0, 2, 1]), ["Relu"]),
        (([2, 0, 1], [1, 0, 2]), ["Relu", "Transpose"]),
        (([1, 2, 0], [1, 2, 0], [1, 2, 0]), ["Relu"]),
    ],
)
def test_transposes_in_a_row(perms, left, becomes, draw):
    body, value = "v0 = Relu (x)\n", "v0"
    for index, perm in enumerate(perms):
        body += f"v{index + 1} = Transpose <perm = {perm}> (v{index})\n"
        value = f"v{index + 1}"
    text = graph("float[N, 3, M] x", "float[a, b, c] y", body + f"y = Neg ({value})")
    becomes(text, [*left, "Neg"], {"x": draw(2, 3, 4)}, {"x": draw(1, 3, 1)})


def test_reversed_twice_at_a_graph_output(becomes, draw):
    text = graph("float[N, 3] x", "float[N, 3] y", "t = Transpose (x)\n y = Transpose (t)")
    becomes(text, ["Identity"], {"x": draw(2, 3)})


def test_channel_shuffle_is_one_gather(becomes, draw):
    shapes = (1, 6, 2, 3), (2, 6, 4, 1)
    after = becomes(SHUFFLE, ["Gather"], *({"x": draw(*s)} for s in shapes))
    indices = next(iter(after.graph.initializers.values())).const_value.numpy()
    np.testing.assert_array_equal(indices, [0, 3, 1, 4, 2, 5])


def test_a_shuffle_too_large_for_an_index_stays(stays):
    body = ints("a", 2, 1024) + ints("b", 2048)
    body += "r = Reshape (x, a)\n p = Transpose <perm = [1, 0]> (r)\n y = Reshape (p, b)"
    stays(graph("float[2048] x", "float[2048] y", body), "are needed")


def test_merged_and_separated_batch_axes(becomes, draw):
    body = ints("a", -1, 4, 5) + ints("b", -1, 3, 5, 4)
    body += "r = Reshape (x, a)\n p = Transpose <perm = [0, 2, 1]> (r)\n y = Reshape (p, b)"
    text = graph("float[N, 3, 4, 5] x", "float[N, 3, 5, 4] y", body)
    becomes(text, ["Transpose"], {"x": draw(1, 3, 4, 5)}, {"x": draw(2, 3, 4, 5)})


def test_two_transposes_between_three_reshapes_become_one(becomes, draw):
    body = ints("a", -1, 2, 4, 2) + ints("b", -1, 6, 16, 4) + ints("c", -1, 16, 6)
    body += """r = Reshape (x, a)
        p = Transpose <perm = [0, 2, 1, 3]> (r)
        q = Reshape (p, b)
        o = Transpose <perm = [0, 3, 2, 1]> (q)
        y = Reshape (o, c)"""
    text = graph("float[N, 6, 8, 8] x", "float[M, 16, 6] y", body)
    becomes(text, ["Reshape", "Transpose", "Reshape"], {"x": draw(1, 6, 8, 8)}, {"x": draw(3, 6, 8, 8)})


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("u = Unsqueeze (x, one)\n y = Squeeze (u, one)", ["Identity"]),
        ("u = Unsqueeze (x, one)\n y = Unsqueeze (u, zero)", ["Reshape"]),
        ("f = Flatten <axis = 1> (x)\n y = Unsqueeze (f, zero)", ["Reshape"]),
        ("u = Unsqueeze (x, zero)\n y = Transpose <perm = [1, 0, 2, 3]> (u)", ["Reshape"]),
        ("u = Unsqueeze (x, one)\n y = Transpose <perm = [3, 1, 2, 0]> (u)", ["Unsqueeze", "Transpose"]),
    ],
)
def test_axes_of_size_one(body, left, parse, ops, simplify, assert_same, draw):
    rank = {"f": 3}.get(body[0], 3 if "Squeeze (u" in body else 4)
    rank += "Unsqueeze (u" in body
    text = graph(
        "float[N, 3, 4] x", f"float[{', '.join('abcde'[:rank])}] y", ints("one", 1) + ints("zero", 0) + body
    )
    before, after = parse(text), parse(text)
    simplify(after)
    assert ops(after) == left
    assert_same(before, after, {"x": draw(1, 3, 4)}, {"x": draw(2, 3, 4)})


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ((0, -1), (0, 3, 4), ["Identity"]),
        ((0, 0, 2, 2), (-1, 12), ["Reshape"]),
        ((12, -1), (0, 0), ["Reshape"]),
    ],
)
def test_zero_and_minus_one_in_targets(first, second, left, parse, ops, simplify, assert_same, draw):
    body = ints("a", *first) + ints("b", *second) + "r = Reshape (x, a)\n y = Reshape (r, b)"
    text = graph("float[N, 3, 4] x", f"float[{', '.join('abc'[: len(second)])}] y", body)
    before, after = parse(text), parse(text)
    simplify(after)
    assert ops(after) == left
    assert_same(before, after, {"x": draw(1, 3, 4)}, {"x": draw(5, 3, 4)})


def test_two_open_axes_use_the_target_that_was_computed(becomes, draw):
    body = """s = Shape (z)
        f = Flatten <axis = 2> (x)
        y = Reshape (f, s)"""
    text = graph("float[A, B, 4] x, float[B, A, 4] z", "float[B, A, 4] y", body)
    becomes(text, ["Shape", "Reshape"], {"x": draw(2, 3, 4), "z": draw(3, 2, 4)})


def test_an_intermediate_result_that_is_used_stays(stays, becomes, draw):
    body = "t = Transpose <perm = [1, 0, 2]> (x)\n y = Transpose <perm = [0, 2, 1]> (t)"
    stays(graph("float[2, 3, 4] x", "float[a, b, c] y", body, ", float[d, e, f] t"), "are needed")
    back = "t = Transpose <perm = [1, 0, 2]> (x)\n u = Transpose <perm = [1, 0, 2]> (t)\n y = Relu (u)"
    text = graph("float[2, 3, 4] x", "float[a, b, c] y", back, ", float[d, e, f] t")
    becomes(text, ["Transpose", "Relu"], {"x": draw(2, 3, 4)})


def test_shapes_that_are_not_known_stay(stays):
    body = (
        ints("a", 0, 0, 4) + "r = Reshape (x, s)\n t = Transpose <perm = [0, 2, 1]> (r)\n y = Reshape (t, a)"
    )
    stays(graph("float[N, M] x, int64[3] s", "float[a, b, c] y", body), "shapes are unknown")


def test_axes_that_do_not_fit_for_all_sizes_stay(stays):
    body = ints("a", 4, -1) + ints("b", -1, 3)
    body += "r = Reshape (x, a)\n p = Transpose <perm = [1, 0]> (r)\n y = Reshape (p, b)"
    stays(graph("float[N, 6] x", "float[M, 3] y", body), "shapes are unknown")


@pytest.mark.parametrize(
    ("target", "reason"),
    [("b = Constant <value = int64[2] {0, 4}> ()", "refers to an axis"), ("b = Neg (m)", "is not constant")],
)
def test_reshape_reshape_of_an_unknown_shape(target, reason, parse, ops, simplify, assert_same, draw):
    text = graph(
        "float[N, 6] x, int64[K] s, int64[2] m",
        "float[A, B] y",
        f"{target}\n r = Reshape (x, s)\n y = Reshape (r, b)",
    )
    model = parse(text)
    result = simplify(model, "reshape-reshape")
    assert not result.modified
    assert reason in result.refusals[0].reason
    before, after = (
        parse(text.replace(target, "b = Constant <value = int64[2] {-1, 4}> ()")) for _ in range(2)
    )
    assert simplify(after, "reshape-reshape").modified
    assert ops(after) == ["Reshape"]
    feed = {"x": draw(2, 6), "s": np.array([3, 2, 2]), "m": np.array([1, 1])}
    assert_same(before, after, feed)


@st.composite
def chains(draw_):
    """The text of a random chain of views of a tensor [N, 4, 6]."""
    dims: list[int | None] = [None, 4, 6]
    body, count = "v0 = Identity (x)\n", draw_(st.integers(2, 5))
    for index in range(count):
        data, output = f"v{index}", f"v{index + 1}" if index < count - 1 else "y"
        if draw_(st.booleans()):
            perm = draw_(st.permutations(range(len(dims))))
            body += f"{output} = Transpose <perm = {perm}> ({data})\n"
            dims = [dims[axis] for axis in perm]
        else:
            dims = [None, *_regrouped([dim for dim in dims if dim is not None], draw_)]
            body += (
                ints(f"t{index}", *(dim or -1 for dim in dims)) + f"{output} = Reshape ({data}, t{index})\n"
            )
    return graph("float[N, 4, 6] x", f"float[{', '.join('abcdefgh'[: len(dims)])}] y", body)


def _regrouped(dims: list[int], draw_) -> list[int]:
    total, result = math.prod(dims), []
    while total > 1 and len(result) < 4:
        factor = draw_(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
        result.append(factor)
        total //= factor
    return [*result, total]


@settings(max_examples=60, deadline=None)
@given(text=chains(), batch=st.integers(1, 3))
def test_any_chain_of_views(text, batch):
    before, after = (ir.from_proto(onnx.parser.parse_model(text)) for _ in range(2))
    SimplifyLayout()(after)
    assert len([n for n in after.graph if n.op_type != "Constant"]) <= len(before.graph)
    feed = {"x": np.arange(batch * 24, dtype=np.float32).reshape(batch, 4, 6)}
    want, got = (ReferenceEvaluator(ir.to_proto(model)).run(None, feed)[0] for model in (before, after))
    np.testing.assert_array_equal(got, want)
