from __future__ import annotations

import numpy as np
import pytest

SWAP = "[0, 2, 1]"


def graph(body: str, x: str = "float[N, 3, M] x", y: str = "float[a, b, c] y", opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) {{ {body} }}'


def around(body: str, perm: str = "[0, 2, 1]", **more) -> str:
    """``body`` makes v of t, between a Transpose and its inverse."""
    return graph(f"t = Transpose <perm = {SWAP}> (x)\n {body}\n y = Transpose <perm = {perm}> (v)", **more)


ROW = "k = Constant <value = float[3] {1.0, 2.0, 4.0}> ()\n"
W = "w = Constant <value = float[3, 2] {1.0, 2.0, 3.0, -1.0, -2.0, 0.5}> ()\n"
AXIS = "a = Constant <value = int64[1] {2}> ()\n"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("v = Relu (t)", ["Relu"]),
        ("s = Sigmoid (t)\n v = Mul (s, t)", ["Sigmoid", "Mul"]),
        (ROW + "v = Add (t, k)", ["Add"]),
        (ROW + "v = Sub (k, t)", ["Sub"]),
        ("k = Constant <value = float {2.0}> ()\n v = Max (k, t)", ["Max"]),
        (
            ROW + "z = Constant <value = float {0.0}> ()\n b = Greater (t, z)\n v = Where (b, t, k)",
            ["Greater", "Where"],
        ),
        ("v = Softmax <axis = 1> (t)", ["Softmax"]),
        ("v = LogSoftmax <axis = -1> (t)", ["LogSoftmax"]),
        (AXIS + "r = ReduceSum (t, a)\n v = Add (r, t)", ["ReduceSum", "Add"]),
        ("r = ReduceMean <axes = [-1]> (t)\n v = Sub (t, r)", ["ReduceMean", "Sub"]),
        ("v = Concat <axis = 2> (t, t)", ["Concat"]),
        ("p = Constant <value = int64[6] {0, 1, 0, 0, 0, 2}> ()\n v = Pad (t, p)", ["Pad"]),
        (
            "b = Constant <value = int64[1] {1}> ()\n e = Constant <value = int64[1] {9}> ()\n"
            "a = Constant <value = int64[1] {-1}> ()\n v = Slice (t, b, e, a)",
            ["Slice"],
        ),
        (
            W + ROW + "b = Constant <value = float[2] {1.0, 2.0}> ()\n m = MatMul (t, w)\n v = Add (m, b)",
            ["MatMul", "Add"],
        ),
    ],
)
def test_a_pair_around_an_operator_cancels(body, left, becomes, draw):
    after = becomes(around(body), left, {"x": draw(2, 3, 4)}, {"x": draw(1, 3, 1)}, rtol=1e-4, atol=1e-5)
    assert not any(node.op_type == "Transpose" for node in after.graph)


@pytest.mark.parametrize(
    "reduce",
    [
        "y = ReduceMean <axes = [1, 2], keepdims = 0> (t)",
        "y = ReduceMean <axes = [-1], keepdims = 0> (t)",
        "r = ReduceMax <axes = [1, 2], keepdims = 0> (t)\n s = Relu (r)\n y = Add (s, r)",
    ],
)
def test_a_reduction_that_leaves_axes_in_order_needs_none(becomes, draw, reduce):
    """Global pooling of a network whose channels are last, as TensorFlow writes it."""
    body = f"t = Transpose <perm = [0, 2, 1]> (x)\n {reduce}"
    ops = [line.split("=", 1)[1].split()[0] for line in reduce.split("\n")]
    becomes(graph(body, y="float y"), ops, {"x": draw(2, 3, 4)})


@pytest.mark.parametrize(
    "reduce",
    [
        "y = ReduceMean <axes = [0], keepdims = 0> (t)",
        "r = ReduceMean <axes = [1, 2], keepdims = 1> (t)\n u = Relu (t)\n y = Mul (u, r)",
    ],
)
def test_a_reduction_that_needs_one_stays(stays, reduce):
    stays(graph(f"t = Transpose <perm = [0, 2, 1]> (x)\n {reduce}", y="float y"), "no inverse Transpose")


