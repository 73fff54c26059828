from __future__ import annotations

import numpy as np
import pytest

from graphopt.analyses import shapes


def text(body: str, inputs="float[b, s, 4] x", out="p, q, r") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 17]>
    g ({inputs}, float[1, 16, 4] table) => (float[{out}] y) {{
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> ()
        all = Shape (x)
        length = Slice (all, one, two)
        cut = Slice (table, zero, length, one)
        {body}
    }}"""


def found(model, name: str) -> str:
    known = shapes.infer(model)
    value = next(v for n in model.graph for v in n.outputs if v.name == name)
    return str(known[value].shape)


def test_a_table_cut_to_the_length_fits_the_length(parse, run):
    model = parse(text("y = Add (x, cut)"))
    assert found(model, "cut") == "[1,Min(16, s),4]"
    assert found(model, "y") == "[b,s,4]"
    table = np.zeros((1, 16, 4), np.float32)
    for length in (0, 1, 2, 15, 16):
        (result,) = run(model, {"x": np.zeros((2, length, 4), np.float32), "table": table})
        assert result.shape == (2, length, 4)


def test_beyond_the_table_the_model_does_not_run(parse, run):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    model = parse(text("y = Add (x, cut)"))
    feeds = {"x": np.zeros((2, 17, 4), np.float32), "table": np.zeros((1, 16, 4), np.float32)}
    with pytest.raises(Fail):
        run(model, feeds)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = Add (z, cut)", "float[b, s, 4] x, float[b, t, 4] z"),  # another length
        ("w = Slice (cut, one, two, one) y = Add (x, w)", "float[b, s, 4] x"),
        ("y = Add (x, z)", "float[b, s, 4] x, float[b, t, 4] z"),
    ],
)
def test_other_axes_that_meet_stay_unknown(body, inputs, parse):
    shape = found(parse(text(body, inputs)), "y")
    assert shape.split(",")[1] not in ("s", "t")


def test_a_cut_table_can_be_flattened(parse, run):
    model = parse(text("flat = Constant <value_ints = [-1, 4]> () y = Reshape (cut, flat)", out="p, q"))
    assert found(model, "y").endswith(",4]")
    feeds = {"x": np.zeros((2, 3, 4), np.float32), "table": np.zeros((1, 16, 4), np.float32)}
    assert run(model, feeds)[0].shape == (3, 4)
