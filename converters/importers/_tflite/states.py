"""That a file's variables are its extra inputs and outputs, shown by running it a few times in a row."""

from __future__ import annotations

import numpy as np

from graphopt.converters.importers._tflite.convert import Converted
from graphopt.converters.importers._tflite.litert import LiteRT
from graphopt.converters.importers._tflite.model import Array, Tensor
from graphopt.errors import UnsupportedError

__all__ = ["check_states"]

_STEPS = 4


def check_states(content: bytes, opened: LiteRT, converted: Converted) -> None:
    """Run the file itself, which keeps its variables, and the opened one, which is handed them.

    Args:
        content: The file as it is.
        opened: The file with its variables opened up, on LiteRT's plain kernels.
        converted: Names and initial values.

    Raises:
        UnsupportedError: They do not make the same outputs in every step.
    """
    initial = [array for name in converted.variables if (array := converted.initial.get(name)) is not None]
    count = len(converted.variables)
    if len(initial) < count:
        return  # computed in the file
    given, made = converted.inputs[:-count], converted.outputs[:-count]
    itself = LiteRT(content, given, made, delegate=False, keeps_state=True)
    state = dict(zip(converted.inputs[-count:], initial, strict=True))
    rng = np.random.default_rng(0)
    for step in range(_STEPS):
        tensors = (converted.subgraph.tensors[index] for index in converted.subgraph.inputs)
        feed = {name: _drawn(tensor, rng) for name, tensor in zip(given, tensors, strict=True)}
        wanted = itself(feed)
        found = opened({**feed, **state})
        for name in made:
            if not np.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5):
                raise UnsupportedError(
                    f"output '{name}' is another one in step {step} when the variables are handed in: inputs "
                    "and outputs cannot express how they are used; --no-verify imports it all the same"
                )
        after = [found[name] for name in converted.outputs[-count:]]
        state = dict(zip(converted.inputs[-count:], after, strict=True))


def _drawn(tensor: Tensor, rng: np.random.Generator) -> Array:
    dtype = np.dtype(tensor.array_dtype)
    if dtype.kind == "f":
        return rng.standard_normal(tensor.shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, tensor.shape).astype(dtype)
    return rng.integers(0, 2, tensor.shape).astype(dtype)
