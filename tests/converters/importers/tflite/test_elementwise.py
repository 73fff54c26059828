"""Operators on single elements and pairs, against LiteRT, in every element type that it has kernels for."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_models import Graph, Op, Tensor, constant, quantized

from graphopt.errors import UnsupportedError

KINDS = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "LEAKY_RELU": "LeakyRelu",
    "GELU": "Gelu",
    "SOFTMAX": "Softmax",
}


def unary(op: str, array: np.ndarray, dtype: type | None = None, **options) -> Graph:
    tensors = [Tensor(array), Tensor(np.zeros(array.shape, dtype or array.dtype))]
    return Graph(tensors, [Op(op, [0], [1], KINDS.get(op, ""), options)])


def binary(op: str, first: np.ndarray, second: np.ndarray, dtype: type | None = None, **options) -> Graph:
    shape = np.broadcast_shapes(first.shape, second.shape)
    tensors = [Tensor(first), Tensor(second), Tensor(np.zeros(shape, dtype or first.dtype))]
    return Graph(tensors, [Op(op, [0, 1], [2], KINDS.get(op, ""), options)])


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("ABS", "Abs"),
        ("CEIL", "Ceil"),
        ("COS", "Cos"),
        ("ELU", "Elu"),
        ("EXP", "Exp"),
        ("FLOOR", "Floor"),
        ("HARD_SWISH", "HardSwish"),
        ("LOGISTIC", "Sigmoid"),
        ("NEG", "Neg"),
        ("RELU", "Relu"),
        ("RELU6", "Clip"),
        ("RELU_0_TO_1", "Clip"),
        ("RELU_N1_TO_1", "Clip"),
        ("ROUND", "Round"),
        ("SIGN", "Sign"),
        ("SIN", "Sin"),
        ("SQUARE", "Mul"),
        ("TANH", "Tanh"),
    ],
)
def test_unary(op, expected, agrees, draw):
    edges = np.float32([0, -0.5, 0.5, 1.5, 2.5, -3, 3, 6, 7, -1])
    agrees(unary(op, np.concatenate([draw(30) * 4, edges])), [expected])


@pytest.mark.parametrize(("op", "expected"), [("LOG", ["Log"]), ("SQRT", ["Sqrt"]), ("RSQRT", None)])
def test_unary_of_positive_numbers(op, expected, agrees, draw):
    agrees(unary(op, np.abs(draw(3, 10)) + 0.01), expected)


def test_leaky_relu(agrees, draw):
    agrees(unary("LEAKY_RELU", draw(40), alpha=0.3), ["LeakyRelu"])


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate, agrees, draw):
    agrees(unary("GELU", draw(40) * 3, approximate=approximate), ["Gelu"])


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_softmax(beta, agrees, draw):
    agrees(unary("SOFTMAX", draw(3, 7), beta=beta), ["Softmax"] if beta == 1 else ["Mul", "Softmax"])


def test_log_softmax(agrees, draw):
    agrees(unary("LOG_SOFTMAX", draw(3, 7)), ["LogSoftmax"])


def test_prelu(agrees, draw):
    tensors = [Tensor(draw(2, 3, 3, 4)), constant(draw(1, 1, 4)), Tensor(np.zeros((2, 3, 3, 4), np.float32))]
    agrees(Graph(tensors, [Op("PRELU", [0, 1], [2])]), ["PRelu"])


@pytest.mark.parametrize(
    "op", ["ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD"]
)
@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((1, 3, 1), (2, 1, 4))])
def test_binary(op, shapes, agrees, draw):
    first, second = draw(*shapes[0]) * 3, draw(*shapes[1], seed=1)
    agrees(binary(op, first, second), rtol=1e-4 if op == "FLOOR_MOD" else 1e-5)


@pytest.mark.parametrize("op", ["ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "FLOOR_MOD", "DIV", "FLOOR_DIV"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_binary_of_integers(op, dtype, agrees):
    dtype = np.int32 if op in ("DIV", "FLOOR_DIV") else dtype  # LiteRT has no kernel for the other
    first = np.array([7, -7, 7, -7, 6, -6, 0], dtype)
    agrees(binary(op, first, np.array([2, 2, -2, -2, 3, -3, 5], dtype)))


def test_power(agrees, draw):
    agrees(binary("POW", np.abs(draw(20)) + 0.1, draw(20, seed=1)), ["Pow"])


def test_the_activation_function_of_an_addition(agrees, draw):
    agrees(binary("ADD", draw(9), draw(9, seed=1), fusedActivationFunction=1), ["Add", "Relu"])


@pytest.mark.parametrize("op", ["EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
def test_comparison(op, dtype, agrees):
    agrees(binary(op, np.array([1, 2, 3, -1], dtype), np.array([2, 2, 2, -1], dtype), np.bool_))


@pytest.mark.parametrize("op", ["LOGICAL_AND", "LOGICAL_OR"])
def test_logical(op, agrees):
    agrees(binary(op, np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)))


def test_logical_not(agrees):
    agrees(unary("LOGICAL_NOT", np.array([True, False])), ["Not"])


def test_bits(agrees):
    first, second = np.array([5, -7, 12], np.int32), np.array([3, 8, -1], np.int32)
    agrees(binary("BITWISE_XOR", first, second), ["BitwiseXor"])
    agrees(binary("RIGHT_SHIFT", np.array([250, 7], np.uint8), np.array([3, 1], np.uint8)), ["BitShift"])


def test_a_shift_of_signed_integers_is_refused(imported):
    with pytest.raises(UnsupportedError, match=r"RIGHT_SHIFT.*signed"):
        imported(binary("RIGHT_SHIFT", np.array([5], np.int32), np.array([3], np.int32)))


def test_sum_of_several(agrees, draw):
    tensors = [Tensor(draw(2, 3, seed=i)) for i in range(4)]
    agrees(Graph(tensors, [Op("ADD_N", [0, 1, 2], [3])]), ["Add", "Add"])


@pytest.mark.parametrize("op", ["SELECT", "SELECT_V2"])
def test_select(op, agrees, draw):
    chosen = Tensor(np.array([[True, False, True], [False, False, True]]))
    tensors = [chosen, Tensor(draw(2, 3)), Tensor(draw(2, 3, seed=1)), Tensor(draw(2, 3))]
    agrees(Graph(tensors, [Op(op, [0, 1, 2], [3])]), ["Where"])


def test_select_of_rows(agrees, draw):
    tensors = [
        Tensor(np.array([True, False])),
        Tensor(draw(2, 2)),
        Tensor(draw(2, 2, seed=1)),
        Tensor(draw(2, 2)),
    ]
    agrees(Graph(tensors, [Op("SELECT", [0, 1, 2], [3])]), ["Unsqueeze", "Where"])


def test_zeros_like(agrees, draw):
    agrees(unary("ZEROS_LIKE", draw(2, 3)))


@pytest.mark.parametrize("target", [np.int32, np.int64, np.bool_, np.uint8, np.float16])
def test_cast(target, agrees):
    agrees(unary("CAST", np.float32([0, 1.7, 2.2, 100]), target), ["Cast"])


def test_cast_of_integers(agrees):
    agrees(unary("CAST", np.array([0, -3, 5], np.int32), np.float32), ["Cast"])


INTEGERS = np.arange(-128, 128, dtype=np.int8)


@pytest.mark.parametrize(
    ("op", "scale", "zero"),
    [
        ("LOGISTIC", 1 / 256, -128),
        ("TANH", 1 / 128, 0),
        ("RELU", 0.05, -128),
        ("RELU6", 6 / 255, -128),
        ("ELU", 0.05, 0),
        ("HARD_SWISH", 0.04, -100),
        ("ABS", 0.05, 0),
        ("LEAKY_RELU", 0.05, 0),
    ],
)
def test_int8_unary(op, scale, zero, agrees):
    options = {"alpha": 0.2} if op == "LEAKY_RELU" else {}
    tensors = [quantized(INTEGERS, 0.05, 3), quantized(INTEGERS, scale, zero)]
    made = agrees(Graph(tensors, [Op(op, [0], [1], KINDS.get(op, ""), options)]))
    assert (made.ops[0], made.ops[-1]) == ("DequantizeLinear", "QuantizeLinear")


def test_int8_softmax(agrees):
    logits = np.random.default_rng(0).integers(-128, 128, (5, 10)).astype(np.int8)
    tensors = [quantized(logits, 0.1, 7), quantized(logits, 1 / 256, -128)]
    agrees(Graph(tensors, [Op("SOFTMAX", [0], [1], "Softmax", {"beta": 1.0})]))


@pytest.mark.parametrize("op", ["ADD", "SUB", "MUL"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_binary(op, dtype, agrees):
    shift = 0 if dtype == np.int8 else 128
    first, second = INTEGERS.astype(np.int16) + shift, INTEGERS[::-1].astype(np.int16) * 3 % 256 - 128 + shift
    tensors = [
        quantized(first.astype(dtype), 0.05, 3),
        quantized(second.astype(dtype), 0.03, 9),
        quantized(first.astype(dtype), 0.2 if op == "MUL" else 0.08, 5),
    ]
    agrees(Graph(tensors, [Op(op, [0, 1], [2], KINDS[op])]))


def test_int8_prelu(agrees):
    array = INTEGERS.reshape(1, 4, 16, 4)
    slope = constant(np.array([[[20, -30, 100, 5]]], np.int8), scale=[0.01], zero=[0])
    tensors = [quantized(array, 0.05, 3), slope, quantized(array, 0.05, 3)]
    agrees(Graph(tensors, [Op("PRELU", [0, 1], [2])]))


def test_int8_comparison(agrees):
    tensors = [quantized(INTEGERS, 0.05, 3), quantized(INTEGERS[::-1].copy(), 0.05, 3), Tensor(INTEGERS != 0)]
    agrees(Graph(tensors, [Op("LESS", [0, 1], [2])]))
