"""The garbage collector while models are built and rewritten."""

from __future__ import annotations

import gc

import pytest

from graphopt._collector import collector_held
from graphopt.registry import Pass, PassResult


def test_it_is_held_and_let_go():
    assert gc.isenabled()
    with collector_held():
        assert not gc.isenabled()
        with collector_held():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_let_go_after_an_error():
    with pytest.raises(KeyError), collector_held():
        raise KeyError
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off():
    gc.disable()
    try:
        with collector_held():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_passes_hold_it(parse):
    class Look(Pass):
        name = "look"

        def call(self, model):
            return PassResult(model, False, str(gc.isenabled()))

    model = parse('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
    assert Look()(model).summary == "False"
    assert gc.isenabled()
