"""Which of two models is faster under onnxruntime, measured so that a busy machine does not decide."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.runtime import evaluate

__all__ = ["Latency", "compare"]

#: A turn takes about this long at least: short runs are repeated, as the clock and the scheduler are coarse.
_LEAST_SECONDS: Final = 0.005
_MOST_REPEATS: Final = 200


@dataclass(frozen=True)
class Latency:
    """How long one model runs as a share of another one.

    Attributes:
        ratio: Median over the rounds.
        low: The quartile below which a quarter of the rounds lies.
        high: The quartile above which a quarter of the rounds lies.
        rounds: How often both models ran.
    """

    ratio: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return (
            f"{self.ratio:.2f}x the time ({self.low:.2f} to {self.high:.2f} in half of {self.rounds} rounds)"
        )


def compare(
    reference: ir.Model,
    model: ir.Model,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    rounds: int = 31,
    seconds: float = 10.0,
) -> Latency:
    """Seconds of ``model`` over those of ``reference``, with onnxruntime's default optimizations.

    The models take turns, the other one first in every other round, so that what slows the machine for a
    while slows both; the median drops rounds in which it did not.

    Args:
        reference: The model that the other is compared with.
        model: The other one.
        feeds: The inputs of a run, one after the other.
        rounds: How often both run, the first run of each not counted.
        seconds: No further round begins after this long, once there are three.

    Raises:
        UnsupportedError: onnxruntime does not run one of them.
    """
    whole = 2**63  # in one piece, as an application would
    with (
        evaluate.Session(reference, optimize=True, segment_weights=whole) as first,
        evaluate.Session(model, optimize=True, segment_weights=whole) as second,
    ):
        for session in (first, second):
            session.run_all(feeds)
            if session.reason:
                raise UnsupportedError(session.reason)
        start = time.perf_counter()
        first.run_all(feeds)
        repeats = math.ceil(_LEAST_SECONDS / max(time.perf_counter() - start, _LEAST_SECONDS / _MOST_REPEATS))
        return _taking_turns(first, second, [*feeds] * repeats, rounds, seconds)


def _taking_turns(
    first: evaluate.Session,
    second: evaluate.Session,
    feeds: Sequence[Mapping[str, np.ndarray]],
    rounds: int,
    seconds: float,
) -> Latency:
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < rounds and (len(ratios) < 3 or time.perf_counter() < end):
        taken = {}
        for session in (first, second) if len(ratios) % 2 else (second, first):
            start = time.perf_counter()
            session.run_all(feeds)
            taken[session] = time.perf_counter() - start
        ratios.append(taken[second] / taken[first])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Latency(middle, low, high, len(ratios))
