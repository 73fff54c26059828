"""The LiteRT interpreter on the inputs that the ONNX model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

__all__ = ["LiteRT", "Named", "Variable"]


class Variable(NamedTuple):
    """A variable tensor: its number, and the names of what it holds before and behind a run."""

    tensor: int
    given: str
    made: str


class Named(NamedTuple):
    """A signature: its key, and its names in the order of the subgraph's inputs and outputs."""

    key: str
    inputs: Sequence[str]
    outputs: Sequence[str]


class LiteRT:
    """Runs one subgraph of a file.

    Args:
        content: The flatbuffer.
        inputs: Names of the inputs, in the subgraph's order.
        outputs: Names of the outputs.
        delegate: Whether XNNPACK may take operators over; else the plain kernels run.
        signature: Of a subgraph that is not the first: its signature, by which alone LiteRT runs it.
        variables: Variable tensors that are set before a run and read behind it.
        keeps_state: Whether variables go on from one call to the next; else they start anew.
    """

    def __init__(
        self,
        content: bytes,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        delegate: bool,
        signature: Named | None = None,
        keeps_state: bool = False,
        variables: Sequence[Variable] = (),
    ) -> None:
        self._signature, self._keeps_state, self._variables = signature, keeps_state, list(variables)
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
        """Outputs by name."""
        if self._signature is not None:
            return self._run_signature(self._signature, feed)
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
        if not self._keeps_state:
            interpreter.reset_all_variables()
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        for variable in self._variables:
            interpreter.set_tensor(variable.tensor, feed[variable.given])
        interpreter.invoke()
        found = interpreter.get_output_details()
        made = {
            name: interpreter.get_tensor(detail["index"]).copy()
            for name, detail in zip(self._outputs, found, strict=True)
        }
        return made | {v.made: interpreter.get_tensor(v.tensor).copy() for v in self._variables}

    def _run_signature(self, signature: Named, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        runner = self._interpreter.get_signature_runner(signature.key)
        given = zip(signature.inputs, self._inputs, strict=True)
        made = runner(**{theirs: feed[ours] for theirs, ours in given})
        return {ours: made[theirs] for theirs, ours in zip(signature.outputs, self._outputs, strict=True)}
