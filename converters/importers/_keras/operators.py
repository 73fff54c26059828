"""TensorFlow operators that tf2onnx does not know, or gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["HANDLERS"]


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """``erfc(-x) = 1 + erf(x)``; Keras' exact GELU is ``0.5 x erfc(-x * sqrt(0.5))``."""
    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    one = context.make_const(f"{name}_one", np.ones((), np.float16 if dtype == 10 else np.float32))
    argument = _negated(context, node, name, dtype)
    erf = context.make_node("Erf", [argument], name=f"{name}_erf", dtypes=[dtype])
    context.remove_node(name)
    context.make_node(
        "Add", [one.output[0], erf.output[0]], name=name, outputs=node.output, dtypes=[dtype], shapes=[shape]
    )


def _negated(context: Any, node: Any, name: str, dtype: int) -> str:
    """Minus the argument, without a Neg where it is ``-x`` or ``-x * scale`` itself."""
    given = node.inputs[0]
    if given.type == "Neg":
        return str(given.input[0])
    if given.type == "Mul" and given.inputs[0].type == "Neg":
        inputs = [given.inputs[0].input[0], given.input[1]]
        return str(context.make_node("Mul", inputs, name=f"{name}_scaled", dtypes=[dtype]).output[0])
    return str(context.make_node("Neg", [node.input[0]], name=f"{name}_negated", dtypes=[dtype]).output[0])


HANDLERS: dict[str, tuple[Any, list[Any]]] = {"Erfc": (_erfc, [])}
