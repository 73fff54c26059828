"""Every rule against what really came out: the official node tests with open axes, and real models."""

from __future__ import annotations

import functools
import importlib.util
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from graphopt.analyses import shapes
from graphopt.analyses.shape_inference import RULES

_spec = importlib.util.spec_from_file_location("sizes", Path(__file__).with_name("sizes.py"))
sizes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sizes)

MODELS = Path(__file__).parents[2] / "fixtures" / "models"


@functools.cache
def cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for c in collect_testcases(None) if c.model is not None and c.data_sets]


def array_of(value):
    value = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def axis_name(value, place):
    return f"{value.name.replace('.', '_')}_{place}"


def opened(model):
    """Every axis of every input gets a name of its own."""
    for value in model.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = axis_name(value, place)


def fixed(model, arrays):
    """Every input but the first becomes a constant."""
    given = [(v.name, a) for v, a in zip(model.graph.input, arrays, strict=False)][1:]
    constants = {n: a for n, a in given if a is not None and a.dtype.kind != "O"}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    kept = [v for v in model.graph.input if v.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)


@pytest.mark.parametrize("variant", ["as it is", "open axes", "constant inputs"])
def test_official_cases(variant):
    wrong, known = [], 0
    for case in cases():
        for inputs, outputs in case.data_sets:
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            arrays = [array_of(x) for x in inputs]
            real = {
                axis_name(v, place): size
                for v, a in zip(model.graph.input, arrays, strict=False)
                if a is not None
                for place, size in enumerate(a.shape)
            }
            if variant == "open axes":
                opened(model)
            elif variant == "constant inputs":
                fixed(model, arrays)
            loaded = ir.from_proto(model)
            found, bound = shapes.infer(loaded), sizes.Sizes(real)
            for value, output in zip(loaded.graph.outputs, map(array_of, outputs), strict=True):
                if output is not None:
                    known += found[value].dims is not None
                    what = bound.contradiction(found[value], output)
                    wrong += [f"{case.name} {value.name}: {what}"] if what else []
    assert not wrong
    assert known > 1900  # of some 2,300 outputs; the others hang on data, or on operators without a rule


def test_most_operators_have_a_rule():
    latest = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    missing = latest - {name for domain, name in RULES if domain == ""}
    functions_of_sequences = {n for n in missing if "Sequence" in n or "Optional" in n or "String" in n}
    others = {"If", "Loop", "Scan", "ImageDecoder", "RegexFullMatch", "TfIdfVectorizer"}
    assert missing <= functions_of_sequences | others


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.stem)
def test_all_values_of_real_models(path):
    """At two sizes of every open axis, and with nothing read from what the file claims."""
    proto = onnx.load(path)
    model = ir.from_proto(proto)
    found = shapes.infer(model)
    assert found.complete
    values = [v for n in model.graph for v in n.outputs if v.name and found[v].dtype is not None]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in values)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options)
    for feeds in drawn(model):
        real = {
            dim.value: size
            for v in model.graph.inputs
            for dim, size in zip(v.shape or (), feeds[v.name].shape, strict=True)
            if not isinstance(dim, int) and dim.value
        }
        bound = sizes.Sizes(real)
        for value, output in zip(values, session.run(None, feeds), strict=True):
            assert not bound.contradiction(found[value], output), value.name


def drawn(model):
    from graphopt.runtime import samples

    return samples.draw(model, 3, 0).feeds


# The check itself.


@pytest.mark.parametrize(
    ("known", "what"),
    [
        (shapes.Inferred(ir.DataType.FLOAT, (2, 3)), ""),
        (shapes.Inferred(ir.DataType.FLOAT, (2, ir.SymbolicDim("n + 1"))), ""),
        (shapes.Inferred(ir.DataType.INT64, (2, 3)), "type"),
        (shapes.Inferred(ir.DataType.FLOAT, (2,)), "rank"),
        (shapes.Inferred(ir.DataType.FLOAT, (2, 2)), "shape"),
        (shapes.Inferred(ir.DataType.FLOAT, (2, ir.SymbolicDim("n"))), "shape"),
        (shapes.Inferred(ir.DataType.FLOAT, (2, 3), (1, 1, 1, 1, 1, 0)), "elements"),
        (shapes.Inferred(ir.DataType.FLOAT, (2, 3), None, np.zeros((2, 3), np.float32)), "value"),
    ],
)
def test_a_contradiction_is_found(known, what):
    found = sizes.Sizes({"n": 2}).contradiction(known, np.ones((2, 3), np.float32))
    assert bool(found) == bool(what)
    assert re.match(what, found)
