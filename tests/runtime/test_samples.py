from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt import limits
from graphopt.errors import InputError, UnsupportedError
from graphopt.runtime import evaluate, samples

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def model_of(text: str, **tables: np.ndarray) -> ir.Model:
    """A text model with some arrays as initializers."""
    proto = onnx.parser.parse_model(f"{HEAD} {text}")
    for name, array in tables.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def drawn(model: ir.Model, count: int = 4, seed: int = 0, pinned=None) -> samples.Samples:
    """Samples that the model was seen to run on."""
    found = samples.draw(model, count, seed, pinned)
    assert len(found.feeds) == len(found.axes) == count
    evaluate.run(model, found.feeds)
    return found


def column(found: samples.Samples, name: str) -> list[np.ndarray]:
    return [feed[name] for feed in found.feeds]


# Sizes


def test_static_axes_stay_and_values_differ_between_samples():
    model = model_of("g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    found = drawn(model)
    assert {a.shape for a in column(found, "x")} == {(2, 3)}
    assert {a.dtype for a in column(found, "x")} == {np.dtype(np.float32)}
    assert len({a.tobytes() for a in column(found, "x")}) == 4
    assert found.axes == [{}] * 4
    assert found.fixed_axes == {}


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_every_dynamic_axis_takes_two_sizes(count):
    model = model_of(
        "g (float[batch, 3, height, width] x) => (float[batch, 3, height, width] y) { y = Relu(x) }"
    )
    found = drawn(model, count)
    assert found.axes[0]["batch"] == 1
    for axis in ("batch", "height", "width"):
        assert len({axes[axis] for axes in found.axes}) == 2
    for array, axes in zip(column(found, "x"), found.axes, strict=True):
        assert array.shape == (axes["batch"], 3, axes["height"], axes["width"])


def test_equal_names_have_equal_sizes():
    model = model_of("g (float[N, T] x, float[T, N] y) => (float[N, N] z) { z = MatMul(x, y) }")
    for feed in drawn(model).feeds:
        assert feed["x"].shape == feed["y"].shape[::-1]


def test_equal_axes_with_different_names_are_found():
    """torch.export names axes apart that the model adds to each other."""
    model = model_of("g (float[s1, s2] x, float[s3, s4] y) => (float[N, M] z) { z = Add(x, y) }")
    found = drawn(model)
    assert [f["x"].shape for f in found.feeds] == [f["y"].shape for f in found.feeds]
    assert len({axes["s2"] for axes in found.axes}) == len({axes["s1"] for axes in found.axes}) == 2
    assert found.fixed_axes == {}


def test_unnamed_axes_are_independent_and_labelled():
    proto = onnx.parser.parse_model(f"{HEAD} g (float[a, b] x) => (float[a, b] y) {{ y = Relu(x) }}")
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.Clear()
    found = drawn(ir.from_proto(proto))
    assert [set(axes) for axes in found.axes] == [{"x[0]", "x[1]"}] * 4
    assert [f["x"].shape for f in found.feeds] == [tuple(axes.values()) for axes in found.axes]


def test_a_size_of_minus_one_is_free():
    proto = onnx.parser.parse_model(f"{HEAD} g (float[a, 3] x) => (float[a, 3] y) {{ y = Relu(x) }}")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert {f["x"].shape[0] for f in samples.draw(ir.from_proto(proto), 2, 0).feeds} == {1, 2}


@pytest.mark.parametrize("size", [16, 20, 37])
def test_a_baked_in_size_is_found_and_reported(size):
    """16 is tried anyway; the others stand in the graph only."""
    model = model_of(
        f"""g (float[batch, seq, 4] x) => (float[batch, {size}, 4] y) <int64[3] s = {{-1, {size}, 4}}> {{
          r = Reshape(x, s)
          y = Add(r, x)
        }}"""
    )
    found = drawn(model)
    assert found.fixed_axes == {"seq": size}
    assert {axes["seq"] for axes in found.axes} == {size}
    assert {axes["batch"] for axes in found.axes} == {1, 2}


def test_a_baked_in_batch_is_reported():
    model = model_of(
        """g (float[batch, seq] x) => (float[3, M] y) <int64[2] s = {3, -1}> {
          r = Reshape(x, s)
          y = Concat <axis = 1> (r, x)
        }"""
    )
    found = drawn(model)
    assert found.fixed_axes == {"batch": 3}
    assert len({axes["seq"] for axes in found.axes}) == 2


def test_one_fixed_axis_does_not_hide_a_free_one():
    model = model_of(
        "g (float[batch, rows, features] x) => (float[batch, rows, 16] y) { y = Mul(x, w) }",
        w=np.ones(16, np.float32),
    )
    found = drawn(model)
    assert found.fixed_axes == {"features": 16}
    assert len({axes["rows"] for axes in found.axes}) == 2


def test_two_axes_that_only_move_together():
    model = model_of(
        """g (float[batch, s1, s2] x, float[batch, s3, 5] y, float[4, k] v)
        => (float[A, B, C] z, float[4, 9] u) {
          z = MatMul(x, y)
          u = MatMul(v, w)
        }""",
        w=np.ones((16, 9), np.float32),
    )
    found = drawn(model)
    assert found.fixed_axes == {"k": 16}
    assert [axes["s2"] for axes in found.axes] == [axes["s3"] for axes in found.axes]
    assert all(len({axes[name] for axes in found.axes}) == 2 for name in ("batch", "s1", "s2", "s3"))


def test_sizes_that_make_empty_outputs_are_a_last_resort():
    model = model_of(
        """g (float[batch, frames] x) => (float[batch, M] y)
        <int64[1] from = {300}, int64[1] to = {100000}, int64[1] axis = {1}> {
          y = Slice(x, from, to, axis)
        }"""
    )
    assert all(axes["frames"] > 300 for axes in drawn(model).axes)


def test_arithmetic_in_axis_names():
    proto = onnx.parser.parse_model(
        f"""{HEAD} g (float[batch, past] x, float[batch, seq] y, float[batch, total] z) => (float[A, B] w) {{
          c = Concat <axis = 1> (x, y)
          w = Add(c, z)
        }}"""
    )
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + seq"
    found = drawn(ir.from_proto(proto))
    assert all(a["past + seq"] == a["past"] + a["seq"] for a in found.axes)
    assert found.fixed_axes == {}


@pytest.mark.parametrize("name", ["a-b", "p2o.DynamicDimension.0", "a b", "-1", "?", "x" * 5000, "f('os')"])
def test_odd_axis_names_are_plain_names(name):
    proto = onnx.parser.parse_model(f"{HEAD} g (float[a, 3] x) => (float[b, 3] y) {{ y = Relu(x) }}")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    found = samples.draw(ir.from_proto(proto), 2, 0)
    assert [set(axes) for axes in found.axes] == [{name}, {name}]
    assert len({axes[name] for axes in found.axes}) == 2


# Repeated sizes


@pytest.mark.parametrize(
    ("inputs", "sizes"),
    [
        ("float[1, 3, 96, 96] x", [1, 1]),  # noise: two draws in any case
        ("float[batch, 3, 96, 96] x", [1, 2]),
        (
            "float[1, 64] x",
            [1, 1, 1, 1],
        ),  # a short vector: half of what a Relu lets pass is another each time
        ("float[batch, 64] x", [1, 2, 1, 2]),
        ("float[1, 3, 96, 96] x, float[1] scale", [1, 1, 1, 1]),
        ("float[1, 3, 96, 96] x, bool[1, 3, 96, 96] keep", [1, 1, 1, 1]),
        ("float[1, 3, 96, 96] x, int64[1, 3, 96, 96] ids", [1, 1, 1, 1]),
    ],
)
def test_sizes_are_repeated_only_where_another_draw_goes_other_ways(inputs, sizes):
    names = re.findall(r"\w+(?=,|$)", re.sub(r"\[.*?\]", "", inputs))
    outputs = re.sub(r"\w+(\[.*?\]) (\w+)", r"float\1 \2_out", inputs)
    body = " ".join(f"{name}_out = Cast <to = 1> ({name})" for name in names)
    model = model_of(f"g ({inputs}) => ({outputs}) {{ {body} }}")
    found = samples.draw(model, 4, 0, repeats=False)
    assert [feed["x"].shape[0] for feed in found.feeds] == sizes
    assert len({feed["x"].tobytes() for feed in found.feeds}) == len(sizes)


def test_a_model_that_branches_gets_all_its_samples():
    model = model_of(
        """g (float[1, 3, 96, 96] x) => (float[1, 3, 96, 96] y) <float zero = {0}> {
          mean = ReduceMean <keepdims = 0> (x)
          up = Greater(mean, zero)
          y = If (up) <
            then_branch = t () => (float[1, 3, 96, 96] p) { p = Relu(x) },
            else_branch = e () => (float[1, 3, 96, 96] q) { q = Neg(x) }
          >
        }"""
    )
    assert len(samples.draw(model, 3, 0, repeats=False).feeds) == 3


def test_no_sample_is_run_twice(monkeypatch):
    runs = []
    original = evaluate.Session.run_all
    monkeypatch.setattr(
        evaluate.Session, "run_all", lambda s, feeds: runs.extend(feeds) or original(s, feeds)
    )
    model = model_of("g (int64[batch, seq] ids) => (float[A, B, C] y) { y = Gather(w, ids) }", w=TABLE)
    found = samples.draw(model, 3, 0)
    assert [feed["ids"].shape for feed in runs] == [(1, 8), (2, 8), (1, 25)]
    for wanted, feed in zip(found.feeds, runs, strict=True):
        np.testing.assert_array_equal(feed["ids"], wanted["ids"])


# Pinned axes


def test_pinned_sizes_hold_and_are_not_varied():
    model = model_of(
        "g (float[batch, seq] x, float[batch, seq] y) => (float[batch, seq] z) { z = Add(x, y) }"
    )
    found = drawn(model, pinned={"x": ["batch", 7]})
    assert {a.shape[1] for a in (*column(found, "x"), *column(found, "y"))} == {7}
    assert {a.shape[0] for a in column(found, "x")} == {1, 2}
    assert found.fixed_axes == {}


def test_pinned_names_tie_axes():
    model = model_of("g (float[a, b] x, float[c, d] y) => (float[M, N] z) { z = MatMul(x, y) }")
    found = drawn(model, pinned={"x": ["rows", "inner"], "y": ["inner", 5]})
    for feed in found.feeds:
        assert feed["x"].shape[1] == feed["y"].shape[0]
        assert feed["y"].shape[1] == 5
    assert set(found.axes[0]) == {"rows", "inner"}


def test_pinning_gives_a_rank_to_an_input_without_shape():
    proto = onnx.parser.parse_model(f"{HEAD} g (float[a] x) => (float[b] y) {{ y = Relu(x) }}")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = ir.from_proto(proto)
    with pytest.raises(UnsupportedError, match=r"'x': its rank is unknown; pin"):
        samples.draw(model, 1, 0)
    assert samples.draw(model, 1, 0, {"x": [2, "n", 3]}).feeds[0]["x"].shape[::2] == (2, 3)


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        ({"nope": [1]}, "names 'nope'"),
        ({"x": [1]}, "gives 'x' 1 axes"),
        ({"x": [1, 4]}, "the model fixes it to 3"),
        ({"x": [-2, 3]}, "no size"),
    ],
)
def test_pins_that_do_not_fit(pinned, message):
    model = model_of("g (float[batch, 3] x) => (float[batch, 3] y) { y = Relu(x) }")
    with pytest.raises(InputError, match=message):
        samples.draw(model, 1, 0, pinned)


