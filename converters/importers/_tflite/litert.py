"""The LiteRT interpreter on the inputs that the ONNX model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

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
        self._content, self._delegate = content, delegate
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._sizes: list[tuple[int, ...]] | None = None
        self._made: Interpreter | None = None

    @property
    def _interpreter(self) -> Interpreter:
        """Made when it is first needed: an import that is not verified needs none."""
        if self._made is None:
            kind = (
                OpResolverType.BUILTIN if self._delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            )
            self._made = Interpreter(model_content=self._content, experimental_op_resolver_type=kind)
        return self._made

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
