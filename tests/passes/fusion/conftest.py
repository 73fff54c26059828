"""Helpers of the fusion tests: models as text, weights drawn from a seed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.fusion.fuse import Fuse


@pytest.fixture
def bind():
    """Turn graph inputs into initializers: ``bind(model, w=array)``; None draws the numbers from a seed."""

    def bind_inputs(model: ir.Model, **arrays: np.ndarray | None) -> ir.Model:
        rng = np.random.default_rng(0)
        for value in list(model.graph.inputs):
            if value.name not in arrays:
                continue
            array = arrays[value.name]
            if array is None:
                array = rng.uniform(0.5, 1.5, value.shape.numpy()) * rng.choice([-1, 1], value.shape.numpy())
                array = array.astype(value.dtype.numpy())
            model.graph.inputs.remove(value)
            value.shape, value.const_value = ir.Shape(array.shape), ir.tensor(array, name=value.name)
            model.graph.register_initializer(value)
        return model

    return bind_inputs


@pytest.fixture
def draw():
    """Draw float32 (or another type) of a shape, standard normal, from a seed."""

    def draw_array(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape).astype(dtype)

    return draw_array


@pytest.fixture
def fuse():
    """Run the pass with some rules: ``fuse(model, "conv-mul")``; the result has the refusals."""
    return lambda model, *rules: Fuse(include=rules)(model)


@pytest.fixture
def reason(ops, fuse):
    """Why a rule leaves a model alone ("" for no match); asserts that nothing changed."""

    def why(model: ir.Model, *rules: str) -> str:
        before = (ops(model), sorted(model.graph.initializers))
        result = fuse(model, *rules)
        assert not result.modified
        assert (ops(model), sorted(model.graph.initializers)) == before
        assert len(result.refusals) <= 1
        return result.refusals[0].reason if result.refusals else ""

    return why
