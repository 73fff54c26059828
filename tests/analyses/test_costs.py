"""Costs, against numbers computed by hand."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from graphopt.analyses import costs
from graphopt.io import serialized_size

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


@pytest.fixture
def macs(parse):
    def measure(text, **axes):
        found = costs.measure(parse(text, check=False), axes)
        return found.macs, found.unknown_macs

    return measure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # output 1x8x16x16, each element sums over 4 channels of a 3x3 kernel
        (
            "g (float[1,4,16,16] x, float[8,4,3,3] w) => (float[1,8,16,16] y)"
            " { y = Conv<pads=[1,1,1,1]>(x, w) }",
            8 * 16 * 16 * 4 * 9,
        ),
        # depthwise, stride 2, two images
        (
            "g (float[2,8,9,9] x, float[8,1,3,3] w) => (float[2,8,4,4] y)"
            " { y = Conv<group=8, strides=[2,2]>(x, w) }",
            2 * 8 * 4 * 4 * 9,
        ),
        # every input element meets out/group = 3 channels of a 2x2 kernel
        (
            "g (float[1,4,5,5] x, float[4,3,2,2] w) => (float[1,6,6,6] y)"
            " { y = ConvTranspose<group=2>(x, w) }",
            4 * 25 * 3 * 4,
        ),
        ("g (float[5,7] x, float[7,3] w) => (float[5,3] y) { y = Gemm(x, w) }", 5 * 7 * 3),
        (
            "g (float[7,5] x, float[3,7] w) => (float[5,3] y) { y = Gemm<transA=1, transB=1>(x, w) }",
            5 * 7 * 3,
        ),
        (
            "g (float[2,1,5,7] x, float[3,7,4] w) => (float[2,3,5,4] y) { y = MatMul(x, w) }",
            2 * 3 * 5 * 7 * 4,
        ),
        ("g (float[7] x, float[7] w) => (float y) { y = MatMul(x, w) }", 7),
        ("g (uint8[5,7] x, uint8[7,3] w) => (int32[5,3] y) { y = MatMulInteger(x, w) }", 105),
        (
            "g (uint8[1,2,4,4] x, uint8[3,2,1,1] w) => (int32[1,3,4,4] y) { y = ConvInteger(x, w) }",
            3 * 16 * 2,
        ),
        (
            "g (uint8[5,7] x, float s, uint8 z, uint8[7,3] w) => (uint8[5,3] y)"
            " { y = QLinearMatMul(x, s, z, w, s, z, s, z) }",
            105,
        ),
        (
            "g (uint8[1,2,4,4] x, float s, uint8 z, uint8[3,2,1,1] w) => (uint8[1,3,4,4] y)"
            " { y = QLinearConv(x, s, z, w, s, z, s, z) }",
            96,
        ),
        # one point of the space of labels b, h, q, k, d
        (
            "g (float[2,3,4,8] q, float[2,3,5,8] k) => (float[2,3,4,5] y)"
            ' { y = Einsum<equation="bhqd,bhkd->bhqk">(q, k) }',
            2 * 3 * 4 * 5 * 8,
        ),
        (
            "g (float[2,3,4,8] q, float[8,5] k) => (float[2,3,4,5] y)"
            ' { y = Einsum<equation="...d, dk -> ...k">(q, k) }',
            2 * 3 * 4 * 8 * 5,
        ),
        # sequence * batch * directions * gates * hidden * (input + hidden)
        (
            "g (float[6,2,5] x, float[2,16,5] w, float[2,16,4] r) => (float[6,2,2,4] y)"
            ' { y = LSTM<hidden_size=4, direction="bidirectional">(x, w, r) }',
            6 * 2 * 2 * 4 * 4 * (5 + 4),
        ),
        (
            "g (float[6,2,5] x, float[1,12,5] w, float[1,12,4] r) => (float[6,1,2,4] y)"
            " { y = GRU<hidden_size=4>(x, w, r) }",
            6 * 2 * 3 * 4 * (5 + 4),
        ),
        (
            "g (float[6,2,5] x, float[1,4,5] w, float[1,4,4] r) => (float[6,1,2,4] y)"
            " { y = RNN<hidden_size=4>(x, w, r) }",
            6 * 2 * 4 * (5 + 4),
        ),
        ("g (float[2,3] x) => (float[2,3] y) { a = Add(x, x)  b = Softmax(a)  y = Mul(a, b) }", 0),
    ],
)
def test_macs_of_standard_operators(macs, text, expected):
    assert macs(HEAD + text) == (expected, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 4-D: QK' is 2*4*6*6*8, PV is 2*4*6*6*5
        (
            "g (float[2,4,6,8] q, float[2,4,6,8] k, float[2,4,6,5] v) => (float[2,4,6,5] y)"
            " { y = Attention(q, k, v) }",
            2 * 4 * 6 * 6 * (8 + 5),
        ),
        # 3-D with grouped heads: 4 query heads of 8 share 2 key heads; 7 keys
        (
            "g (float[2,6,32] q, float[2,7,16] k, float[2,7,16] v) => (float[2,6,32] y)"
            " { y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v) }",
            2 * 6 * 7 * (32 + 32),
        ),
        # three past keys besides the six new ones
        (
            "g (float[1,1,6,8] q, float[1,1,6,8] k, float[1,1,6,8] v, float[1,1,3,8] p) => (float[1,1,6,8] y)"
            " { y, a, b = Attention(q, k, v, , p, p) }",
            6 * 9 * 16,
        ),
    ],
)
def test_macs_of_attention(macs, text, expected):
    assert macs('<ir_version: 10, opset_import: ["" : 23]>' + text) == (expected, 0)


MICROSOFT = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "g (float[5,64] x, uint8[3,2,16] w, float[6] s) => (float[5,3] y)"
            " { y = com.microsoft.MatMulNBits<K=64, N=3, bits=4, block_size=32>(x, w, s) }",
            (5 * 64 * 3, 0),
        ),
        (
            "g (float[7,5] x, float[7,3] w) => (float[5,3] y)"
            " { y = com.microsoft.FusedMatMul<transA=1>(x, w) }",
            (105, 0),
        ),
        ("g (float[2,3] x) => (float[2,3] y) { y = com.microsoft.Gelu(x) }", (0, 0)),
        (
            "g (float[2,3,12] x, float[12,36] w) => (float[2,3,12] y) { y = com.microsoft.Attention(x, w) }",
            (0, 1),
        ),
    ],
)
def test_macs_of_contributed_operators(macs, text, expected):
    assert macs(MICROSOFT + text) == expected


def test_what_cannot_be_known_is_counted_apart(macs):
    text = """<ir_version: 8, opset_import: ["" : 17, "other" : 1]> g (float[4,4] x) => (float[4,4] y)
    { a = other.Mystery(x)  b = MatMul(a, x)  n = NonZero(x)  c = Cast<to=1>(n)  t = Transpose(c)
      d = MatMul(t, c)  y = MatMul(x, x) }"""
    assert macs(text) == (64, 3)  # Mystery, and the products of shapes that nobody knows


def test_axes_are_bound_by_name_and_count_as_one_else(macs):
    text = HEAD + "g (float[N,S,8] x, float[8,8] w) => (float[N,S,8] y) { y = MatMul(x, w) }"
    assert macs(text) == (64, 0)
    assert macs(text, N=3) == (3 * 64, 0)
    assert macs(text, N=3, S=10) == (30 * 64, 0)


def test_shapes_computed_in_the_graph_are_followed(macs):
    text = (
        HEAD
        + """g (float[N,6,8] x, float[4,4] w) => (float[a,b,c] y)
        <int64[1] m = {-1}, int64[1] four = {4}, int64[1] zero = {0}, int64[1] one = {1}>
        { s = Shape(x)  n = Slice(s, zero, one)  t = Concat<axis=0>(n, m, four)  r = Reshape(x, t)
          y = MatMul(r, w) }"""
    )
    assert macs(text, N=5) == (5 * 12 * 4 * 4, 0)


def test_bodies_count_once_and_constants_not_at_all(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (int64 n, float[4,4] x) => (float[4,4] y)
        {
          t = Constant<value = bool {1}>()
          a = f.twice(x)  b = f.twice(a)
          y = Loop(n, t, b) <body = g2 (int64 i, bool c, float[4,4] v) => (bool d, float[4,4] w) {
            k = Constant<value_float = 2.0>()  d = Identity(c)  w = MatMul(x, x) }>
        }
        <domain: "f", opset_import: ["" : 17]> twice (p) => (q) { q = Add(p, p) }""",
        check=False,
    )
    found = costs.measure(model)
    assert found.operators == {"f.twice": 2, "Add": 1, "Identity": 1, "Loop": 1, "MatMul": 1}
    assert found.nodes == 6
    assert (found.macs, found.unknown_macs) == (64, 0)


