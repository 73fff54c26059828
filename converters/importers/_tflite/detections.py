"""LiteRT on detectors: it leaves the rest of its outputs unwritten where it finds fewer boxes than fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.conversion import Runner
from graphopt.converters.importers._tflite.convert import Converted

__all__ = ["Filled", "filled"]


@dataclass(frozen=True)
class Filled:
    """Runs a detector; behind the boxes that were found there are zeros.

    Attributes:
        run: LiteRT.
        detectors: Of each detector the names of its boxes, classes, scores, and of their number.
    """

    run: Runner
    detectors: Sequence[Sequence[str]]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        made = dict(self.run(feed))
        for *filled, number in self.detectors:
            count = int(made[number].reshape(-1)[0])
            for name in filled:
                made[name] = made[name].copy()
                made[name][:, count:] = 0
        return made


def filled(run: Runner, converted: Converted) -> Runner:
    """``run`` with zeros where its detectors write nothing; itself where there are none."""
    names = dict(zip(converted.subgraph.outputs, converted.outputs, strict=False))
    detectors = [
        [names[index] for index in op.outputs]
        for op in converted.subgraph.operators
        if op.custom == "TFLite_Detection_PostProcess" and all(index in names for index in op.outputs)
    ]
    return Filled(run, detectors) if detectors else run
