"""Models of IR versions before 4, where every initializer had to be a graph input as well."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

__all__ = ["raise_ir_version"]

#: Since then an initializer may be a constant; one that is also an input is a default that callers override.
_CONSTANT_INITIALIZERS: Final = 4


def raise_ir_version(model: ir.Model) -> bool:
    """Raise a model from before IR version 4 to it, with initializers that are constants; whether it was one.

    The initializers leave the graph inputs. No caller can tell: onnxruntime does not show them as inputs of
    such a model, and refuses to be fed with them. Staying inputs, they would become overridable by the new
    version, and nothing could be folded; staying with the old version, no pass could add an initializer.
    """
    if model.ir_version >= _CONSTANT_INITIALIZERS:
        return False
    inputs = model.graph.inputs
    for index in reversed(range(len(inputs))):
        if inputs[index].is_initializer():
            inputs.pop(index)
    model.ir_version = _CONSTANT_INITIALIZERS
    return True