# Values


def assert_within(arrays: list[np.ndarray], low: int, high: int) -> None:
    """All inside, and using much of the range: a draw of zeros and ones proves nothing."""
    values = np.concatenate([a.reshape(-1) for a in arrays]).astype(np.int64)
    assert values.min() >= low
    assert values.max() <= high
    assert values.max() - values.min() >= (high - low) // 2


TABLE = np.arange(50 * 4, dtype=np.float32).reshape(50, 4)
BODIES = {
    "directly": "y = Gather(w, ids)",
    "cast": "i = Cast <to = 7> (ids) y = Gather(w, i)",
    "through a chain": "u = Unsqueeze(ids, one) v = Squeeze(u, one) t = Transpose(v) y = Gather(w, t)",
    "reshaped": "r = Reshape(ids, all) y = Gather(w, r)",
    "concatenated": "c = Concat <axis = 1> (ids, ids) y = Gather(w, c)",
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_token_ids_stay_inside_the_embedding(body, kind):
    constants = "<int64[1] one = {1}, int64[1] all = {-1}>"
    text = f"g ({kind}[batch, seq] ids) => (float[A, B, C] y) {constants} {{ {BODIES[body]} }}"
    if body == "reshaped":
        text = text.replace("float[A, B, C]", "float[A, B]")
    model = model_of(text, w=TABLE)
    ids = column(drawn(model), "ids")
    assert_within(ids, 0, 49)
    assert {a.dtype for a in ids} == {np.dtype(kind)}
    assert len({a.shape[1] for a in ids}) == 2


def test_ids_into_a_dequantized_table():
    model = model_of(
        "g (int64[batch, seq] ids) => (float[A, B, C] y) <float s = {0.1}, int8 z = {0}> {"
        "d = DequantizeLinear(w, s, z) y = Gather(d, ids) }",
        w=np.ones((50, 4), np.int8),
    )
    assert_within(column(drawn(model), "ids"), 0, 49)


def test_shifted_ids_are_shifted_back():
    model = model_of(
        """g (int64[batch, seq] ids) => (float[A, B, C] y)
        <int64 one = {1}, int64 two = {2}, int64 most = {101}> {
          a = Sub(ids, one)
          b = Mul(a, two)
          c = Sub(most, b)
          d = Sub(c, two)
          y = Gather(w, d)
        }""",
        w=np.ones((100, 4), np.float32),
    )
    # 0 <= 101 - 2 (ids - 1) - 2 <= 99
    assert_within(column(drawn(model), "ids"), 1, 50)


def test_positions_added_to_an_offset():
    """A learned position table with an offset of 2, as BART has."""
    model = model_of(
        "g (int64[batch, seq] position_ids) => (float[A, B, C] y) <int64 two = {2}> {"
        "p = Add(position_ids, two) y = Gather(w, p) }",
        w=np.ones((66, 4), np.float32),
    )
    for array in column(drawn(model), "position_ids"):
        np.testing.assert_array_equal(array, np.broadcast_to(np.arange(array.shape[1]) % 64, array.shape))


def test_indices_of_other_operators():
    model = model_of(
        """g (int64[3, 40] a, int64[batch, 1] b, int64[batch] c, int64[batch] e)
        => (float[A, B] p, float[A] q, float[A, B] r, float[A, B] u)
        <int64 depth = {30}, float[2] v = {0, 1}> {
          p = GatherElements <axis = 1> (wide, a)
          q = GatherND(long, b)
          r = OneHot(c, depth, v)
          u = Gather <axis = -1> (wide, e)
        }""",
        wide=np.ones((3, 60), np.float32),
        long=np.ones(70, np.float32),
    )
    found = drawn(model, 12)
    assert_within(column(found, "a"), 0, 59)
    assert_within(column(found, "b"), 0, 69)
    assert_within(column(found, "c"), 0, 29)
    assert_within(column(found, "e"), 0, 59)


def test_indices_into_another_inputs_free_axis():
    model = model_of(
        "g (float[N, 4] data, int64[3] i) => (float[3, 4] y) { y = Gather(data, i) }",
    )
    for feed in drawn(model).feeds:
        assert feed["i"].max() < feed["data"].shape[0]


def test_ids_followed_into_branches_and_functions():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (bool c, int64[seq] ids, int64[seq] other) => (float[A, B] y, float[A, B] z) {
          y = If (c) <
            then_branch = t () => (float[A, B] p) { p = Gather(w, ids) },
            else_branch = e () => (float[A, B] q) { r = Gather(w, ids) q = Neg(r) }
          >
          i = own.Widen(other)
          z = own.Embed(i, w)
        }
        <domain: "own", opset_import: ["" : 17]>
        Widen (i) => (o) { o = Cast <to = 7> (i) }
        <domain: "own", opset_import: ["" : 17]>
        Embed (i, table) => (o) { o = Gather(table, i) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(TABLE, "w"))
    found = drawn(ir.from_proto(proto))
    assert_within(column(found, "ids"), 0, 49)
    assert_within(column(found, "other"), 0, 49)


def test_ids_followed_through_loops():
    model = model_of(
        """g (int64[5] ids) => (float[N, 4] y) <int64 n = {3}, bool go = {1}> {
          last, y = Loop (n, go, ids) <
            body = b (int64 i, bool c, int64[5] carried) => (bool d, int64[5] out, float[4] row) {
              d = Identity(c)
              out = Identity(carried)
              k = Gather(carried, i)
              row = Gather(w, k)
            }
          >
        }""",
        w=TABLE,
    )
    assert_within(column(drawn(model), "ids"), 0, 49)


def test_a_reference_to_a_functions_attribute_is_no_number():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (int64[3] ids) => (float[A, B] y) { y = own.Take <axis = 0> (w, ids) }
        <domain: "own", opset_import: ["" : 17]>
        Take <axis> (d, i) => (o) { o = Gather <axis: int = @axis> (d, i) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(TABLE, "w"))
    assert_within(column(drawn(ir.from_proto(proto)), "ids"), 0, 49)


def test_a_text_model():
    model = model_of(
        """g (int64[batch, seq] input_ids, int64[batch, seq] attention_mask, int64[batch, seq] token_type_ids)
        => (float[batch, seq, 4] y) <int64[1] last = {-1}> {
          e = Gather(w, input_ids)
          t = Gather(types, token_type_ids)
          m = Cast <to = 1> (attention_mask)
          u = Unsqueeze(m, last)
          a = Add(e, t)
          y = Mul(a, u)
        }""",
        w=TABLE,
        types=np.ones((2, 4), np.float32),
    )
    found = drawn(model, 6)
    assert_within(column(found, "input_ids"), 0, 49)
    assert_within(column(found, "token_type_ids"), 0, 1)
    rows = [row for mask in column(found, "attention_mask") for row in mask]
    for row in rows:
        assert set(np.unique(row)) <= {0, 1}
        assert row[0] == 1
        assert (np.diff(row) <= 0).all()  # ones, then zeros
    assert any(row.min() == 0 for row in rows)
    assert all(mask[0].all() for mask in column(found, "attention_mask"))


@pytest.mark.parametrize(
    ("use", "kind"), [("Cast <to = 9> (m)", "int64"), ("Greater(m, zero)", "int64"), ("Not(m)", "bool")]
)
def test_what_is_used_as_a_condition(use, kind):
    model = model_of(
        f"g ({kind}[4, 8] m) => (bool[4, 8] y) <int64 zero = {{0}}> {{ y = {use} }}",
    )
    for array in column(drawn(model), "m"):
        assert set(np.unique(array)) <= {0, 1}


def test_a_mask_on_bools_and_floats():
    model = model_of(
        """g (bool[2, 8] mask, float[2, 8] attn_mask) => (float[2, 8] y) {
          c = Cast <to = 1> (mask)
          y = Mul(c, attn_mask)
        }"""
    )
    for feed in drawn(model).feeds:
        for array in feed.values():
            assert (np.diff(array.astype(int)) <= 0).all()
            assert array[:, 0].all()


def test_lengths_lie_within_the_time_axis_and_the_first_is_all_of_it():
    model = model_of(
        """g (float[batch, T] waveforms, float[batch, 9] other, int64[batch] waveforms_lens)
        => (float[batch, T] y, float[batch, 9] z) <int64[1] one = {1}, int64 zero = {0}, int64 step = {1}> {
          s = Shape(waveforms)
          i = Gather(s, one)
          n = Squeeze(i)
          r = Range(zero, n, step)
          l = Unsqueeze(waveforms_lens, one)
          k = Less(r, l)
          m = Cast <to = 1> (k)
          y = Mul(waveforms, m)
          z = Relu(other)
        }"""
    )
    found = drawn(model, 8)
    for feed in found.feeds:
        lengths, steps = feed["waveforms_lens"], feed["waveforms"].shape[1]
        assert lengths[0] == steps
        assert lengths.min() >= 1
        assert lengths.max() <= steps
    assert any(f["waveforms_lens"].min() < f["waveforms"].shape[1] for f in found.feeds)


def test_sequence_lens_of_an_lstm_by_use_not_name():
    model = model_of(
        """g (float[12, batch, 3] x, int32[batch] n) => (float[12, 1, batch, 4] y) {
          y = LSTM <hidden_size = 4> (x, w, r, , n)
        }""",
        w=np.ones((1, 16, 3), np.float32),
        r=np.ones((1, 16, 4), np.float32),
    )
    for feed in drawn(model).feeds:
        assert feed["n"].min() >= 1
        assert feed["n"].max() <= 12


def test_numbers_that_a_scalar_is_compared_with_are_used():
    model = model_of(
        """g (float[4] x, int64 rate) => (float[4] y) <int64 a = {16000}, int64 b = {8000}> {
          p = Equal(rate, a)
          q = Equal(rate, b)
          u = Where(p, x, w)
          y = Where(q, u, x)
        }""",
        w=np.ones(4, np.float32),
    )
    assert {int(a) for a in column(drawn(model), "rate")} == {8000, 16000}


def test_a_threshold_lets_constants_pass():
    model = model_of(
        """g (float[8] x, float fmin, float fmax) => (float[8] y) {
          a = GreaterOrEqual(f, fmin)
          b = LessOrEqual(f, fmax)
          c = And(a, b)
          m = Cast <to = 1> (c)
          y = Mul(x, m)
        }""",
        f=np.linspace(50, 2000, 8, dtype=np.float32),
    )
    found = drawn(model)
    for outputs in evaluate.run(model, found.feeds).outputs:
        assert outputs["y"].all()


@pytest.mark.parametrize(("kind", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127)])
def test_bytes_use_their_whole_range(kind, low, high):
    model = model_of(f"g ({kind}[2, 99] x) => (float[2, 99] y) {{ y = Cast <to = 1> (x) }}")
    assert_within(column(drawn(model), "x"), low, high)


