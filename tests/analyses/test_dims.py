"""Arithmetic on sizes: right at every size, and equal where the texts are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analyses import dims as d

a, b, h, s = (d.Axis(name) for name in "abhs")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (d.add(a, a), "2*a"),
        (d.add(d.multiply(a, b), d.multiply(b, a)), "2*a*b"),
        (d.subtract(d.add(a, 3), a), "3"),
        (d.multiply(d.add(a, 1), d.subtract(a, 1)), "a*a - 1"),
        (d.floor_divide(d.add(h, -1), 2), "floor((h + 1)/2) - 1"),
        (d.floor_divide(d.add(d.multiply(h, 4), 3), 2), "2*h + 1"),
        (d.floor_divide(d.add(d.floor_divide(h, 2), 1), 2), "floor((h + 2)/4)"),
        (d.floor_divide(d.multiply(h, 2), 4), "floor(h/2)"),
        (d.minimum(16, s), "Min(16, s)"),
        (d.minimum(s, d.add(s, 1)), "s"),
        (d.maximum(d.subtract(s, 1), 0), "Max(0, s - 1)"),
        (d.maximum(s, 0), "s"),
        (d.broadcast(a, 1), "a"),
        (d.broadcast(1, 7), "7"),
        (d.broadcast(a, 7), "7"),
        (d.broadcast(a, b), "Broadcast(a; b)"),
        (d.broadcast(d.broadcast(b, a), a), "Broadcast(a; b)"),
        (d.broadcast(s, d.minimum(16, s)), "s"),
        (d.divide_exactly(d.multiply(d.multiply(a, b), 12), d.multiply(a, 4)), "3*b"),
        (d.ratio(d.multiply(a, b), s), "floor((a*b)/(s))"),
    ],
)
def test_one_text_for_one_size(size, text):
    assert str(size) == text


@pytest.mark.parametrize(
    ("size", "divisor"), [(a, 2), (d.add(a, 1), a), (a, b), (d.add(a, b), a), (a, 0), (a, d.add(a, 1))]
)
def test_no_exact_quotient(size, divisor):
    assert d.divide_exactly(size, divisor) is None


def test_what_may_be_negative():
    assert d.is_negative_never(d.add(d.multiply(a, b), 3))
    assert d.is_negative_never(d.minimum(16, s))
    assert d.is_negative_never(d.maximum(d.subtract(s, 1), 0))
    assert not d.is_negative_never(d.subtract(a, 1))
    assert not d.is_negative_never(d.minimum(d.subtract(a, 1), 5))
    assert not d.is_negative_never(d.multiply(d.minimum(d.subtract(a, 1), 5), b))


def test_nameless_axes_are_all_different():
    names = d.Names([], {}, None)
    first, second = names.read((d.ir.SymbolicDim(None), d.ir.SymbolicDim(None)))
    assert not d.same(first, second)
    assert not d.same(d.ir.SymbolicDim(None), d.ir.SymbolicDim(None))


def test_a_name_that_reads_like_an_expression_is_no_expression():
    read = d.Names(["a*b", "a", "b"], {}, None)
    odd, one, other = read.read([d.ir.SymbolicDim(n) for n in ("a*b", "a", "b")])
    assert not d.same(odd, d.multiply(one, other))
    (alone,) = d.Names(["a*b"], {}, None).read([d.ir.SymbolicDim("a*b")])
    assert alone.value == "a*b"
    assert d.add(alone, 1).value == "'a*b' + 1"


def test_long_expressions_become_new_axes():
    size = a
    for name in "bcdefghijklmnopqrstuvwxyz":
        size = d.add(size, d.multiply(d.Axis(name * 3), 7))
    assert len(str(size)) <= 64


def test_what_a_file_may_declare():
    shape = d.declarable((2, a, d.fresh(), d.add(d.fresh(), 1), d.broadcast(a, b), d.minimum(16, s)))
    assert [x if isinstance(x, int) else x.value for x in shape] == [2, "a", None, None, None, "Min(16, s)"]
    assert d.declarable(None) is None


sizes = st.recursive(
    st.one_of(st.integers(0, 9), st.sampled_from("ab")),
    lambda inner: st.tuples(
        st.sampled_from(["add", "subtract", "multiply", "minimum", "maximum", "half"]), inner, inner
    ),
    max_leaves=6,
)


def evaluated(tree, compute, axes):
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return axes[tree]
    name, left, right = tree
    left, right = evaluated(left, compute, axes), evaluated(right, compute, axes)
    return compute["half"](left, 3) if name == "half" else compute[name](left, right)


SYMBOLIC = {
    **{n: getattr(d, n) for n in ("add", "subtract", "multiply", "minimum", "maximum")},
    "half": d.floor_divide,
}
NUMERIC = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "minimum": min,
    "maximum": max,
    "half": lambda x, y: x // y,
}


@given(tree=sizes, x=st.integers(0, 20), y=st.integers(0, 20))
def test_arithmetic_is_right_at_every_size(tree, x, y):
    size = evaluated(tree, SYMBOLIC, {"a": a, "b": b})
    real = evaluated(tree, NUMERIC, {"a": x, "b": y})
    if isinstance(size, int):
        assert size == real
        return
    if "_axis_" not in str(size):
        names = {"a": x, "b": y, "floor": math.floor, "Min": min, "Max": max}
        assert eval(str(size), {"__builtins__": {}}, names) == real
    if d.is_negative_never(size):
        assert real >= 0
