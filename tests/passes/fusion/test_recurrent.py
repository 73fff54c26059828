"""recurrent-zero-state: zeros that say what is so anyway."""

from __future__ import annotations

import numpy as np
import pytest

GRU = """<ir_version: 8, opset_import: ["" : 17]>
net (float[time, batch, 3] x, float[1, 12, 3] w, float[1, 12, 4] r, float[1, batch, 4] state)
    => (float[time, 1, batch, 4] y, float[1, batch, 4] last)
<int64[1] one = {1}, int64[1] two = {2}, int64[1] hidden = {4}, int64[1] zero = {0}, int64 axis = {1}>
{ shape = Shape(x)
  scalar = Gather(shape, axis)
  batch_size = Unsqueeze(scalar, zero)
  target = Concat <axis = 0> (two, batch_size, hidden)
  zeros = ConstantOfShape FILL (target)
  h = Slice(zeros, zero, one, zero)
  y, last = GRU <hidden_size = 4> (x, w, r, , , STATE) }
"""
LSTM = """<ir_version: 8, opset_import: ["" : 17]>
net (float[time, batch, 3] x, float[1, 16, 3] w, float[1, 16, 4] r, float[1, batch, 4] c)
    => (float[1, batch, 4] last)
<int64[1] one = {1}, int64[1] hidden = {4}>
{ shape = Shape <start = 1, end = 2> (x)
  target = Concat <axis = 0> (one, shape, hidden)
  h = ConstantOfShape(target)
  all, last = LSTM <hidden_size = 4> (x, w, r, , , h, CELL) }
"""


def gru(fill: str = "", state: str = "h") -> str:
    return GRU.replace("FILL", fill).replace("STATE", state)


@pytest.mark.parametrize("fill", ["", "<value = float[1] {0}>"])
@pytest.mark.parametrize("sizes", [(5, 1), (2, 3)])
def test_the_chain_that_sizes_the_zeros_goes(parse, bind, draw, fuse, ops, assert_same, fill, sizes):
    model = bind(parse(gru(fill)), w=None, r=None)
    before = model.clone()
    assert fuse(model, "recurrent-zero-state").modified
    assert ops(model) == ["GRU"]
    assert len(model.graph[0].inputs) == 3
    assert_same(before, model, {"x": draw(*sizes, 3), "state": draw(1, sizes[1], 4, seed=1)})


def test_a_cell_that_is_given_stays(parse, bind, draw, fuse, ops, assert_same):
    model = bind(parse(LSTM.replace("CELL", "c")), w=None, r=None)
    before = model.clone()
    assert fuse(model, "recurrent-zero-state").modified
    assert ops(model) == ["LSTM"]
    assert [v is None for v in model.graph[0].inputs] == [False, False, False, True, True, True, False]
    assert_same(before, model, {"x": draw(4, 2, 3), "c": draw(1, 2, 4, seed=1)})


def test_both_states_go_when_both_are_zeros(parse, bind, draw, fuse, ops, assert_same):
    model = bind(parse(LSTM.replace("CELL", "h")), w=None, r=None)
    before = model.clone()
    assert fuse(model, "recurrent-zero-state").modified
    assert ops(model) == ["LSTM"]
    assert_same(before, model, {"x": draw(4, 2, 3), "c": draw(1, 2, 4)})


@pytest.mark.parametrize(
    "text",
    [
        gru("<value = float[1] {1}>"),
        gru("<value = float[1] {-0.0}>"),
        gru(state="state"),
    ],
)
def test_any_other_state_stays(parse, bind, fuse, text):
    model = bind(parse(text), w=None, r=None)
    result = fuse(model, "recurrent-zero-state")
    assert not result.modified
    assert "is not known to be zeros" in result.refusals[0].reason


def test_without_a_state_there_is_nothing_to_do(parse, bind, fuse):
    model = bind(parse(gru().replace(", , , h)", ")")), w=None, r=None)
    result = fuse(model, "recurrent-zero-state")
    assert not result.modified
    assert result.refusals == []


def test_constant_zeros_go_too(parse, bind, draw, fuse, assert_same):
    model = bind(parse(gru(state="state")), w=None, r=None, state=np.zeros((1, 2, 4), np.float32))
    before = model.clone()
    assert fuse(model, "recurrent-zero-state").modified
    assert_same(before, model, {"x": draw(3, 2, 3)})