def test_unknown_integers_are_small():
    model = model_of("g (int64[4] x, int32 n) => (int64[4] y, int32 m) { y = Neg(x) m = Neg(n) }")
    for feed in drawn(model).feeds:
        assert {*feed["x"].tolist(), int(feed["n"])} <= {0, 1}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float", "double"])
def test_floats_are_standard_normal(kind):
    model = model_of(f"g ({kind}[100, 100] x) => (float[100, 100] y) {{ y = Cast <to = 1> (x) }}")
    values = column(drawn(model, 1), "x")[0].astype(np.float64)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_uniform_where_normal_makes_nan():
    model = model_of("g (float[64] x) => (float[64] y) { y = Sqrt(x) }")
    for array in column(drawn(model), "x"):
        assert array.min() >= 0
        assert array.max() < 1


def test_a_model_that_always_makes_nan_still_gets_samples():
    model = model_of("g (float[batch, 4] x) => (float[batch, 4] y) { a = Sub(x, x) y = Div(a, a) }")
    assert len({axes["batch"] for axes in drawn(model).axes}) == 2


def test_bools_are_random():
    model = model_of("g (bool[64] x) => (float[64] y) { y = Cast <to = 1> (x) }")
    assert {bool(v) for v in column(drawn(model, 1), "x")[0]} == {True, False}


