"""Fixtures that every test file may use."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest


def _proto(model: ir.Model | onnx.ModelProto) -> onnx.ModelProto:
    return model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)


@pytest.fixture
def parse():
    """Text of the ONNX textual syntax -> checked ``ir.Model``."""

    def parse_text(text: str, *, check: bool = True) -> ir.Model:
        proto = onnx.parser.parse_model(text)
        if check:
            onnx.checker.check_model(proto)
        return ir.from_proto(proto)

    return parse_text


@pytest.fixture
def ops():
    """The op types of the main graph in order, Constant left out."""
    return lambda model: [n.op_type for n in model.graph if n.op_type != "Constant"]


@pytest.fixture
def run():
    """Run a model with onnxruntime, its optimizer off: with it on, ORT miscompiles some graphs."""

    def run_model(model: ir.Model | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(
            _proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)

    return run_model


@pytest.fixture
def assert_same(run):
    """Both models give the same outputs on the same inputs, and the new one passes the ONNX checker."""

    def check(before, after, *feeds: dict[str, np.ndarray], rtol: float = 1e-5, atol: float = 1e-6) -> None:
        onnx.checker.check_model(_proto(after))
        for feed in feeds:
            for want, got in zip(run(before, feed), run(after, feed), strict=True):
                assert got.dtype == want.dtype
                np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)

    return check
