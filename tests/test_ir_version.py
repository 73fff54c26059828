"""Models from before IR version 4: their initializers are constants, and callers see the same inputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt import io
from graphopt.graph import constant_of
from graphopt.passes.cleanup.fold_constants import FoldConstants

TEXT = """<ir_version: {version}, opset_import: ["" : 9]>
g (float[N] x, float[2] w = {{1, 2}}, float[N] z, float[1] k = {{3}}) => (float[N] y) {{
  a = Add(w, k) b = Mul(x, a) y = Sub(b, z) }}"""
FEEDS = {"x": np.array([1, -2], np.float32), "z": np.array([0.5, 0], np.float32)}


def _proto(version: int) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT.format(version=version))
    onnx.checker.check_model(proto)
    return proto


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def test_initializers_of_version_3_become_constants(run):
    proto = _proto(3)
    model = io.from_proto(proto)
    assert model.ir_version == 4
    assert [v.name for v in model.graph.inputs] == ["x", "z"]
    assert all(constant_of(v) is not None for v in model.graph.initializers.values())
    assert FoldConstants()(model).modified
    io.check(model)
    assert [n.op_type for n in model.graph] == ["Mul", "Sub"]
    np.testing.assert_array_equal(run(model, FEEDS)[0], run(proto, FEEDS)[0])


def test_callers_see_the_same_inputs():
    proto = _proto(3)
    after = ir.to_proto(io.from_proto(proto))
    seen = [[(i.name, i.shape, i.type) for i in _session(p).get_inputs()] for p in (proto, after)]
    assert seen[0] == seen[1]
    assert not _session(proto).get_overridable_initializers()
    assert not _session(after).get_overridable_initializers()


@pytest.mark.parametrize("version", [4, 8])
def test_defaults_of_later_versions_stay_inputs(version):
    model = io.from_proto(_proto(version))
    assert model.ir_version == version
    assert [v.name for v in model.graph.inputs] == ["x", "w", "z", "k"]
    assert not FoldConstants()(model).modified


def test_a_file_of_version_3(tmp_path):
    onnx.save(_proto(3), tmp_path / "old.onnx")
    model = io.load(tmp_path / "old.onnx")
    io.save(model, tmp_path / "new.onnx")
    assert [v.name for v in io.load(tmp_path / "new.onnx").graph.inputs] == ["x", "z"]
