"""The LiteRT interpreter on the inputs that the ONNX model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from graphopt.errors import InputError

__all__ = ["LiteRT"]


class LiteRT:
    """Runs one subgraph of a file.

    Args:
        content: The flatbuffer.
        inputs: Names of the inputs, in the subgraph's order.
        outputs: Names of the outputs.
        delegate: Whether XNNPACK may take operators over; else the plain kernels run.
    """

    def __init__(
        self, content: bytes, inputs: Sequence[str], outputs: Sequence[str], *, delegate: bool
    ) -> None:
        kind = OpResolverType.BUILTIN if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self._interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kind)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"LiteRT cannot read it: {error}") from error
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._sizes: list[tuple[int, ...]] | None = None

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; variables of the file start anew."""
        interpreter = self._interpreter
        details = interpreter.get_input_details()
        arrays = [feed[name] for name in self._inputs]
        sizes = [array.shape for array in arrays]
        if sizes != self._sizes:
            for detail, array in zip(details, arrays, strict=True):
                if tuple(detail["shape"]) != array.shape:
                    interpreter.resize_tensor_input(detail["index"], array.shape, strict=False)
            interpreter.allocate_tensors()
            self._sizes = sizes
        interpreter.reset_all_variables()
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        found = interpreter.get_output_details()
        return {
            name: interpreter.get_tensor(detail["index"]).copy()
            for name, detail in zip(self._outputs, found, strict=True)
        }
