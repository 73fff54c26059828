from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.fusion.linear import per_channel


@pytest.mark.parametrize(
    ("shape", "rank", "axis"),
    [
        ((), 4, 1),
        ((1,), 4, 1),
        ((3, 1, 1), 4, 1),
        ((1, 3, 1, 1), 4, 1),
        ((1, 1, 1, 1), 4, 1),
        ((3,), 2, 1),
        ((1, 3), 2, 1),
        ((3,), 3, -1),
        ((1, 1, 3), 3, -1),
        ((3,), None, -1),
        ((), None, -1),
    ],
)
def test_per_channel_is_what_broadcasting_does(shape, rank, axis):
    constant = np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    vector = per_channel(constant, rank, axis, 3)
    data = np.ones([2] * (rank or 3))
    data = np.repeat(data[..., :1], 3, -1) if axis == -1 else np.repeat(data[:, :1], 3, 1)
    product = data * constant
    assert product.shape == data.shape
    expected = np.moveaxis(product, axis, -1).reshape(-1, 3)
    assert vector.dtype == np.float64
    np.testing.assert_array_equal(expected, np.broadcast_to(vector, expected.shape))


@pytest.mark.parametrize(
    ("shape", "rank", "axis"),
    [
        ((3,), 4, 1),  # along the last axis
        ((2, 1, 1, 1), 4, 1),  # by sample
        ((1, 3, 2, 1), 4, 1),  # by position
        ((1, 1, 3, 1, 1), 4, 1),  # a longer shape grows the result
        ((1, 1, 1), 2, 1),
        ((2,), 2, 1),  # neither 1 nor the number of channels
        ((3, 1), 2, 1),
        ((1, 3), None, -1),  # the output may have one axis
        ((3,), None, 1),
    ],
)
def test_per_channel_refuses_everything_else(shape, rank, axis):
    assert per_channel(np.ones(shape), rank, axis, 3) is None


def test_large_external_weight_stays_in_its_file(parse, bind, fuse, run, assert_same, tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.passes.fusion.linear._LAZY_ABOVE", 100)
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4, 5, 5] x, float[4, 4, 3, 3] w, float[4, 1, 1] k)
        => (float[1, 4, 3, 3] y) { c = Conv (x, w) y = Mul (c, k) }"""
    before = bind(parse(text), w=None, k=None)
    ir.save(before, tmp_path / "m.onnx", external_data="m.data")
    after = ir.load(tmp_path / "m.onnx")
    fuse(after, "conv-mul")
    weight = after.graph.initializers["w"].const_value
    assert isinstance(weight, ir.LazyTensor)
    assert weight.name == "w"
    assert_same(before, after, {"x": np.ones((1, 4, 5, 5), np.float32)})


@pytest.mark.parametrize(
    ("weight", "body", "x"),
    [
        ((4, 4, 3, 3), "c = Conv (x, w) y = Mul (c, k)", (1, 4, 5, 5)),
        ((4, 2, 3, 3), "c = Conv <group = 2> (x, w) y = Mul (c, k)", (1, 4, 5, 5)),
        ((4, 4, 3, 3), "c = ConvTranspose (x, w) y = Mul (c, k)", (1, 4, 5, 5)),
        ((30, 4), "c = MatMul (x, w) y = Mul (c, k)", (3, 30)),
        ((4, 30), "c = Gemm <transB = 1> (x, w) y = Mul (c, k)", (3, 30)),
    ],
)
def test_large_external_weight_block_by_block(
    parse, bind, fuse, ops, assert_same, tmp_path, monkeypatch, weight, body, x
):
    monkeypatch.setattr("graphopt.passes.fusion.linear._LAZY_ABOVE", 10)
    monkeypatch.setattr("graphopt.passes.fusion.linear._BLOCK", 100)
    image = len(x) == 4
    dims = ["?"] * len(x) if image else ["3", "4"]
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{", ".join(map(str, x))}] x, float[{", ".join(map(str, weight))}] w,
           float[4{", 1, 1" if image else ""}] k) => (float[{", ".join(dims)}] y) {{ {body} }}"""
    before = bind(parse(text), w=None, k=None)
    ir.save(before, tmp_path / "m.onnx", external_data="m.data")
    after = ir.load(tmp_path / "m.onnx")
    fuse(after)
    assert len(ops(after)) == 1
    assert isinstance(after.graph.initializers["w"].const_value, ir.LazyTensor)
    assert_same(before, after, {"x": np.random.default_rng(0).standard_normal(x, np.float32)})
