from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.cleanup.eliminate_dead_code import EliminateDeadCode

H, D = 4, 8
LOWEST = -3.4028234663852886e38
RULE = "attention-folded-heads"

LATE = "float[s, b, 32] q, float[t, b, 32] k, float[t, b, 32] v"
BY_HEADS = "float[b, 4, s, 8] q, float[b, 4, t, 8] k, float[b, 4, t, 8] v"
CONSTANTS = f"""minus = Constant <value_ints = [-1]> ()
    four = Constant <value_ints = [4]> ()
    eight = Constant <value_ints = [8]> ()
    c = Constant <value = float {{0.35}}> ()
    lowest = Constant <value = float {{{LOWEST!r}}}> ()
    nought = Constant <value = float {{0.0}}> ()"""
SIZES = """batch = Shape <start = 1, end = 2> (q)
    queries = Shape <start = 0, end = 1> (q)
    keys = Shape <start = 0, end = 1> (k)
    folds = Mul (batch, four)
    qs = Concat <axis = 0> (queries, folds, eight)
    ks = Concat <axis = 0> (keys, folds, eight)"""
ATTEND = """qf = Reshape (q, qs)
    kf = Reshape (k, ks)
    vf = Reshape (v, ks)
    q3 = Transpose <perm = [1, 0, 2]> (qf)
    k3 = Transpose <perm = [1, 0, 2]> (kf)
    v3 = Transpose <perm = [1, 0, 2]> (vf)
    u = Mul (q3, c)
    kt = Transpose <perm = [0, 2, 1]> (k3)
    z = MatMul (u, kt)
    p = Softmax <axis = -1> (z)
    a = MatMul (p, v3)
    e = Transpose <perm = [1, 0, 2]> (a)"""
FLAT = """flat = Constant <value_ints = [-1, 32]> ()
    y = Reshape (e, flat)"""


def text(*parts: str, inputs=LATE, opset=23, out="m, n") -> str:
    body = "\n".join((CONSTANTS, *parts))
    return f"""<ir_version: 11, opset_import: ["" : {opset}]> g ({inputs}) => (float[{out}] y) {{
        {body}
    }}"""


@pytest.fixture
def eliminate_dead_code():
    """The pass that removes what the model itself did not use in the first place."""
    return EliminateDeadCode()


@pytest.fixture
def feed(draw):
    """Q, K and V of the torch layout."""

    def make(batch=2, queries=5, keys=7) -> dict[str, np.ndarray]:
        lengths = {"q": queries, "k": keys, "v": keys}
        return {n: draw(size, batch, H * D, seed=i) for i, (n, size) in enumerate(lengths.items())}

    return make


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("kt = Transpose <perm = [0, 2, 1]> (k3)", "kt = Transpose <perm = [1, 2, 0]> (kf)"),
        ("p = Softmax <axis = -1>", "p = Softmax <axis = 2>"),
        ("z = MatMul (u, kt)", "x = MatMul (u, kt)\nz = Div (x, c)"),
    ],
)
def test_late_heads(old, new, parse, eliminate_dead_code, feed, fuse, ops, assert_same):
    source = text(SIZES, ATTEND.replace(old, new) if old else ATTEND, FLAT)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    eliminate_dead_code(after)
    assert ops(after)[-9:] == [*["Reshape", "Transpose"] * 3, "Attention", "Transpose", "Reshape"]
    assert_same(before, after, feed(), feed(1, 1, 1), feed(3, 2, 4))


def test_late_heads_with_another_user_of_the_result(parse, feed, fuse, ops, assert_same):
    source = text(SIZES, ATTEND, "y = Neg (e)", out="m, n, o")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after)[-4:] == ["Attention", "Transpose", "Reshape", "Neg"]
    assert_same(before, after, feed(), feed(1, 3, 1))


def test_late_heads_with_a_mask(parse, feed, draw, fuse, ops, assert_same):
    masked = ATTEND.replace(
        "p = Softmax <axis = -1> (z)", "i = Where (m, nought, lowest)\nw = Add (z, i)\np = Softmax (w)"
    )
    source = text(SIZES, masked, FLAT, inputs=f"{LATE}, bool[1, s, t] m")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert "Softmax" not in ops(after)
    for batch, queries, keys in ((2, 5, 7), (1, 1, 1), (3, 4, 2)):
        mask = draw(1, queries, keys, seed=4) > 0.5
        assert_same(before, after, feed(batch, queries, keys) | {"m": mask})


FOLD = """batch = Shape <start = 0, end = 1> (q)
    queries = Shape <start = 2, end = 3> (q)
    keys = Shape <start = 2, end = 3> (k)
    qs = Concat <axis = 0> (minus, queries, eight)
    ks = Concat <axis = 0> (minus, keys, eight)
    q3 = Reshape (q, qs)
    k3 = Reshape (k, ks)
    v3 = Reshape (v, ks)
    kt = Transpose <perm = [0, 2, 1]> (k3)
    z = MatMul (q3, kt)"""
MASK = """spread = Concat <axis = 0> (batch, four, queries, keys)
    z4 = Reshape (z, spread)
    x4 = Where (m, z4, lowest)
    back = Concat <axis = 0> (minus, queries, keys)
    x = Reshape (x4, back)"""
END = """p = Softmax <axis = -1> (x)
    a = MatMul (p, v3)
    wanted = Concat <axis = 0> (batch, four, queries, eight)
    y = Reshape (a, wanted)"""


