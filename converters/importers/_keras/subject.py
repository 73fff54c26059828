"""What is exported: a function on tensors, and the names of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Port", "Subject", "unique"]


@dataclass(frozen=True)
class Port:
    """An input: its name for the user, its shape (None for a free axis), its dtype by TensorFlow's name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Subject:
    """A function that is ready to be traced.

    Attributes:
        call: From tensors in the order of ``inputs`` to the outputs, flat.
        inputs: Its inputs.
        outputs: Names of its outputs.
        versions: Of the packages that loaded it.
        half: Whether it computes in 16 bits somewhere.
        notes: What the user should know.
    """

    call: Callable[..., Sequence[Any]]
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    versions: Mapping[str, str]
    half: bool = False
    notes: list[str] = field(default_factory=list)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The framework on arrays by input name; arrays by output name."""
        import tensorflow as tf

        tensors = [tf.constant(feed[port.name], dtype=port.dtype) for port in self.inputs]
        results = self.call(*tensors)
        return {name: np.asarray(r) for name, r in zip(self.outputs, results, strict=True)}


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind one that comes again."""
    found: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in found:
            candidate, number = f"{name}_{number}", number + 1
        found.append(candidate)
    return tuple(found)