def test_squeeze_and_excitation_of_channels_that_are_last(becomes, draw):
    body = f"""t = Transpose <perm = [0, 2, 1]> (x)
        m = ReduceMean <axes = [1], keepdims = 0> (t)
        g = Sigmoid (m)
        s = Constant <value = int64[3] {{-1, 1, 3}}> ()
        r = Reshape (g, s)
        u = Mul (t, r)
        y = Transpose <perm = {SWAP}> (u)"""
    becomes(graph(body), ["ReduceMean", "Sigmoid", "Reshape", "Mul"], {"x": draw(2, 3, 4)})


def test_a_reshape_to_axes_in_another_order_stays(stays):
    body = f"""t = Transpose <perm = [0, 2, 1]> (x)
        s = Constant <value = int64[3] {{-1, 2, 3}}> ()
        r = Reshape (z, s)
        u = Mul (t, r)
        y = Transpose <perm = {SWAP}> (u)"""
    stays(graph(body, x="float[N, 3, 2] x, float[6] z"), "no inverse Transpose")


def test_a_constant_matrix_where_the_last_axis_stays(becomes, draw):
    swap = "t = Transpose <perm = [1, 0, 2]> (x)\n"
    body = f"{swap}{W}v = MatMul (t, w)\n y = Transpose <perm = [1, 0, 2]> (v)"
    text = graph(body, x="float[N, M, 3] x")
    after = becomes(text, ["MatMul"], {"x": draw(2, 5, 3)}, {"x": draw(1, 1, 3)})
    assert after.graph.node(-1).inputs[0].is_graph_input()


def test_a_constant_matrix_on_the_left(becomes, draw):
    body = "w = Constant <value = float[2, 4] {1.0, 2.0, 3.0, -1.0, -2.0, 0.5, 1.0, 2.0}> ()\n"
    text = around(body + "v = MatMul (w, t)", x="float[N, 3, 4] x")
    becomes(text, ["MatMul"], {"x": draw(2, 3, 4)}, atol=1e-5)


def test_both_operands_transposed_alike(becomes, draw):
    body = f"u = Transpose <perm = {SWAP}> (z)\n y = Add (t, u)"
    text = graph(f"t = Transpose <perm = {SWAP}> (x)\n" + body, x="float[N, 3, M] x, float[N, 3, M] z")
    becomes(text, ["Add", "Transpose"], {"x": draw(2, 3, 4), "z": draw(2, 3, 4)})


def test_what_is_used_in_the_old_order_gets_one_transpose(becomes, draw):
    body = f"""t = Transpose <perm = {SWAP}> (x)
        r = Relu (t)
        u = Transpose <perm = {SWAP}> (r)
        y = Neg (u)
        e = Exp (r)
        z = CumSum (e, one)"""
    text = graph("one = Constant <value = int64 {1}> ()\n" + body, y="float[a, b, c] y, float[d, e, f] z")
    becomes(text, ["Relu", "Neg", "Exp", "Transpose", "CumSum"], {"x": draw(2, 3, 4)}, rtol=1e-4)


def test_another_order_behind_becomes_the_product(becomes, draw):
    body = f"""t = Transpose <perm = {SWAP}> (x)
        r = Relu (t)
        y = Transpose <perm = [1, 0, 2]> (r)"""
    becomes(graph(body), ["Relu", "Transpose"], {"x": draw(2, 3, 4)})


def test_reduction_that_drops_an_axis(becomes, draw):
    body = "m = ReduceMean <axes = [1], keepdims = 0> (t)\n y = Relu (m)"
    text = graph(f"t = Transpose <perm = [0, 2, 3, 1]> (x)\n {body}", x="float[N, 3, H, W] x")
    after = "u = Transpose <perm = [0, 2, 1]> (m)\n y = Relu (u)"
    becomes(text.replace("y = Relu (m)", after), ["ReduceMean", "Relu"], {"x": draw(2, 3, 4, 5)}, atol=1e-5)


