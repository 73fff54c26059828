"""The public API: typed, lazy, complete."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt
from graphopt import io

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 2] x) => (float[n, 2] y) { i = Identity(x) y = Relu(i) }"""

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 64] x) => (float[n, 64] y) <float[1] b = {0.5}>
{ i = Identity(x)
  m = MatMul(i, w)
  a = Relu(m)
  c = Add(a, b)
  y = MatMul(c, v) }"""


def test_every_public_name_exists_and_is_documented():
    for name in graphopt.__all__:
        found = getattr(graphopt, name)
        assert name == "__version__" or found.__doc__
    assert set(dir(graphopt)) == set(graphopt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        graphopt.nothing  # noqa: B018


def test_importing_graphopt_imports_nothing_heavy():
    code = (
        "import sys, graphopt; print(sorted({'onnx', 'onnx_ir', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_optimize_keeps_the_kind_of_model(parse):
    model = parse(NET)
    made = graphopt.optimize(model)
    assert isinstance(made, ir.Model)
    assert [n.op_type for n in made.graph] == ["Relu"]
    assert [n.op_type for n in model.graph] == ["Identity", "Relu"]
    assert type(graphopt.optimize(ir.to_proto(model))) is type(ir.to_proto(model))


def test_without_verification_onnxruntime_is_not_imported(parse, tmp_path):
    path = tmp_path / "net.onnx"
    graphopt.save(parse(NET), path)
    code = (
        f"import sys, graphopt; m = graphopt.optimize({str(path)!r}, verify=False); "
        "print([n.op_type for n in m.graph], 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['Relu'] False", done.stderr
    recipe = {"version": 1, "passes": ["eliminate-identity"]}
    assert graphopt.run(recipe, path, verify=False).report.verified is False
    assert graphopt.run(recipe, path).report.verified is True


def test_without_verification_no_large_weight_is_read(tmp_path, monkeypatch):
    proto = onnx.parser.parse_model(CHAIN)
    random = np.random.default_rng(0)
    for name in ("w", "v"):
        array = random.standard_normal((64, 64), np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path / "net.onnx"
    io.save(ir.from_proto(proto), path, external_data=True)
    read = []
    for method in ("numpy", "tobytes"):
        original = getattr(ir.ExternalTensor, method)
        monkeypatch.setattr(
            ir.ExternalTensor, method, lambda self, f=original: read.append(self.name) or f(self)
        )
    assert [n.op_type for n in graphopt.optimize(path, verify=False).graph] == [
        "MatMul",
        "Relu",
        "Add",
        "MatMul",
    ]
    assert not set(read) & {"w", "v"}


def test_load_save_inspect_and_verify_take_paths_and_models(parse, tmp_path):
    model = parse(NET)
    path = tmp_path / "net.onnx"
    assert graphopt.save(model, path) == path.stat().st_size
    assert isinstance(graphopt.load(path), ir.Model)
    assert graphopt.load(model) is model
    for form in (model, ir.to_proto(model), path, str(path)):
        assert graphopt.inspect(form).costs.nodes == 2
        assert graphopt.verify(form, model, {"x": np.ones((3, 2), np.float32)}).agrees(0, 0)


def test_saving_over_the_source_is_refused(parse, tmp_path):
    path = tmp_path / "net.onnx"
    graphopt.save(parse(NET), path)
    before = path.read_bytes()
    with pytest.raises(graphopt.GraphoptError, match="overwrite"):
        graphopt.save(path, path)
    assert path.read_bytes() == before


def test_verify_names_inputs_that_do_not_fit(parse):
    two = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 2] x, float[n, 2] z) => (float[n, 2] y) { y = Add(x, z) }"""
    )
    with pytest.raises(graphopt.GraphoptError, match="inputs the first has not: z"):
        graphopt.verify(parse(NET), two)
