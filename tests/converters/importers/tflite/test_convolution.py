"""Convolutions and pooling against LiteRT: both paddings, strides, dilation, quantized by channel."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_models import Graph, Op, Tensor, constant

from graphopt.errors import InputError, UnsupportedError

SAME, VALID = 0, 1
RELU, RELU_N1, RELU6, TANH, SIGN_BIT = 1, 2, 3, 4, 5


def conv(draw, size=(7, 9), kernel=(3, 3), padding=SAME, stride=(1, 1), dilation=(1, 1), act=0):
    tensors = [
        Tensor(draw(2, *size, 3)),
        constant(draw(4, *kernel, 3)),
        constant(draw(4)),
        Tensor(np.zeros((2, 1, 1, 4), np.float32)),
    ]
    options = {
        "padding": padding,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": act,
    }
    return Graph(tensors, [Op("CONV_2D", [0, 1, 2], [3], "Conv2D", options)])


@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize(
    "case",
    [
        {"size": (7, 8), "stride": (2, 2)},
        {"size": (8, 8), "kernel": (2, 5), "stride": (2, 3)},
        {"size": (9, 9), "dilation": (2, 3)},
        {"kernel": (1, 1), "stride": (2, 2)},
    ],
)
def test_conv(padding, case, agrees, draw):
    made = agrees(conv(draw, padding=padding, **case), ["Transpose", "Conv", "Transpose"], atol=1e-5)
    weight = next(v for v in made.model.graph.initializers.values() if len(v.shape) == 4)
    assert tuple(weight.shape)[:2] == (4, 3)


@pytest.mark.parametrize(("act", "op"), [(RELU, "Relu"), (RELU_N1, "Clip"), (RELU6, "Clip")])
def test_the_activation_function_inside(act, op, agrees, draw):
    agrees(conv(draw, act=act), ["Transpose", "Conv", op, "Transpose"], atol=1e-5)


@pytest.mark.parametrize("act", [TANH, SIGN_BIT, 99])
def test_an_activation_function_that_litert_leaves_out_is_refused(act, imported, draw):
    with pytest.raises(UnsupportedError, match=rf"operator 0 \(CONV_2D\) at 't3': activation function {act}"):
        imported(conv(draw, act=act))


def test_a_stride_of_nothing_is_refused(imported, draw):
    with pytest.raises(InputError, match=r"operator 0 \(CONV_2D\) at 't3': not as this operator must be"):
        imported(conv(draw, stride=(0, 1)))


def test_groups(agrees, draw):
    tensors = [
        Tensor(draw(1, 5, 5, 4)),
        constant(draw(6, 3, 3, 2)),
        constant(draw(6)),
        Tensor(np.zeros((1, 5, 5, 6), np.float32)),
    ]
    options = {"strideH": 1, "strideW": 1}
    agrees(Graph(tensors, [Op("CONV_2D", [0, 1, 2], [3], "Conv2D", options)]), atol=1e-5)


@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(padding, stride, dilation, multiplier, agrees, draw):
    tensors = [
        Tensor(draw(2, 8, 7, 3)),
        constant(draw(1, 3, 3, 3 * multiplier)),
        constant(draw(3 * multiplier)),
        Tensor(np.zeros((2, 1, 1, 3 * multiplier), np.float32)),
    ]
    options = {
        "padding": padding,
        "strideH": stride,
        "strideW": stride,
        "depthMultiplier": multiplier,
        "dilationHFactor": dilation,
        "dilationWFactor": dilation,
    }
    op = Op("DEPTHWISE_CONV_2D", [0, 1, 2], [3], "DepthwiseConv2D", options)
    agrees(Graph(tensors, [op]), atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "kernel", "stride", "size", "out"),
    [
        (SAME, 3, 2, 4, 8),
        (SAME, 3, 2, 4, 7),
        (SAME, 2, 2, 4, 8),
        (SAME, 4, 2, 5, 10),
        (SAME, 1, 2, 4, 8),
        (VALID, 3, 2, 4, 9),
        (VALID, 2, 3, 4, 11),
        (VALID, 2, 3, 4, 12),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_transposed(padding, kernel, stride, size, out, bias, agrees, draw):
    tensors = [
        constant([2, out, out, 5], np.int32),
        constant(draw(5, kernel, kernel, 3)),
        Tensor(draw(2, size, size, 3)),
        constant(draw(5)),
        Tensor(np.zeros((2, out, out, 5), np.float32)),
    ]
    options = {"padding": padding, "strideH": stride, "strideW": stride}
    inputs = [0, 1, 2, 3] if bias else [0, 1, 2]
    op = Op("TRANSPOSE_CONV", inputs, [4], "TransposeConv", options, version=3)
    agrees(Graph(tensors, [op]), ["Transpose", "ConvTranspose", "Transpose"], atol=1e-5)


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_conv_3d(padding, agrees, draw):
    tensors = [
        Tensor(draw(1, 5, 6, 7, 2)),
        constant(draw(2, 3, 3, 2, 4)),
        constant(draw(4)),
        Tensor(np.zeros((1, 1, 1, 1, 4), np.float32)),
    ]
    options = {"padding": padding, "strideD": 2, "strideH": 1, "strideW": 2}
    agrees(Graph(tensors, [Op("CONV_3D", [0, 1, 2], [3], "Conv3D", options)]), atol=1e-5)


def test_conv_3d_transposed(agrees, draw):
    tensors = [
        constant([1, 6, 8, 4, 3], np.int32),
        constant(draw(3, 2, 3, 3, 2)),
        Tensor(draw(1, 3, 4, 2, 2)),
        Tensor(np.zeros((1, 6, 8, 4, 3), np.float32)),
    ]
    options = {"padding": SAME, "strideD": 2, "strideH": 2, "strideW": 2}
    agrees(Graph(tensors, [Op("CONV_3D_TRANSPOSE", [0, 1, 2], [3], "Conv3D", options)]), atol=1e-5)


def integers(*shape: int, seed: int = 0, dtype: type = np.int8) -> np.ndarray:
    bounds = np.iinfo(dtype)
    return np.random.default_rng([seed, *shape]).integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def int8_conv(op: str, kind: str, weight: np.ndarray, axis: int, options: dict) -> Graph:
    channels = weight.shape[axis]
    scales = np.linspace(0.01, 0.02, channels)
    bias = np.arange(channels, dtype=np.int32) * 100 - 200
    tensors = [
        Tensor(integers(2, 6, 6, 3), scale=[0.05], zero=[4]),
        constant(weight, scale=scales, axis=axis),
        constant(bias, scale=scales * 0.05, axis=0),
        Tensor(np.zeros((2, 1, 1, channels), np.int8), scale=[0.3], zero=[-3]),
    ]
    return Graph(tensors, [Op(op, [0, 1, 2], [3], kind, options, version=3)])


def test_int8_by_channel_stays_in_qdq_form(agrees):
    options = {"strideH": 2, "strideW": 2, "fusedActivationFunction": RELU}
    made = agrees(int8_conv("CONV_2D", "Conv2D", integers(4, 3, 3, 3, seed=1), 0, options))
    assert made.ops == [
        *["Transpose", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear"],
        *["Conv", "Relu", "QuantizeLinear", "Transpose"],
    ]
    (conv_node,) = [node for node in made.model.graph if node.op_type == "Conv"]
    weight = conv_node.inputs[1].producer()
    assert weight.inputs[0].const_value.dtype.name == "INT8"
    assert weight.attributes.get_int("axis") == 0


def test_int8_depthwise_by_channel(agrees):
    options = {"strideH": 1, "strideW": 1, "depthMultiplier": 1}
    agrees(int8_conv("DEPTHWISE_CONV_2D", "DepthwiseConv2D", integers(1, 3, 3, 3, seed=2), 3, options))


def pool(op: str, array: np.ndarray, padding: int, kernel=(3, 2), stride=(2, 2), **more) -> Graph:
    options = {
        "padding": padding,
        "filterHeight": kernel[0],
        "filterWidth": kernel[1],
        "strideH": stride[0],
        "strideW": stride[1],
    }
    tensors = [Tensor(array, **more), Tensor(np.zeros((2, 1, 1, 3), array.dtype), **more)]
    return Graph(tensors, [Op(op, [0], [1], "Pool2D", options, version=1 if op == "L2_POOL_2D" else 2)])


@pytest.mark.parametrize("op", ["MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_pool(op, padding, agrees, draw):
    agrees(pool(op, draw(2, 7, 8, 3), padding))


@pytest.mark.parametrize("op", ["MAX_POOL_2D", "AVERAGE_POOL_2D"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_pool(op, dtype, agrees):
    agrees(pool(op, integers(2, 7, 8, 3, dtype=dtype), SAME, scale=[0.1], zero=[5]))


@pytest.mark.parametrize("sizes", [(7, 8), (8, 7)])
def test_free_height_and_width(sizes, imported, draw):
    """SAME with a stride depends on the size, which the ONNX model leaves to the runtime."""
    graph = conv(draw, size=sizes, stride=(2, 2))
    graph.tensors[0].signature = [-1, -1, -1, 3]
    made = imported(graph)
    assert [str(d) for d in made.model.graph.inputs[0].shape] == ["batch", "t0_axis_1", "t0_axis_2", "3"]
    for shape in ((2, *sizes, 3), (1, 5, 6, 3)):
        for want, got in made.both(draw(*shape)):
            np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_uint8_weights_with_a_zero_point(agrees):
    """As older converters write them."""
    rng = np.random.default_rng(3)
    tensors = [
        Tensor(integers(1, 5, 5, 3, dtype=np.uint8), scale=[0.02], zero=[120]),
        constant(rng.integers(1, 256, (4, 3, 3, 3)).astype(np.uint8), scale=[0.01], zero=[131]),
        constant(np.arange(4, dtype=np.int32) * 1000, scale=[0.0002], zero=[0]),
        Tensor(np.zeros((1, 5, 5, 4), np.uint8), scale=[0.05], zero=[100]),
    ]
    options = {"strideH": 1, "strideW": 1, "fusedActivationFunction": RELU6}
    agrees(Graph(tensors, [Op("CONV_2D", [0, 1, 2], [3], "Conv2D", options)]))


def test_int8_transposed_by_channel(agrees):
    """The channels of the weight are its second axis in ONNX."""
    scales = np.linspace(0.01, 0.03, 4)
    tensors = [
        constant([1, 8, 8, 4], np.int32),
        constant(integers(4, 3, 3, 2, seed=4), scale=scales, axis=0),
        Tensor(integers(1, 4, 4, 2), scale=[0.05], zero=[3]),
        constant(np.arange(4, dtype=np.int32) * 100, scale=scales * 0.05, axis=0),
        Tensor(np.zeros((1, 8, 8, 4), np.int8), scale=[0.2], zero=[-5]),
    ]
    options = {"strideH": 2, "strideW": 2}
    op = Op("TRANSPOSE_CONV", [0, 1, 2, 3], [4], "TransposeConv", options, version=3)
    made = agrees(Graph(tensors, [op]))
    weights = [n for n in made.model.graph if n.op_type == "DequantizeLinear" and n.attributes]
    assert [node.attributes.get_int("axis") for node in weights if node.inputs[0].shape.rank() == 4] == [1]
