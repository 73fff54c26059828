"""Activation functions as operators of their own."""

from __future__ import annotations

import numpy as np

from graphopt.converters.importers._tflite.context import Context
from graphopt.converters.importers._tflite.model import Operator
from graphopt.converters.importers._tflite.operators._common import clip, finish, output_name
from graphopt.converters.importers._tflite.registry import converter

_PLAIN = {"ELU": "Elu", "HARD_SWISH": "HardSwish", "LOGISTIC": "Sigmoid", "RELU": "Relu", "TANH": "Tanh"}
_BOUNDS = {"RELU6": (0.0, 6.0), "RELU_0_TO_1": (0.0, 1.0), "RELU_N1_TO_1": (-1.0, 1.0)}


@converter(*_PLAIN)
def _plain(ctx: Context, op: Operator) -> None:
    finish(ctx, op, ctx.build.op(_PLAIN[op.name], ctx.real(op.inputs[0]), name=output_name(ctx, op)))


@converter(*_BOUNDS)
def _bounded(ctx: Context, op: Operator) -> None:
    low, high = _BOUNDS[op.name]
    finish(ctx, op, clip(ctx, ctx.real(op.inputs[0]), low, high, output_name(ctx, op)))


@converter("LEAKY_RELU")
def _leaky_relu(ctx: Context, op: Operator) -> None:
    alpha = float(op.options.get("alpha", 0.0))
    made = ctx.build.op("LeakyRelu", ctx.real(op.inputs[0]), name=output_name(ctx, op), alpha=alpha)
    finish(ctx, op, made)


@converter("PRELU")
def _prelu(ctx: Context, op: Operator) -> None:
    data, slope = ctx.real(op.inputs[0]), ctx.real(op.inputs[1])
    finish(ctx, op, ctx.build.op("PRelu", data, slope, name=output_name(ctx, op)))


@converter("GELU")
def _gelu(ctx: Context, op: Operator) -> None:
    approximate = "tanh" if op.options.get("approximate", False) else "none"
    made = ctx.build.op("Gelu", ctx.real(op.inputs[0]), name=output_name(ctx, op), approximate=approximate)
    finish(ctx, op, made)


@converter("SOFTMAX")
def _softmax(ctx: Context, op: Operator) -> None:
    """Over the last axis, of ``beta * x``."""
    data, beta = ctx.real(op.inputs[0]), float(op.options.get("beta", 0.0))
    if beta != 1:
        data = ctx.build.op("Mul", data, ctx.build.constant(np.float32(beta)))
    finish(ctx, op, ctx.build.op("Softmax", data, name=output_name(ctx, op), axis=-1))


@converter("LOG_SOFTMAX")
def _log_softmax(ctx: Context, op: Operator) -> None:
    finish(ctx, op, ctx.build.op("LogSoftmax", ctx.real(op.inputs[0]), name=output_name(ctx, op), axis=-1))