def test_parameters_are_weights_and_count_once(parse):
    model = parse(
        HEAD
        + """g (float[2] x, float[2] overridable = {1, 2}) => (float[2] y)
        <float[2] w = {1, 2}, float[1] scalar = {1}, int64[3] shape = {1, 2, 3}, int8[4] q = {1, 2, 3, 4},
         bool[2] mask = {1, 0}, int32[2] bias = {1, 2}>
        { c = Constant<value = float[5] {1, 2, 3, 4, 5}>()  a = Add(x, w)  y = Add(a, w) }""",
        check=False,
    )
    assert costs.measure(model).parameters == 2 + 2 + 4 + 2 + 5
    shared = model.graph.initializers["w"].const_value
    model.graph.register_initializer(ir.Value(name="again", const_value=shared))
    assert costs.measure(model).parameters == 15


def test_bytes_opset_and_operator_names(parse):
    model = parse(
        MICROSOFT + "g (float[2] x) => (float[2] y) { a = com.microsoft.Gelu(x)  b = Relu(a)  y = Relu(b) }"
    )
    found = costs.measure(model)
    assert found.bytes == serialized_size(model)
    assert found.opset == 17
    assert list(found.operators.items()) == [("Relu", 2), ("com.microsoft.Gelu", 1)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nodes = 3


def test_model_is_left_as_it_was(parse):
    model = parse(HEAD + "g (float[N,8] x, float[8,8] w) => (float[N,8] y) { a = MatMul(x, w)  y = Relu(a) }")
    before = ir.to_proto(model).SerializeToString()
    costs.measure(model, {"N": 3})
    assert ir.to_proto(model).SerializeToString() == before
