from __future__ import annotations

import numpy as np
import pytest

KV, G, D = 2, 3, 8  # heads of keys, queries for each, size
RULE = "attention-groups"

REPEAT = """{n}5 = Unsqueeze ({n}, two)
    {n}e = Expand ({n}5, times)
    {n}r = Reshape ({n}e, heads)"""


def text(repeat: str = REPEAT, attend="y = Attention <scale = 0.3> (q, kr, vr)", *, values="") -> str:
    return f"""<ir_version: 11, opset_import: ["" : 23]>
    g (float[b, 6, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 8] v, float[b, 1, s, t] m)
        => (float[w, x, y_, z] y) {{
        two = Constant <value_ints = [2]> ()
        times = Constant <value_ints = [1, 1, 3, 1, 1]> ()
        heads = Constant <value_ints = [0, 6, -1, 8]> ()
        {repeat.format(n="k")}
        {(values or repeat).format(n="v")}
        {attend}
    }}"""


@pytest.fixture
def feed(draw):
    """Q, K, V and a mask for some batch and lengths."""

    def make(batch=2, queries=4, keys=5) -> dict[str, np.ndarray]:
        shapes = {"q": (batch, KV * G, queries, D), "k": (batch, KV, keys, D), "v": (batch, KV, keys, D)}
        return {n: draw(*s, seed=i) for i, (n, s) in enumerate(shapes.items())} | {
            "m": draw(batch, 1, queries, keys, seed=7)
        }

    return make


SPELLINGS = {
    "unsqueeze": REPEAT,
    "reshape": REPEAT.replace("Unsqueeze ({n}, two)", "Reshape ({n}, apart)"),
    "from the end": REPEAT.replace("({n}, two)", "({n}, third)"),
}
APART = "apart = Constant <value_ints = [0, 2, 1, -1, 8]> ()\nthird = Constant <value_ints = [-3]> ()\n"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("mask", [", m", ""])
def test_repeated_heads(spelling, mask, parse, feed, fuse, ops, assert_same):
    attend = f"y = Attention <scale = 0.3> (q, kr, vr{mask})"
    source = text(SPELLINGS[spelling], attend).replace("two = Const", f"{APART}two = Const")
    before, after = parse(source), parse(source)
    fuse(after, RULE)
    assert ops(after) == ["Attention"]
    assert [v.name for v in after.graph[-1].inputs] == ["q", "k", "v", *(["m"] if mask else [])]
    assert after.graph[-1].attributes["scale"].as_float() == pytest.approx(0.3)
    assert_same(before, after, feed(), feed(1, 1, 1), feed(3, 2, 7))


def test_written_out_attention(parse, feed, fuse, ops, assert_same):
    attend = """kt = Transpose <perm = [0, 1, 3, 2]> (kr)
        z = MatMul (q, kt)
        p = Softmax <axis = -1> (z)
        y = MatMul (p, vr)"""
    before, after = parse(text(attend=attend)), parse(text(attend=attend))
    fuse(after, "attention", RULE)
    assert ops(after) == ["Attention"]
    assert_same(before, after, feed(), feed(1, 3, 1))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[1, 1, 3, 1, 1]", "[3, 1, 1, 1, 1, 1]", ""),  # of six axes: the checker is not asked
        ("two = Constant <value_ints = [2]>", "two = Constant <value_ints = [1]>", "may be no repetition"),
        ("[0, 6, -1, 8]", "[0, -1, 2, 8]", "may be no repetition"),
        ("[0, 6, -1, 8]", "[-1, 6, 1, 8]", "may be no repetition"),
        ("(q, kr, vr)", "(q, vr, vr)", ""),
    ],
)
def test_refusals(old, new, expected, parse, reason, fuse, ops):
    source = text()
    assert old in source
    model = parse(source.replace(old, new), check=False)
    if "vr, vr" in new:  # one value for both is fine
        fuse(model, RULE)
        assert [v.name for v in model.graph[-1].inputs] == ["q", "v", "v"]
        return
    found = reason(model, RULE)
    assert expected in found


def test_values_alone(parse, reason):
    assert reason(parse(text(values="vr = Concat <axis = 1> (v, v, v)")), RULE) == ""


def test_a_count_that_is_computed(parse, reason):
    source = text().replace("times = Constant <value_ints = [1, 1, 3, 1, 1]> ()", "times = Identity (n)")
    source = source.replace("float[b, 1, s, t] m", "float[b, 1, s, t] m, int64[5] n")
    assert "may be no repetition" in reason(parse(source), RULE)


def test_a_cache_of_keys(parse, reason):
    attend = "y, nk, nv = Attention (q, kr, vr, m, pk, pv)"
    source = text(attend=attend).replace("s, t] m)", "s, u] m, float[b, 6, p, 8] pk, float[b, 6, p, 8] pv)")
    assert reason(parse(source, check=False), RULE) == ""