def heads(draw, batch: int, queries: int, keys: int) -> dict[str, np.ndarray]:
    lengths = {"q": queries, "k": keys, "v": keys}
    return {n: draw(batch, H, size, D, seed=i) for i, (n, size) in enumerate(lengths.items())}


def test_folded_by_heads(parse, draw, fuse, ops, assert_same):
    source = text(FOLD, END.replace("(x)", "(z)"), inputs=BY_HEADS, out="m, n, o, p")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, *(heads(draw, *sizes) for sizes in ((2, 5, 7), (1, 1, 1), (3, 2, 4))))


def test_mask_between_two_reshapes(parse, draw, fuse, ops, assert_same):
    inputs = f"{BY_HEADS}, bool[b, 1, s, t] m"
    source = text(FOLD, MASK, END, inputs=inputs, out="m, n, o, p")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Where", "Attention"]
    for sizes in ((2, 5, 7), (1, 1, 1), (3, 2, 4)):
        mask = draw(sizes[0], 1, *sizes[1:], seed=4) > 0.5
        assert_same(before, after, heads(draw, *sizes) | {"m": mask})


WITHIN = """p4 = Softmax <axis = -1> (x4)
    back = Concat <axis = 0> (minus, queries, keys)
    p = Reshape (p4, back)"""
SPREAD = MASK.partition("    back")[0]
FOUR = END.replace("p = Softmax <axis = -1> (x)\n", "")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("axis", [-1, 3])
def test_softmax_of_four_axes(masked, axis, parse, draw, fuse, ops, assert_same):
    source = text(FOLD, SPREAD, WITHIN, FOUR, inputs=f"{BY_HEADS}, bool[b, 1, s, t] m", out="m, n, o, p")
    source = source.replace("Softmax <axis = -1>", f"Softmax <axis = {axis}>")
    if not masked:
        source = source.replace("x4 = Where (m, z4, lowest)", "").replace("(x4)", "(z4)")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == (["Where", "Attention"] if masked else ["Attention"])
    for sizes in ((2, 5, 7), (1, 1, 1), (3, 2, 4)):
        mask = draw(sizes[0], 1, *sizes[1:], seed=4) > 0.5
        assert_same(before, after, heads(draw, *sizes) | {"m": mask})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("(minus, queries, keys)", "(minus, keys, queries)", "weights with folded heads"),
        ("p4 = Softmax <axis = -1>", "p4 = Softmax <axis = 2>", ""),
        ("p = Reshape (p4, back)", "p = Reshape (p4, back)\nn = ReduceSum (p4)", ""),
    ],
)
def test_refusals_of_four_axes(old, new, expected, parse, reason):
    source = text(FOLD, SPREAD, WITHIN, FOUR, inputs=f"{BY_HEADS}, bool[b, 1, s, t] m", out="m, n, o, p")
    assert old in source
    found = reason(parse(source.replace(old, new), check=False), RULE)
    assert expected in found
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("float[t, b, 32] v", "float[t, c, 32] v", "may differ"),
        ("float[t, b, 32] v", "float[u, b, 32] v", "may fold something else"),
        ("e = Transpose <perm = [1, 0, 2]> (a)", "e = Transpose <perm = [1, 2, 0]> (a)", ""),
        ("kt = Transpose <perm = [0, 2, 1]> (k3)", "kt = Transpose <perm = [2, 1, 0]> (k3)", ""),
        ("y = Reshape (e, flat)", "y0 = Reshape (e, flat)\ns = ReduceSum (a)\ny = Add (y0, s)", ""),
        ("p = Softmax <axis = -1>", "p = Softmax <axis = 1>", ""),
        ("value = float {0.35}", "value = float {-0.35}", "is not above 0"),
    ],
)
def test_refusals_of_late_heads(old, new, expected, parse, reason):
    source = text(SIZES, ATTEND, FLAT)
    assert old in source
    found = reason(parse(source.replace(old, new), check=False), RULE)
    assert expected in found
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "spread = Concat <axis = 0> (batch, four,",
            "spread = Concat <axis = 0> (four, batch,",
            "scores by heads",
        ),
        (
            "wanted = Concat <axis = 0> (batch, four,",
            "wanted = Concat <axis = 0> (four, batch,",
            "result by heads",
        ),
        ("float[b, 4, t, 8] v", "float[b, 2, t, 8] v", "may differ"),
        ("float[b, 4, t, 8] v", "float[b, h, t, 8] v", "may fold something else"),
        ("bool[b, 1, s, t] m", "bool[b, h, s, t] m", "has h for 4 heads"),
        ("(m, z4, lowest)", "(m, z4, c)", "not deep enough"),
    ],
)
def test_refusals_of_heads_folded_early(old, new, expected, parse, reason):
    source = text(FOLD, MASK, END, inputs=f"{BY_HEADS}, bool[b, 1, s, t] m", out="m, n, o, p")
    assert old in source
    assert expected in reason(parse(source.replace(old, new), check=False), RULE)


def test_no_operator_for_it(parse, reason):
    assert "needs opset 23" in reason(parse(text(SIZES, ATTEND, FLAT, opset=22)), RULE)
    model = parse(text(SIZES, ATTEND, FLAT), check=False)
    model.graph.inputs[2].shape = None
    assert "may fold something else" in reason(model, RULE)
