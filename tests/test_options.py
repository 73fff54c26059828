"""Typed options: conversion, errors with their path, and the JSON Schema that agrees with both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import options
from graphopt.options import ConversionError, option


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    ratio: float = option(0.5, min=0, max=1, help="A share.")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Every supported kind of type."""

    bits: int = option(8, min=2, max=8, help="Bits.")
    flag: bool = option(False, help="A switch.")
    mode: Literal["fast", "exact"] = option("fast", help="A choice.")
    names: tuple[str, ...] = option((), help="A list.")
    limit: float | None = option(None, help="Optional.")
    shapes: Mapping[str, tuple[int | str, ...]] = option(default_factory=dict, help="A mapping.")
    inner: Inner = option(Inner(), help="A section.")
    either: Inner | str = option("x", help="A union.")


def test_defaults_and_every_kind():
    assert options.build(Sample, {}) == Sample()
    made = options.build(
        Sample,
        {
            "bits": 4,
            "flag": True,
            "mode": "exact",
            "names": ["a"],
            "limit": 3,
            "shapes": {"x": ["n", 3]},
            "inner": {"ratio": 1},
            "either": {"ratio": 0},
        },
    )
    assert made == Sample(4, True, "exact", ("a",), 3.0, {"x": ("n", 3)}, Inner(1.0), Inner(0.0))
    assert type(made.inner.ratio) is float


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({"bit": 8}, ("bit",), "unknown key 'bit'; did you mean 'bits'?"),
        ({"bits": "8"}, ("bits",), "'bits' must be int, not '8'"),
        ({"bits": True}, ("bits",), "'bits' must be int, not True"),
        ({"bits": 8.0}, ("bits",), "'bits' must be int, not 8.0"),
        ({"bits": 9}, ("bits",), "'bits' is 9, must be 2 to 8"),
        ({"flag": 1}, ("flag",), "'flag' must be bool, not 1"),
        ({"mode": "exakt"}, ("mode",), "'exakt' is not one of fast | exact; did you mean 'exact'?"),
        ({"mode": 1}, ("mode",), "1 is not one of fast | exact"),
        ({"names": "a"}, ("names",), "'names' must be list of str, not 'a'"),
        ({"names": ["a", 1]}, ("names", 1), "'1' must be str, not 1"),
        ({"limit": float("nan")}, ("limit",), "nan is not a finite number"),
        ({"limit": "much"}, ("limit",), "'limit' must be float, not 'much'"),
        ({"shapes": []}, ("shapes",), "must be mapping of name to list of int | str, not a list"),
        ({"shapes": {1: []}}, ("shapes", 1), "key 1 must be text"),
        ({"inner": {"ratio": 2}}, ("inner", "ratio"), "'ratio' is 2.0, must be 0 to 1"),
        ({"inner": None}, ("inner",), "'inner' must be mapping, not nothing"),
        ({"either": {"ration": 1}}, ("either", "ration"), "did you mean 'ratio'?"),
        ({"either": 3}, ("either",), "must be mapping | str, not 3"),
    ],
)
def test_errors_say_what_and_where(data, path, message):
    with pytest.raises(ConversionError) as caught:
        options.build(Sample, data)
    assert message in str(caught.value)
    assert caught.value.path == path


def test_a_missing_required_option_is_named():
    @dataclasses.dataclass
    class Needs:
        file: str = option(help="A file.")

    with pytest.raises(ConversionError, match=r"'file' is missing \(str\)"):
        options.build(Needs, {})


def test_options_of_a_plain_class_come_from_its_constructor():
    class Plain:
        def __init__(self, size: int, name: str = "x", *rest: int, **more: int) -> None: ...

    found = options.options_of(Plain)
    assert [(o.name, o.type, o.required) for o in found] == [("size", int, True), ("name", str, False)]
    assert options.options_of(object) == []


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 10),
    st.floats(-2, 2),
    st.sampled_from(["fast", "exact", "x"]),
    st.lists(st.sampled_from(["a", 1]), max_size=2),
    st.fixed_dictionaries({}, optional={"ratio": st.floats(-1, 2)}),
)


@given(
    st.dictionaries(
        st.sampled_from([*(o.name for o in options.options_of(Sample)), "other"]), _values, max_size=3
    )
)
def test_the_schema_accepts_what_conversion_accepts(data):
    """An integral float such as 8.0 is an integer to JSON Schema; YAML tells them apart and so do we."""
    schema_ok = jsonschema.Draft202012Validator(options.json_schema(Sample)).is_valid(data)
    try:
        options.build(Sample, data)
        ok = True
    except ConversionError:
        ok = False
    if ok:
        assert schema_ok
    elif schema_ok:
        assert isinstance(data.get("bits"), float)