def test_careful_values_where_the_allowed_ones_are_refused():
    """Nothing in the graph's form says that the number must be even."""
    model = model_of(
        """g (uint8[1] i) => (float[M, 2] y) <int64[2] s = {-1, 2}, int64 zero = {0}, int64 one = {1}> {
          c = Cast <to = 7> (i)
          q = Squeeze(c)
          r = Range(zero, q, one)
          f = Cast <to = 1> (r)
          y = Reshape(f, s)
        }"""
    )
    for feed in drawn(model).feeds:
        assert feed["i"][0] % 2 == 0


# Determinism


def test_the_same_seed_gives_the_same_samples_whatever_the_order_of_inputs():
    inputs = ["float[batch, 4] a", "float[batch, 4] b"]
    models = [
        model_of(f"g ({', '.join(order)}) => (float[batch, 4] y) {{ y = Add(a, b) }}")
        for order in (inputs, inputs[::-1])
    ]
    first, second = (samples.draw(model, 3, 7) for model in models)
    for one, other in zip(first.feeds, second.feeds, strict=True):
        for name in ("a", "b"):
            np.testing.assert_array_equal(one[name], other[name])
    other_seed = samples.draw(models[0], 3, 8)
    assert not np.array_equal(first.feeds[0]["a"], other_seed.feeds[0]["a"])
    assert not np.array_equal(first.feeds[0]["a"], first.feeds[0]["b"])


