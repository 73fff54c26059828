from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.layout.simplify_layout import SimplifyLayout

H, D = 3, 8
RULE = "attention-late-heads"
CONSTANTS = """split = Constant <value_ints = [0, 0, 3, 8]> ()
    merge = Constant <value_ints = [-1, 24]> ()"""


def head(name: str) -> str:
    return f"""{name}4 = Reshape ({name}, split)
        {name}h = Transpose <perm = [1, 2, 0, 3]> ({name}4)"""


HEADS = "\n".join(map(head, "qkv"))
ATTEND = "a = Attention <scale = 0.3> (qh, kh, vh)"
BACK = "t = Transpose <perm = [2, 0, 1, 3]> (a)"
OUT = f"{BACK}\ny = Reshape (t, merge)"
INPUTS = "float[s, b, 24] q, float[t, b, 24] k, float[t, b, 24] v"
PARTS = """three = Constant <value_ints = [0, 0, 3, 24]> ()
    r = Reshape (x, three)
    u = Transpose <perm = [2, 0, 1, 3]> (r)
    i0 = Constant <value_int = 0> ()
    i1 = Constant <value_int = 1> ()
    i2 = Constant <value_int = 2> ()
    q = Gather <axis = 0> (u, i0)
    k = Gather <axis = 0> (u, i1)
    v = Gather (u, i2)"""


def text(body: str, *, inputs=INPUTS, out="m, n") -> str:
    return f"""<ir_version: 11, opset_import: ["" : 23]> g ({inputs}) => (float[{out}] y) {{
        {CONSTANTS}
        {body}
    }}"""


@pytest.fixture
def simplify_layout():
    """The pass that lets Transposes cancel."""
    return SimplifyLayout()


@pytest.fixture
def feed(draw):
    """Q, K and V for some batch and lengths."""

    def make(batch=2, queries=4, keys=5) -> dict[str, np.ndarray]:
        sizes = {"q": queries, "k": keys, "v": keys}
        return {n: draw(size, batch, H * D, seed=i) for i, (n, size) in enumerate(sizes.items())}

    return make


def test_split_and_merge(parse, feed, fuse, ops, assert_same):
    source = text(f"{HEADS}\n{ATTEND}\n{OUT}")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == [*["Transpose"] * 3, "Attention", "Transpose", "Reshape"]
    attributes = next(n for n in after.graph if n.op_type == "Attention").attributes
    assert (attributes["q_num_heads"].as_int(), attributes["kv_num_heads"].as_int()) == (H, H)
    assert attributes["scale"].as_float() == pytest.approx(0.3)
    assert_same(before, after, feed(), feed(1, 1, 1), feed(3, 2, 7))


def test_mask_stays(parse, feed, draw, fuse, ops, assert_same):
    body = f"{HEADS}\n{ATTEND.replace('vh)', 'vh, m)')}\n{OUT}"
    source = text(body, inputs=f"{INPUTS}, float[b, 1, s, t] m")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert "Attention" in ops(after)
    assert ops(after).count("Reshape") == 1
    assert_same(before, after, feed() | {"m": draw(2, 1, 4, 5)})


@pytest.mark.parametrize(
    ("out", "shape"),
    [
        (f"{BACK}\nkeep = Constant <value_ints = [0, 0, 6, 4]> ()\ny = Reshape (t, keep)", "m, n, o, p"),
        (f"{BACK}\ny = Neg (t)", "m, n, o, p"),
    ],
)
def test_other_merges(out, shape, parse, feed, fuse, ops, assert_same):
    source = text(f"{HEADS}\n{ATTEND}\n{out}", out=shape)
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after)[3:6] == ["Attention", "Transpose", "Reshape"]
    assert_same(before, after, feed(), feed(1, 3, 2))


