"""TensorFlow operators that tf2onnx does not know, or gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["HANDLERS"]


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """``erfc(x) = 1 - erf(x)``; Keras' exact GELU is made of it."""
    dtype = context.get_dtype(node.output[0])
    one = context.make_const(f"{name}_one", np.ones((), np.float16 if dtype == 10 else np.float32))
    erf = context.make_node("Erf", [node.input[0]], name=f"{name}_erf", dtypes=[dtype])
    shape = context.get_shape(node.output[0])
    context.remove_node(name)
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], name=name, outputs=node.output, dtypes=[dtype], shapes=[shape]
    )


HANDLERS: dict[str, tuple[Any, list[Any]]] = {"Erfc": (_erfc, [])}
