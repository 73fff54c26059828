"""Comparing times: what is counted, and what cannot be compared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.errors import UnsupportedError
from graphopt.runtime import latency

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
FEEDS = [{"x": np.zeros(3, np.float32)}]


class Pretend:
    """A session that takes given times on a clock that only it moves."""

    now = 0.0

    def __init__(self, *seconds: float) -> None:
        self.seconds = itertools.cycle(seconds)

    def run_all(self, feeds):
        Pretend.now += next(self.seconds)


def test_the_median_of_rounds_in_which_the_models_take_turns(monkeypatch):
    monkeypatch.setattr(latency.time, "perf_counter", lambda: Pretend.now)
    slow, fast = Pretend(4, 4, 40), Pretend(1, 2, 1)
    found = latency._taking_turns(fast, slow, FEEDS, 9, 1e9)
    assert (found.ratio, found.low, found.high, found.rounds) == (4.0, 2.0, 40.0, 9)
    assert str(found) == "4.00x the time (2.00 to 40.00 in half of 9 rounds)"
    assert latency._taking_turns(fast, slow, FEEDS, 9, 0).rounds == 3


def test_two_models_are_compared(parse):
    found = latency.compare(parse(TEXT), parse(TEXT), FEEDS, rounds=4)
    assert found.rounds == 4
    assert found.ratio > 0


def test_a_model_that_onnxruntime_cannot_run(parse):
    unknown = parse(TEXT.replace('["" : 17]', '["" : 17, "m" : 1]').replace("Relu", "m.Relu"))
    with pytest.raises(UnsupportedError, match="onnxruntime cannot load the model"):
        latency.compare(parse(TEXT), unknown, FEEDS)