@pytest.mark.parametrize("order", ["012", "201"])
def test_parts_of_one_product(order, parse, draw, fuse, ops, assert_same):
    parts = PARTS
    for name, index in zip("qkv", order, strict=True):
        parts = parts.replace(f"{name} = Gather", f"{index} = Gather")
    for name, index in zip("qkv", "012", strict=True):
        parts = parts.replace(f"{index} = Gather", f"{name} = Gather")
    source = text(f"{parts}\n{HEADS}\n{ATTEND}\n{OUT}", inputs="float[s, b, 72] x")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Transpose", "Split", "Attention", "Transpose", "Reshape"]
    assert_same(before, after, *({"x": draw(s, b, 72)} for s, b in ((5, 2), (1, 1), (2, 3))))


def test_all_that_is_left_of_a_torch_module(parse, draw, bind, fuse, ops, simplify_layout, assert_same):
    """The model's own Transposes go with those around Attention."""
    body = f"""xt = Transpose <perm = [1, 0, 2]> (batch_first)
        x = MatMul (xt, w)
        {PARTS}
        {HEADS}
        {ATTEND}
        {OUT.replace("y =", "rows =")}
        g = Gemm (rows, o)
        shape = Shape (xt)
        late = Reshape (g, shape)
        y = Transpose <perm = [1, 0, 2]> (late)"""
    source = text(body, inputs="float[b, s, 24] batch_first, float[24, 72] w, float[24, 24] o", out="m, n, p")
    before, after = (bind(parse(source), w=None, o=None) for _ in range(2))
    fuse(after, RULE, "gemm-reshapes")
    simplify_layout(after)
    assert ops(after) == ["MatMul", "Split", "Attention", "MatMul"]
    feeds = ({"batch_first": draw(b, s, 24)} for b, s in ((2, 5), (1, 1), (3, 4)))
    assert_same(before, after, *feeds)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("value_ints = [0, 0, 3, 8]", "value_ints = [-1, 2, 3, 8]", "something else than splitting heads"),
        ("[1, 2, 0, 3]> (k4)", "[1, 2, 3, 0]> (k4)", ""),
        ("[2, 0, 1, 3]> (a)", "[2, 1, 0, 3]> (a)", ""),
        ("y = Reshape (t, merge)", "z = Reshape (t, merge)\nr = ReduceSum (a)\ny = Add (z, r)", ""),
        ("v4 = Reshape (v,", "vp = Squeeze (v)\nv4 = Reshape (vp,", ""),
    ],
)
def test_refusals(old, new, expected, parse, reason):
    source = text(f"{HEADS}\n{ATTEND}\n{OUT}")
    assert old in source
    found = reason(parse(source.replace(old, new), check=False), RULE)
    assert expected in found
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("v = Gather (u, i2)", "v = Gather (u, i1)", "are not the three parts"),
        ("[0, 0, 3, 24]", "[0, -1, 3, 24]", ""),
        ("[2, 0, 1, 3]> (r)", "[2, 1, 0, 3]> (r)", ""),
        ("v = Gather (u, i2)", "v = Gather <axis = 1> (u, i2)", ""),
    ],
)
def test_refusals_of_parts(old, new, expected, parse, reason, fuse, ops):
    source = text(f"{PARTS}\n{HEADS}\n{ATTEND}\n{OUT}", inputs="float[s, b, 72] x")
    assert old in source
    model = parse(source.replace(old, new), check=False)
    if "-1" in new:  # the same numbers in another spelling
        fuse(model, RULE)
        assert "Split" in ops(model)
        return
    assert expected in reason(model, RULE)


def test_a_product_that_is_taken_apart_differently(parse, reason):
    source = text(f"{PARTS}\n{HEADS}\n{ATTEND}\n{OUT}", inputs="float[s, b, 96] x")
    source = source.replace("[0, 0, 3, 24]", "[0, 0, 4, 24]")
    assert "may do something else than taking three parts" in reason(parse(source), RULE)


def test_a_cache_of_keys(parse, reason):
    attend = "a, nk, nv = Attention (qh, kh, vh, , pk, pv)"
    inputs = f"{INPUTS}, float[b, 3, p, 8] pk, float[b, 3, p, 8] pv"
    assert reason(parse(text(f"{HEADS}\n{attend}\n{OUT}", inputs=inputs), check=False), RULE) == ""
