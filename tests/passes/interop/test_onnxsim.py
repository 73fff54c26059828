"""onnxsim as a pass: what it does, what must stay, and every way it can fail."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io, limits
from graphopt.errors import MissingExtraError, UnsupportedError
from graphopt.passes.interop.onnxsim import Onnxsim
from graphopt.runtime import child

installed = pytest.mark.skipif(importlib.util.find_spec("onnxsim") is None, reason="needs the extra onnxsim")
X = np.array([[1.0, -2.0, 3.0]], np.float32)

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] x, float[2] unused, float[3] w) => (float[N,3] y)
<float[3] w = {1, 2, 3}, float[1] two = {2}, float[1] three = {3}> {
    six = Mul(two, three)
    a = Identity(x)
    scaled = Mul(a, six)
    y = Add(scaled, w)
}"""


@installed
def test_simplifies_and_keeps_interface_names_and_metadata(parse, ops, assert_same):
    model = parse(TEXT)
    model.metadata_props["author"] = "me"
    last = model.graph.node(3)
    last.name, last.metadata_props["layer"] = "last", "7"
    interface = [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    result = Onnxsim()(model)
    assert result.modified
    assert result.summary == "4 to 2 nodes"
    assert ops(model) == ["Mul", "Add"]
    assert [(v.name, v.type, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)] == interface
    assert dict(model.metadata_props) == {"author": "me"}
    assert (model.graph.node(1).name, dict(model.graph.node(1).metadata_props)) == ("last", {"layer": "7"})
    feed = {"x": X, "unused": np.zeros(2, np.float32)}
    assert_same(parse(TEXT), model, feed, {**feed, "w": np.array([7, 8, 9], np.float32)})


@installed
def test_nothing_to_simplify_leaves_the_graph_alone(parse):
    model = parse('<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Relu(x) }')
    graph = model.graph
    result = Onnxsim(optimize=False, fold_constants=False)(model)
    assert not result.modified
    assert model.graph is graph


@installed
def test_failure_of_onnxsim_is_one_line_and_leaves_the_model(parse, monkeypatch):
    model = parse(TEXT)
    graph = model.graph
    monkeypatch.setattr(Onnxsim, "_arguments", lambda *_: {"no_such_argument": 1})
    with pytest.raises(UnsupportedError, match=r"onnxsim failed: TypeError.*no_such_argument") as caught:
        Onnxsim()(model)
    assert "\n" not in str(caught.value)
    assert model.graph is graph


def test_not_installed(parse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'graphopt\[onnxsim\]'"):
        Onnxsim()(parse(TEXT))


def test_models_over_the_protobuf_limit(parse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(io, "serialized_size", lambda model: limits.PROTOBUF_MAX + 1)
    with pytest.raises(UnsupportedError, match="up to 2 GiB; this one has 2,147,483,648 bytes"):
        Onnxsim()(parse(TEXT))


def test_a_hang_ends(parse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(child, "run_module", lambda *_: child.Ended(-9, "", timed_out=True))
    with pytest.raises(UnsupportedError, match=r"did not end within 5 s \(option timeout\)"):
        Onnxsim(timeout=5)(parse(TEXT))


def test_a_crash_is_an_error(parse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(child, "run_module", lambda *_: child.Ended(-11, ""))
    with pytest.raises(UnsupportedError, match=r"onnxsim failed: crashed \(SIGSEGV\)"):
        Onnxsim()(parse(TEXT))


def answering(monkeypatch, answer: ir.Model) -> None:
    """Let the child process answer with a given model."""

    def run(module, arguments, limits):
        io.save(answer, arguments[1], external_data=False)
        return child.Ended(0, "")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(child, "run_module", run)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(float[N,3] y)", "(float[N,3] scaled)"),
        ("(float[N,3] x,", "(float[N,3] x, float[1] more,"),
        ("(float[N,3] y)", "(float[N,3] y, float[N,3] scaled)"),
    ],
)
def test_a_changed_interface_is_refused(parse, monkeypatch, old, new):
    answering(monkeypatch, parse(TEXT.replace(old, new)))
    model = parse(TEXT)
    graph = model.graph
    with pytest.raises(UnsupportedError, match="changed the inputs or outputs"):
        Onnxsim()(model)
    assert model.graph is graph


def test_dropped_inputs_axes_and_order_come_back(parse, monkeypatch):
    changed = TEXT.replace("(float[N,3] x, float[2] unused, float[3] w)", "(float[3] w, float[1,3] x)")
    answering(monkeypatch, parse(changed.replace("=> (float[N,3] y)", "=> (float[1,3] y)")))
    model = parse(TEXT)
    assert not Onnxsim()(model).modified
    answering(monkeypatch, parse(changed.replace("three = {3}", "three = {4}")))
    assert Onnxsim()(model).modified
    assert [(v.name, str(v.shape)) for v in model.graph.inputs] == [
        ("x", "[N,3]"),
        ("unused", "[2]"),
        ("w", "[3]"),
    ]


def test_changed_weights_count_as_a_change(parse, monkeypatch):
    text = TEXT.replace("w = {1, 2, 3}", f"w = {{1, 2, 3}}, float[600] big = {{{', '.join('1' * 600)}}}")
    changed = parse(text)
    changed.graph.initializers["big"].const_value = ir.tensor(np.zeros(600, np.float32), name="big")
    model = parse(text)
    answering(monkeypatch, parse(text))
    assert not Onnxsim()(model).modified
    answering(monkeypatch, changed)
    assert Onnxsim()(model).modified
    assert not model.graph.initializers["big"].const_value.numpy().any()


def test_arguments():
    ir_model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=8)
    arguments = Onnxsim(optimize=False, skip=("fuse_bn_into_conv",), max_folded_bytes=5)._arguments(ir_model)
    assert arguments == {
        "perform_optimization": False,
        "skipped_optimizers": ["fuse_bn_into_conv"],
        "skip_constant_folding": False,
        "tensor_size_threshold": "5B",
        "mutable_initializer": False,
    }