def test_layer_normalization_over_an_axis_that_stays_last(becomes, draw):
    body = ROW + "n = LayerNormalization <axis = -1> (t, k)\n y = Transpose <perm = [1, 0, 2]> (n)"
    text = graph("t = Transpose <perm = [1, 0, 2]> (x)\n" + body, x="float[N, M, 3] x")
    becomes(text, ["LayerNormalization"], {"x": draw(2, 4, 3)}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        graph(f"t = Transpose <perm = {SWAP}> (x)\n y = Relu (t)"),
        around("one = Constant <value = int64 {1}> ()\n v = CumSum (t, one)"),
        around("v = Add (t, z)", x="float[N, 3, M] x, float[3] z"),
        around("u = Transpose <perm = [2, 1, 0]> (x)\n v = Add (t, u)", x="float[3, 3, 3] x"),
        around("v = MatMul (t, z)", x="float[N, 3, M] x, float[3, 2] z"),
        around(ROW + "v = LayerNormalization <axis = -1> (t, k)"),
        around("v = Softmax <axis = 2> (t)", opset=12),
        around("k = Constant <value = float[1, 1, 1, 1] {1.0}> ()\n u = Add (t, k)\n v = Squeeze (u, z)\n",
               x="float[N, 3, M] x, int64[1] z"),
    ],
)  # fmt: skip
def test_left_alone(text, parse, ops, simplify):
    model = parse(text)
    before = ops(model)
    result = simplify(model, "push-transpose")
    assert not result.modified
    assert ops(model) == before
    assert any("no inverse Transpose" in refusal.reason for refusal in result.refusals)


def test_a_large_shared_weight_is_not_copied(stays):
    weight = np.zeros((64, 32), np.float32)
    numbers = ", ".join(str(float(n)) for n in weight.reshape(-1))
    body = f"w = Constant <value = float[64, 32] {{{numbers}}}> ()\n v = MatMul (t, w)\n z = Relu (w)"
    text = around(body, x="float[N, 64, M] x", y="float[a, b, c] y, float[d, e] z")
    stays(text, "no inverse Transpose", "push-transpose")


def test_a_branch_that_reads_the_old_order_keeps_it(parse, ops, simplify, assert_same, draw):
    body = f"""t = Transpose <perm = {SWAP}> (x)
        r = Relu (t)
        u = Transpose <perm = {SWAP}> (r)
        v = Neg (u)
        y = If (c) <then_branch = p () => (float[a, b, c] o) {{ o = Abs (r) }},
                    else_branch = q () => (float[a, b, c] i) {{ i = Exp (r) }}>"""
    text = graph(body, x="float[N, 3, M] x, bool c", y="float[a, b, c] y, float[d, e, f] v")
    before, after = parse(text), parse(text)
    simplify(after)
    assert ops(after) == ["Relu", "Transpose", "Neg", "If"]
    assert_same(
        before, after, {"x": draw(2, 3, 4), "c": np.array(True)}, {"x": draw(1, 3, 2), "c": np.array(False)}
    )


def test_names_and_metadata_survive(parse, simplify):
    model = parse(around("v = Relu (t)"))
    relu = next(node for node in model.graph if node.op_type == "Relu")
    relu.name, relu.metadata_props["layer"] = "act", "7"
    simplify(model)
    (node,) = [node for node in model.graph if node.op_type == "Relu"]
    assert (node.name, dict(node.metadata_props)) == ("act", {"layer": "7"})


def test_a_gate_whose_transpose_is_further_up_joins(becomes, draw):
    body = f"""t = Transpose <perm = {SWAP}> (x)
        g = Transpose <perm = {SWAP}> (z)
        s = Sigmoid (g)
        v = Mul (t, s)
        y = Transpose <perm = {SWAP}> (v)"""
    text = graph(body, x="float[N, 3, M] x, float[N, 3, M] z")
    becomes(text, ["Sigmoid", "Mul"], {"x": draw(2, 3, 4), "z": -draw(2, 3, 4)}, rules=("push-transpose",))


def test_a_gate_in_the_old_order_does_not_join(stays):
    text = around("s = Sigmoid (z)\n v = Mul (t, s)", x="float[N, 3, M] x, float[N, M, 3] z")
    stays(text, "no inverse Transpose", "push-transpose")


def test_quantization_with_one_scale_does_not_mind_the_order(becomes, draw):
    scale = "k = Constant <value = float {0.5}> ()\n o = Constant <value = int8 {3}> ()\n"
    body = scale + "q = QuantizeLinear (t, k, o)\n v = DequantizeLinear (q, k, o)"
    becomes(around(body), ["QuantizeLinear", "DequantizeLinear"], {"x": draw(2, 3, 4)})


def test_quantization_by_channel_stays(stays):
    scale = (
        "k = Constant <value = float[3] {0.5, 1.0, 2.0}> ()\n o = Constant <value = int8[3] {0, 0, 0}> ()\n"
    )
    body = scale + "q = QuantizeLinear <axis = 2> (t, k, o)\n v = DequantizeLinear <axis = 2> (q, k, o)"
    stays(around(body), "no inverse Transpose", "push-transpose")
