"""Helpers of the layout tests: models from a body, what a rule makes of them, why it leaves them alone."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.layout.simplify_layout import SimplifyLayout


@pytest.fixture
def simplify():
    """Run the pass with some rules, all where none is named."""
    return lambda model, *rules: SimplifyLayout(include=rules)(model)


@pytest.fixture
def becomes(parse, ops, simplify, assert_same):
    """Check a text before and after some rules: the op types left, and the numbers for each set of feeds."""

    def check(
        text: str, expected: list[str], *feeds: dict, rules: tuple[str, ...] = (), **tolerance
    ) -> ir.Model:
        before, after = parse(text), parse(text)
        names = [(v.name, v.dtype, copy.copy(v.shape)) for v in (*after.graph.inputs, *after.graph.outputs)]
        assert simplify(after, *rules).modified
        assert ops(after) == expected
        assert [(v.name, v.dtype, v.shape) for v in (*after.graph.inputs, *after.graph.outputs)] == names
        assert_same(before, after, *feeds, **tolerance)
        return after

    return check


@pytest.fixture
def stays(parse, ops, simplify):
    """Check that a text is left alone, and for which reason ("" for none given)."""

    def check(text: str, reason: str = "", *rules: str) -> None:
        model = parse(text)
        before = ops(model), sorted(model.graph.initializers)
        result = simplify(model, *rules)
        assert not result.modified
        assert (ops(model), sorted(model.graph.initializers)) == before
        assert reason in " | ".join(refusal.reason for refusal in result.refusals)
        if not reason:
            assert not result.refusals

    return check


@pytest.fixture
def draw():
    """Draw float32 (or another type) of a shape, standard normal times 4, from a seed."""

    def draw_array(*shape: int, dtype: type = np.float32) -> np.ndarray:
        return (np.random.default_rng(0).standard_normal(shape) * 4).astype(dtype)

    return draw_array
