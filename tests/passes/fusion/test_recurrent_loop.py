"""recurrent-loop: a Loop over the steps of a sequence that is an LSTM, GRU or RNN."""

from __future__ import annotations

import numpy as np
import pytest

#: As TensorFlow writes them: a counter of its own, conditions in float, the output of every step stacked.
LOOP = """<ir_version: 8, opset_import: ["" : 18]>
net (float[steps, batch, 3] x, float[3, WIDTH] w, float[4, WIDTH] r, float[WIDTH] b, float[4, 4] r2,
     float[batch, 4] h0, float[batch, 4] c0, bool[steps, batch, 1] mask) => (OUTPUTS)
<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 three = {3}, float unit = {1.0},
 float none = {0.0}, int64[1] from0 = {0}, int64[1] from4 = {4}, int64[1] from8 = {8},
 int64[1] end = {9223372036854775807}, int64[1] axis = {1}, int64[3] uneven = {1, 4, 7}>
{ shape = Shape(x)
  steps = Gather(shape, zero)
  limit = Cast <to = 1> (steps)
  begins = Less(none, limit)
  STATES, ys = Loop (TRIPS, begins, zero, INITIAL) <body = step (int64 i, bool go, int64 t, PARAMETERS) =>
    (bool goes, int64 t1, RESULTS, float[batch, 4] y) {
      t1 = Add(t, STRIDE)
      next = Cast <to = 1> (t1)
      number = Cast <to = 1> (i)
      less = Less(next, limit)
      less2 = Less(number, limit)
      goes = And(less, less2)
      xt = Gather <axis = 0> (x, t)
      CELL
      y = Identity(h1) }> }
"""
RNN = "p = MatMul(xt, w) q = MatMul(h, r) p1 = Add(p, b) s = Add(q, p1) h1 = Tanh(s)"
GRU_AFTER = """p = MatMul(xt, w) p1 = Add(p, b) x0, x1, x2 = Split <num_outputs = 3, axis = -1> (p1)
  q = MatMul(h, r) q1 = Add(b, q) h_0 = Slice(q1, from0, from4, axis) h_1 = Slice(q1, from4, from8, axis)
  h_2 = Slice(q1, from8, end, axis)
  a0 = Add(x0, h_0) z = Sigmoid(a0) a1 = Add(h_1, x1) u = Sigmoid(a1) m = Mul(u, h_2) a2 = Add(x2, m)
  n = Tanh(a2) k = Sub(unit, z) kept = Mul(z, h) new = Mul(n, k) h1 = Add(new, kept)"""
GRU_BEFORE = """p = MatMul(xt, w) p1 = Add(p, b) x0, x1, x2 = Split <num_outputs = 3, axis = 1> (p1)
  q = MatMul(h, r) h_0, h_1, unused = Split <num_outputs = 3, axis = 1> (q)
  a0 = Add(x0, h_0) z = Sigmoid(a0) a1 = Add(h_1, x1) u = Sigmoid(a1) m = Mul(u, h) m2 = MatMul(m, r2)
  a2 = Add(x2, m2) n = Tanh(a2) k = Sub(unit, z) kept = Mul(z, h) new = Mul(k, n) h1 = Add(kept, new)"""
LSTM = """p = MatMul(xt, w) q = MatMul(h, r) s = Add(p, q) g = Add(s, b)
  g0, g1, g2, g3 = Split <num_outputs = 4, axis = 1> (g)
  ig = Sigmoid(g0) fg = Sigmoid(g1) cg = Tanh(g2) og = Sigmoid(g3)
  kept = Mul(fg, c) new = Mul(ig, cg) c1 = Add(kept, new) squashed = Tanh(c1) h1 = Mul(og, squashed)"""
WIDTHS = {RNN: 4, GRU_AFTER: 12, GRU_BEFORE: 12, LSTM: 16}


def loop(cell: str, outputs: str = "float[steps, batch, 4] ys", **changed: str) -> str:
    width = next((w for known, w in WIDTHS.items() if known.split()[0:20] == cell.split()[0:20]), 4)
    parts = {
        "STATES": "count, h_last, c_last" if "c1 =" in cell else "count, h_last",
        "INITIAL": "h0, c0" if "c1 =" in cell else "h0",
        "PARAMETERS": "float[batch, 4] h" + (", float[batch, 4] c" if "c1 =" in cell else ""),
        "RESULTS": "float[batch, 4] h1" + (", float[batch, 4] c1" if "c1 =" in cell else ""),
        "TRIPS": "steps",
        "STRIDE": "one",
        "WIDTH": str(width),
        "OUTPUTS": outputs,
        "CELL": cell,
    }
    text = LOOP
    for name, value in {**parts, **changed}.items():
        text = text.replace(name, value)
    return text


@pytest.fixture
def made(parse, bind):
    def make(text: str):
        return bind(parse(text), w=None, r=None, b=None, r2=None)

    return make


