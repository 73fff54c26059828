"""simplify-qdq: structure, numbers bit for bit, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.quantization.simplify_qdq import SimplifyQdq

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '
ALL = {
    "int8": np.arange(-128, 128).astype(np.int8),
    "uint8": np.arange(256).astype(np.uint8),
    "int16": np.arange(-32768, 32768, 7).astype(np.int16),
}
FLOATS = np.concatenate(
    [np.linspace(-30, 30, 4001), [0.0, -0.0, 6.0, 6.02, 1e30, -1e30, 1e-40, -1e-40]]
).astype(np.float32)


@pytest.fixture
def simplify(parse, run, ops):
    """Text -> op types after; the outputs agree bit for bit."""

    def check(text: str, *feeds, modified: bool = True) -> list[str]:
        before, model = parse(HEAD + text), parse(HEAD + text)
        result = SimplifyQdq()(model)
        assert result.modified == modified
        onnx.checker.check_model(ir.to_proto(model))
        for feed in feeds:
            for want, got in zip(run(before, feed), run(model, feed), strict=True):
                assert want.dtype == got.dtype
                np.testing.assert_array_equal(got, want)
        return ops(model)

    return check


@pytest.mark.parametrize(
    ("dtype", "zero"), [("int8", 0), ("int8", -128), ("int8", 5), ("uint8", 0), ("uint8", 255), ("int16", 3)]
)
def test_pair_between_integers(simplify, dtype, zero):
    text = f"""g ({dtype}[N] q) => ({dtype}[N] y) <float s = {{0.0123}}, {dtype} z = {{{zero}}}> {{
      f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z) }}"""
    assert simplify(text, {"q": ALL[dtype]}) == ["Identity"]


def test_equal_constants_and_default_zero_point(simplify):
    text = """g (uint8[N] q) => (uint8[N] y) <float s = {0.5}, float[1] s2 = {0.5}, uint8 z = {0}> {
      f = DequantizeLinear(q, s) r = QuantizeLinear(f, s2, z) y = Identity(r) }"""
    assert simplify(text, {"q": ALL["uint8"]}) == ["Identity"]


def test_pair_of_one_axis(simplify):
    text = """g (int8[4, 2] q) => (int8[4, 2] y) <float[2] s = {0.5, 0.1}, int8[2] z = {1, -1}> {
      f = DequantizeLinear<axis = 1>(q, s, z) y = QuantizeLinear<axis = 1>(f, s, z) }"""
    assert simplify(text, {"q": ALL["int8"][:8].reshape(4, 2)}) == ["Identity"]


def test_float16_scale(simplify):  # the text holds the bits of 0.0123
    text = """g (int8[N] q) => (int8[N] y) <float16 s = {8780}, int8 z = {7}> {
      f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z) }"""
    assert simplify(text, {"q": ALL["int8"]}) == ["Identity"]


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-30, 1e30), st.sampled_from([np.float32, np.float16]), st.integers(-128, 127))
def test_rounding_returns_every_integer(scale, dtype, zero):
    """The proof, in numpy: quotient by division and by multiplication with the inverse."""
    s = dtype(np.clip(scale, 1e-4, 200) if dtype == np.float16 else scale)
    n = np.arange(-128, 128) - zero
    x = n.astype(dtype) * s
    for quotient in (x / s, x * (dtype(1) / s)):
        np.testing.assert_array_equal(np.rint(quotient), n)


def test_movers_between(simplify):
    text = """g (uint8[1, 2, 4, 4] q) => (uint8[2, 4] y)
    <float s = {0.02}, uint8 z = {100}, int64[2] t = {2, 4}> {
      f = DequantizeLinear(q, s, z)
      p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)
      r = Reshape(p, t) tr = Transpose<perm = [1, 0]>(r) tb = Transpose<perm = [1, 0]>(tr)
      y = QuantizeLinear(tb, s, z) }"""
    feed = {"q": np.arange(7, 39, dtype=np.uint8).reshape(1, 2, 4, 4) * 5}
    assert simplify(text, feed) == ["MaxPool", "Reshape", "Transpose", "Transpose"]


def test_padded_max_pool(simplify):
    text = """g (int8[1, 1, 4, 4] q) => (int8[1, 1, 4, 4] y) <float s = {0.02}, int8 z = {-7}> {
      f = DequantizeLinear(q, s, z)
      p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(f)
      y = QuantizeLinear(p, s, z) }"""
    feed = {"q": np.arange(-128, -112, dtype=np.int8).reshape(1, 1, 4, 4)}
    assert simplify(text, feed) == ["MaxPool"]


def test_concat_of_integers(simplify):
    text = """g (int8[N] q, int8[M] r) => (int8[K] y) <float s = {0.02}, int8 z = {-7}> {
      f = DequantizeLinear(q, s, z) g = DequantizeLinear(r, s, z)
      c = Concat<axis = 0>(f, g) y = QuantizeLinear(c, s, z) }"""
    assert simplify(text, {"q": ALL["int8"], "r": ALL["int8"][:3]}) == ["Concat"]


@pytest.mark.parametrize(
    "text",
    [
        # quantize first: it rounds
        """g (float[N] x) => (float[N] y) <float s = {0.1}, int8 z = {1}> {
          q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""",
        # another scale, zero point, type
        """g (int8[N] q) => (int8[N] y) <float s = {0.1}, float s2 = {0.2}, int8 z = {1}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s2, z) }""",
        """g (int8[N] q) => (int8[N] y) <float s = {0.1}, int8 z = {1}, int8 z2 = {2}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z2) }""",
        """g (int8[N] q) => (uint8[N] y) <float s = {0.1}, int8 z = {1}, uint8 z2 = {1}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z2) }""",
        # another axis
        """g (int8[2, 2] q) => (int8[2, 2] y) <float[2] s = {0.5, 0.1}> {
          f = DequantizeLinear<axis = 0>(q, s) y = QuantizeLinear<axis = 1, output_dtype = 3>(f, s) }""",
        # axes that move
        """g (int8[2, 2] q) => (int8[2, 2] y) <float[2] s = {0.5, 0.1}, int8[2] z = {0, 0}> {
          f = DequantizeLinear(q, s, z) t = Transpose(f) y = QuantizeLinear(t, s, z) }""",
        # scales that a caller may override, or computes
        """g (int8[N] q, float s = {0.1}) => (int8[N] y) <int8 z = {1}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z) }""",
        # 65,535 steps in float16
        """g (int16[N] q) => (int16[N] y) <float16 s = {11878}, int16 z = {1}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z) }""",
        # a scale near the end of the range
        """g (int8[N] q) => (int8[N] y) <float s = {3e36}, int8 z = {1}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z) }""",
        """g (int8[N] q) => (int8[N] y) <float s = {0.0}, int8 z = {1}> {
          f = DequantizeLinear(q, s, z) y = QuantizeLinear(f, s, z) }""",
        # the floats between are an output
        """g (int8[2, 2] q) => (int8[2, 2] y, float[2, 2] t) <float s = {0.5}, int8 z = {0}> {
          f = DequantizeLinear(q, s, z) t = Transpose(f) y = QuantizeLinear(t, s, z) }""",
        # one of the parts is no integer
        """g (int8[N] q, float[N] x) => (int8[M] y) <float s = {0.5}, int8 z = {0}> {
          f = DequantizeLinear(q, s, z) t = Concat<axis = 0>(f, x) y = QuantizeLinear(t, s, z) }""",
        # arithmetic between
        """g (int8[N] q) => (int8[N] y) <float s = {0.5}, int8 z = {0}> {
          f = DequantizeLinear(q, s, z) t = Neg(f) y = QuantizeLinear(t, s, z) }""",
    ],
)
def test_pairs_that_stay(simplify, text):
    simplify(text, modified=False)


@pytest.mark.parametrize(
    ("bound", "dtype", "zero"),
    [
        ("Relu(x)", "uint8", 0),
        ("Relu(x)", "int8", -128),
        ("Relu(x)", "int16", -32768),
        ("Clip(x, lo)", "uint8", 0),
        ("Clip(x, lo, hi)", "uint8", 0),
        ("Clip(x, , hi)", "int8", -128),
    ],
)
def test_bound_where_quantization_saturates(simplify, bound, dtype, zero):
    text = f"""g (float[N] x) => ({dtype}[N] y)
    <float s = {{0.023529412}}, {dtype} z = {{{zero}}}, float lo = {{0}}, float hi = {{6}}> {{
      r = {bound} y = QuantizeLinear(r, s, z) }}"""
    assert simplify(text, {"x": FLOATS}) == ["QuantizeLinear"]


def test_bound_of_every_channel(simplify):
    text = """g (float[N, 2] x) => (uint8[N, 2] y) <float[2] s = {0.1, 0.01}, uint8[2] z = {0, 0}> {
      r = Relu(x) y = QuantizeLinear(r, s, z) }"""
    assert simplify(text, {"x": FLOATS[:4000].reshape(-1, 2)}) == ["QuantizeLinear"]


@pytest.mark.parametrize(
    "text",
    [
        # below zero there are integers left
        """g (float[N] x) => (uint8[N] y) <float s = {0.1}, uint8 z = {1}> {
          r = Relu(x) y = QuantizeLinear(r, s, z) }""",
        """g (float[N] x) => (int8[N] y) <float s = {0.1}, int8 z = {0}> {
          r = Relu(x) y = QuantizeLinear(r, s, z) }""",
        """g (float[N] x) => (int8[N] y) <float s = {0.1}> {
          r = Relu(x) y = QuantizeLinear<output_dtype = 3>(r, s) }""",
        """g (float[N, 2] x) => (uint8[N, 2] y) <float[2] s = {0.1, 0.01}, uint8[2] z = {0, 3}> {
          r = Relu(x) y = QuantizeLinear(r, s, z) }""",
        # the upper bound cuts
        """g (float[N] x) => (uint8[N] y) <float s = {0.1}, uint8 z = {0}, float lo = {0}, float hi = {6}> {
          r = Clip(x, lo, hi) y = QuantizeLinear(r, s, z) }""",
        # somebody else reads it
        """g (float[N] x) => (uint8[N] y, float[N] r) <float s = {0.1}, uint8 z = {0}> {
          r = Relu(x) y = QuantizeLinear(r, s, z) }""",
        # not constant
        """g (float[N] x, uint8 z) => (uint8[N] y) <float s = {0.1}> {
          r = Relu(x) y = QuantizeLinear(r, s, z) }""",
        """g (float[N] x, float hi) => (uint8[N] y) <float s = {0.1}, uint8 z = {0}, float lo = {0}> {
          r = Clip(x, lo, hi) y = QuantizeLinear(r, s, z) }""",
        """g (float[N] x) => (uint8[N] y) <float s = {0.1}, uint8 z = {0}, float lo = {99}, float hi = {-1}> {
          r = Clip(x, lo, hi) y = QuantizeLinear(r, s, z) }""",
    ],
)
def test_bounds_that_stay(simplify, text):
    simplify(text, modified=False)


MOVED = """g (int8[1, 4, 6, 6] q) => (int8[a] y) <float s = {0.5}, int8 z = {3}, int64[1] t = {-1}> {
  f = DequantizeLinear(q, s, z) p = MaxPool<kernel_shape = [2, 2]>(f) r = Reshape(p, t)
  y = QuantizeLinear(r, s, z) }"""


QUANTIZED = ["DequantizeLinear", "MaxPool", "Reshape", "QuantizeLinear"]
BETWEEN_INTEGERS = """g (int8[1, 2, 6, 6] x) => (int8[1, 3, 3, 3] y)
  <float s = {0.5}, int8 z = {3}, int8[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6},
   int8[3, 3, 1, 1] v = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
  q = QLinearConv(x, s, z, w, s, z, s, z)
  f = DequantizeLinear(q, s, z) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)
  r = QuantizeLinear(p, s, z)
  y = QLinearConv(r, s, z, v, s, z, s, z) }"""
BETWEEN_STEPS = """g (float[1, 2, 6, 6] x) => (float[1, 2, 3, 3] y) <float s = {0.5}, int8 z = {3}> {
  q = QuantizeLinear(x, s, z)
  f = DequantizeLinear(q, s, z) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)
  r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }"""


@pytest.mark.parametrize(
    ("text", "keep_format", "left"),
    [
        (MOVED, False, ["MaxPool", "Reshape"]),
        (MOVED, True, QUANTIZED),
        (BETWEEN_STEPS, False, ["QuantizeLinear", "MaxPool", "DequantizeLinear"]),
        (
            BETWEEN_STEPS,
            True,
            ["QuantizeLinear", "DequantizeLinear", "MaxPool", "QuantizeLinear", "DequantizeLinear"],
        ),
        (BETWEEN_INTEGERS, False, ["QLinearConv", "MaxPool", "QLinearConv"]),
        (BETWEEN_INTEGERS, True, ["QLinearConv", "MaxPool", "QLinearConv"]),
    ],
)
def test_the_format_that_onnxruntime_looks_for(parse, ops, text, keep_format, left):
    model = parse(HEAD + text)
    SimplifyQdq(keep_format=keep_format)(model)
    assert ops(model) == left


def test_optimize_keeps_the_format(parse, ops):
    import graphopt

    assert ops(graphopt.optimize(parse(HEAD + MOVED))) == QUANTIZED


def test_a_pair_without_anything_between_goes_in_any_format(parse, ops):
    text = """g (float[N] x) => (float[N] y) <float s = {0.5}, int8 z = {3}> {
      q = QuantizeLinear(x, s, z) f = DequantizeLinear(q, s, z) r = QuantizeLinear(f, s, z)
      y = DequantizeLinear(r, s, z) }"""
    model = parse(HEAD + text)
    SimplifyQdq(keep_format=True)(model)
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear"]