def test_initializers_that_are_inputs_are_not_drawn():
    model = model_of("g (float[2] x) => (float[2] y) { y = Add(x, w) }", w=np.ones(2, np.float32))
    model.graph.inputs.append(model.graph.initializers["w"])
    assert set(drawn(model, 1).feeds[0]) == {"x"}


def test_a_model_without_inputs():
    model = model_of("g () => (float[2] y) { y = Neg(w) }", w=np.ones(2, np.float32))
    assert drawn(model, 2).feeds == [{}, {}]


def test_large_models_are_probed_in_segments(monkeypatch):
    monkeypatch.setitem(evaluate.Session.__init__.__kwdefaults__, "segment_weights", 1000)
    runs = []
    original = evaluate.Session.run_all
    monkeypatch.setattr(
        evaluate.Session, "run_all", lambda s, feeds: runs.append(len(feeds)) or original(s, feeds)
    )
    model = model_of(
        "g (int64[batch, seq] ids) => (float[A, B, C] y) { e = Gather(w, ids) y = MatMul(e, v) }",
        w=np.ones((300, 16), np.float32),
        v=np.ones((16, 32), np.float32),
    )
    found = samples.draw(model, 4, 0)
    assert [a.shape for a in column(found, "ids")] == [(1, 8), (2, 8), (1, 25), (2, 25)]
    assert runs == [4]  # the weights were read once