@pytest.fixture
def feeds(draw):
    def make(steps: int, batch: int):
        return {
            "x": draw(steps, batch, 3),
            "h0": draw(batch, 4, seed=1),
            "c0": draw(batch, 4, seed=2),
            "mask": np.ones((steps, batch, 1), bool),
        }

    return make


@pytest.mark.parametrize(
    ("cell", "operator"), [(RNN, "RNN"), (GRU_AFTER, "GRU"), (GRU_BEFORE, "GRU"), (LSTM, "LSTM")]
)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 2)])
def test_a_loop_of_a_cell_becomes_the_operator(made, feeds, fuse, ops, assert_same, cell, operator, sizes):
    model = made(loop(cell))
    before = model.clone()
    assert fuse(model, "recurrent-loop").modified
    assert [op for op in ops(model) if op in ("Loop", "GRU", "LSTM", "RNN")] == [operator]
    assert_same(before, model, feeds(*sizes))


def test_last_states_are_outputs(made, feeds, fuse, ops, assert_same):
    model = made(loop(LSTM, "float[batch, 4] c_last, float[steps, batch, 4] ys, float[batch, 4] h_last"))
    before = model.clone()
    assert fuse(model, "recurrent-loop").modified
    assert "Loop" not in ops(model)
    assert_same(before, model, feeds(4, 3))


def test_other_activations_are_named(made, feeds, fuse, assert_same):
    cell = LSTM.replace("Sigmoid", "HardSigmoid <alpha = 0.3>").replace(
        "squashed = Tanh", "squashed = Softsign"
    )
    model = made(loop(cell))
    before = model.clone()
    assert fuse(model, "recurrent-loop").modified
    node = next(n for n in model.graph if n.op_type == "LSTM")
    assert list(node.attributes["activations"].as_strings()) == ["HardSigmoid", "Tanh", "Softsign"]
    assert_same(before, model, feeds(4, 3))


def test_the_last_step_is_the_last_state(parse, bind, draw, fuse, ops, assert_same):
    text = loop(RNN, "float[batch, 4] last").replace(
        "y = Identity(h1) }> }",
        """y = Identity(h1) }>
        minus = Constant <value = int64 {-1}> ()
        last = Gather <axis = 0> (ys, minus) }""",
    )
    model = bind(parse(text), w=None, r=None, b=None, r2=None)
    before = model.clone()
    assert fuse(model, "recurrent-loop", "recurrent-last-step").modified
    assert [op for op in ops(model) if op in ("Gather", "RNN", "Squeeze")][-2:] == ["RNN", "Squeeze"]
    feeds = {"x": draw(4, 2, 3), "h0": draw(2, 4, seed=1), "c0": draw(2, 4), "mask": np.ones((4, 2, 1), bool)}
    assert_same(before, model, feeds)


MASKED = RNN.replace("h1 = Tanh(s)", """n = Tanh(s) on = Gather <axis = 0> (mask, t) h1 = Where(on, n, h)""")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (loop(RNN, TRIPS="three"), "trip count"),
        (
            loop(RNN).replace("less = Less(next, limit)", "less = Less(number, unit)"),
            "until the sequence ends",
        ),
        (loop(RNN).replace("begins = Less(none, limit)", "begins = Less(unit, limit)"), "hold at first"),
        (
            loop(RNN).replace(
                "limit = Cast <to = 1> (steps)", "i8 = Cast <to = 3> (steps) limit = Cast <to = 1> (i8)"
            ),
            "hold at first",
        ),
        (loop(RNN).replace("y = Identity(h1)", "y = Neg(h1)"), "is not the hidden state"),
        (loop(RNN).replace("float[batch, 4] h0", "float[1, 4] h0"), "not known to be [batch, 4]"),
    ],
)
def test_what_is_not_proved_stays(made, fuse, ops, text, reason):
    model = made(text)
    result = fuse(model, "recurrent-loop")
    assert not result.modified
    assert "Loop" in ops(model)
    assert any(reason in r.reason for r in result.refusals), [str(r) for r in result.refusals]


@pytest.mark.parametrize(
    "text",
    [
        loop(MASKED),
        loop(RNN, STRIDE="two"),
        loop(RNN.replace("Tanh", "Erf")),
        loop(RNN).replace("int64 zero = {0}", "int64[1] zero = {0}"),
        loop(RNN).replace("int64 i, bool go, int64 t,", "int64 i, bool go, int64[1] t,"),
        loop(GRU_AFTER.replace("Split <num_outputs = 3, axis = -1> (p1)", "Split <axis = -1> (p1, uneven)")),
        loop(GRU_AFTER.replace("k = Sub(unit, z)", "k = Sub(unit, u)")),
        loop(GRU_AFTER.replace("Sub(unit, z)", "Sub(none, z)")),
        loop(LSTM.replace("og, squashed", "ig, og")),
    ],
)
def test_other_bodies_are_no_cells(made, fuse, ops, text):
    model = made(text)
    assert not fuse(model, "recurrent-loop").modified
    assert "Loop" in ops(model)
