from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.fusion import merge_parallel
from graphopt.passes.fusion.merge_parallel import MergeParallel


def text(inputs: str, outputs: str, body: str, *, opset=17) -> str:
    return f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'


OUT = "float[b, s, 3] p, float[b, s, 4] q, float[b, s, 5] r"
WEIGHTS = {f"w{i}": None for i in range(3)}
BIASES = {f"c{i}": None for i in range(3)}
THREE = text(
    "float[b, s, 6] x, float[6, 3] w0, float[6, 4] w1, float[6, 5] w2",
    OUT,
    "p = MatMul (x, w0) q = MatMul (x, w1) r = MatMul (x, w2)",
)
BIASED = text(
    "float[b, s, 6] x, float[6, 3] w0, float[6, 4] w1, float[6, 5] w2, float[3] c0, float[4] c1, float[5] c2",
    OUT,
    "m0 = MatMul (x, w0) p = Add (m0, c0) m1 = MatMul (x, w1) q = Add (c1, m1) "
    "m2 = MatMul (x, w2) r = Add (m2, c2)",
)
GEMM = text(
    "float[b, 6] x, float[3, 6] w0, float[5, 6] w1, float[3] c0, float[5] c1",
    "float[b, 3] p, float[b, 5] q",
    "p = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w0, c0) "
    "q = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w1, c1)",
)
CONV = text(
    "float[b, 6, h, w] x, float[3, 6, 3, 3] w0, float[5, 6, 3, 3] w1, float[3] c0, float[5] c1",
    "float[b, 3, h, w] p, float[b, 5, h, w] q",
    "p = Conv <pads = [1, 1, 1, 1]> (x, w0, c0) q = Conv <pads = [1, 1, 1, 1]> (x, w1, c1)",
)


@pytest.fixture
def both(parse, bind):
    """The model twice, its weights bound."""

    def make(source: str, **arrays):
        names = [n for n in (*WEIGHTS, *BIASES) if f" {n}" in source.split("=>")[0]]
        return tuple(bind(parse(source), **{n: arrays.get(n) for n in names}) for _ in range(2))

    return make


@pytest.mark.parametrize(
    ("source", "wanted", "shape"),
    [
        (THREE, ["MatMul", "Split"], (2, 3, 6)),
        (BIASED, ["MatMul", "Add", "Split"], (2, 3, 6)),
        (GEMM, ["Gemm", "Split"], (4, 6)),
        (CONV, ["Conv", "Split"], (2, 6, 5, 4)),
    ],
)
def test_merges(source, wanted, shape, both, draw, ops, assert_same):
    before, after = both(source)
    size = sum(v.const_value.nbytes for v in after.graph.initializers.values())
    result = MergeParallel()(after)
    assert result.modified
    assert result.summary == f"merged {len(after.graph.outputs)} products into 1"
    assert ops(after) == wanted
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
    left = sum(v.const_value.nbytes for v in after.graph.initializers.values())
    assert left == size + 8 * len(after.graph.outputs)  # the sizes of the Split
    assert_same(before, after, {"x": draw(*shape)}, {"x": draw(1, *shape[1:])})


def test_lazy_weights_give_the_same(both, draw, ops, assert_same, monkeypatch):
    monkeypatch.setattr(merge_parallel, "_LAZY_ABOVE", 0)
    before, after = both(BIASED)
    MergeParallel()(after)
    weight = next(n for n in after.graph if n.op_type == "MatMul").inputs[1]
    assert isinstance(weight.const_value, ir.LazyTensor)
    assert weight.const_value.shape == ir.Shape([6, 12])
    assert_same(before, after, {"x": draw(2, 3, 6)})


def test_weights_beyond_the_budget_are_lazy(both, monkeypatch):
    monkeypatch.setattr(merge_parallel, "_HELD", 0)
    _, after = both(THREE)
    MergeParallel()(after)
    assert isinstance(after.graph[0].inputs[1].const_value, ir.LazyTensor)


def test_name_metadata_and_inner_values(both, draw, ops, assert_same):
    source = THREE.replace("float[b, s, 5] r", "float[b, s, 5] y").replace(
        "r = MatMul (x, w2)", "r = MatMul (x, w2) y = Relu (r)"
    )
    before, after = both(source)
    after.graph[0].name, after.graph[0].metadata_props["origin"] = "query", "here"
    MergeParallel()(after)
    assert ops(after) == ["MatMul", "Split", "Relu"]
    assert after.graph[0].name == "query"
    assert all(n.metadata_props == {"origin": "here"} for n in list(after.graph)[:2])
    assert_same(before, after, {"x": draw(2, 3, 6)})