def test_large_models_with_a_baked_in_size(monkeypatch):
    monkeypatch.setitem(evaluate.Session.__init__.__kwdefaults__, "segment_weights", 1000)
    model = model_of(
        "g (float[batch, features] x) => (float[A, B] y) { e = MatMul(x, w) y = MatMul(e, v) }",
        w=np.ones((32, 64), np.float32),
        v=np.ones((64, 32), np.float32),
    )
    assert drawn(model).fixed_axes == {"features": 32}


# Errors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("string[2]", "'x' of type STRING"),
        ("seq(float[2])", "'x': it is no dense tensor"),
        ("optional(float[2])", "'x': it is no dense tensor"),
    ],
)
def test_inputs_that_cannot_be_drawn(kind, message):
    model = model_of(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}")
    with pytest.raises(UnsupportedError, match=message):
        samples.draw(model, 1, 0)


def test_no_size_works():
    model = model_of(
        "g (float[batch, seq] x) => (float[batch, 7] y) { m = MatMul(x, w) n = MatMul(x, v) y = Add(m, n) }",
        w=np.ones((33, 7), np.float32),
        v=np.ones((34, 7), np.float32),
    )
    with pytest.raises(UnsupportedError) as caught:
        samples.draw(model, 1, 0)
    message = str(caught.value)
    assert "x [batch, seq]" in message
    assert "MatMul" in message
    assert "pin the axes under model.inputs or give data.calibration" in message
    assert "\n" not in message


def test_inputs_above_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "SAMPLE_ELEMENTS", 100)
    model = model_of("g (float[11, 10] x) => (float[11, 10] y) { y = Relu(x) }")
    with pytest.raises(UnsupportedError, match="SAMPLE_ELEMENTS"):
        samples.draw(model, 1, 0)
