"""The public API: typed, lazy, complete."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

import graphopt

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 2] x) => (float[n, 2] y) { i = Identity(x) y = Relu(i) }"""


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