def test_only_products_of_one_kind_go_together(both, draw, ops, assert_same):
    source = BIASED.replace("r = Add (m2, c2)", "r = Add (c2, m2)").replace(
        "p = Add (m0, c0)", "p = Neg (m0)"
    )
    source = source.replace(", float[3] c0", "")
    before, after = both(source)
    MergeParallel()(after)
    assert ops(after) == ["MatMul", "Neg", "MatMul", "Add", "Split"]
    assert_same(before, after, {"x": draw(2, 3, 6)})


def test_min_products(both, ops):
    _, after = both(THREE)
    assert not MergeParallel(min_products=4)(after).modified
    assert ops(after) == ["MatMul"] * 3
    assert MergeParallel(min_products=3)(after).modified


def test_second_run_finds_nothing(both):
    _, after = both(THREE)
    MergeParallel()(after)
    result = MergeParallel()(after)
    assert (result.modified, result.summary) == (False, "nothing to merge")


def test_inside_a_branch(parse, draw, ops, assert_same):
    source = text(
        "bool k, float[b, 2] x",
        "float[b, n] y",
        """w0 = Constant <value = float[2, 2] {1.0, 2.0, 3.0, 4.0}> ()
        w1 = Constant <value = float[2, 2] {5.0, 6.0, 7.0, 8.0}> ()
        y = If (k) <then_branch = t () => (float[b, n] p) {
            a = MatMul (x, w0) c = MatMul (x, w1) p = Add (a, c)
        }, else_branch = e () => (float[b, n] q) { q = Identity (x) }>""",
    )
    before, after = parse(source), parse(source)
    MergeParallel()(after)
    branch = after.graph[-1].attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["MatMul", "Split", "Add"]
    assert ops(after) == ["If"]
    feeds = [{"k": np.array(k), "x": draw(3, 2)} for k in (True, False)]
    assert_same(before, after, *feeds)


@pytest.mark.parametrize(
    ("source", "bound", "expected"),
    [
        (THREE, (), "the weight 'w0' is not constant"),
        (
            THREE.replace("q = MatMul (x, w1)", "z = Neg (x) q = MatMul (z, w1)"),
            ("w0", "w1"),
            "is not constant",
        ),
        (THREE.replace("q = MatMul (x, w1)", "q = MatMul (w1, x)"), ("w0",), "is not constant"),
        (GEMM.replace("(x, w1, c1)", "(x, w1)").replace(", float[5] c1", ""), ("w0", "w1", "c0"), ""),
        (
            GEMM.replace("<transB = 1, alpha = 0.5, beta = 2.0> (x, w1", "<transB = 1> (x, w1"),
            ("w0", "w1"),
            "bias",
        ),
        (CONV.replace("[1, 1, 1, 1]> (x, w1", "[0, 0, 2, 2]> (x, w1"), ("w0", "w1", "c0", "c1"), ""),
        (CONV.replace("5, 6, 3, 3", "5, 6, 1, 1"), ("w0", "w1", "c0", "c1"), ""),
        (
            CONV.replace("> (x", ", group = 3> (x").replace("3, 6, 3, 3", "3, 2, 3, 3"),
            ("w0", "c0"),
            "has groups",
        ),
        (THREE.replace(": 17", ": 12"), ("w0", "w1", "w2"), ""),
    ],
)
def test_refusals(source, bound, expected, parse, bind, ops):
    model = bind(parse(source, check=False), **dict.fromkeys(bound))
    before = ops(model)
    result = MergeParallel()(model)
    assert not result.modified
    assert ops(model) == before
    assert any(expected in r.reason for r in result.refusals) if expected else not result.refusals


def test_shared_weight_is_not_stored_twice(both, ops):
    source = THREE.replace("q = MatMul (x, w1)", "u = MatMul (x, w1) v = Transpose (w1) q = MatMul (u, v)")
    _, after = both(source.replace("r = MatMul (x, w2)", "r = Neg (x)").replace(", float[6, 5] w2", ""))
    result = MergeParallel()(after)
    assert not result.modified
    assert any("the weight 'w1' is used elsewhere" in r.reason for r in result.refusals)


def test_weight_that_a_caller_may_override(both, ops):
    _, after = both(THREE)
    after.graph.inputs.append(after.graph.initializers["w1"])
    MergeParallel()(after)
    assert ops(after) == ["MatMul", "Split", "MatMul"]


def test_bias_that_is_no_row(both):
    source = BIASED.replace("float[4] c1", "float[1] c1")
    _, after = both(source)
    result = MergeParallel()(after)
    assert result.summary == "merged 2 products into 1"
    assert [r.reason for r in result.refusals] == ["the bias 'c1' is not one number per output channel"]
