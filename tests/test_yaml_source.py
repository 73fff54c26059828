"""YAML with places: YAML 1.2 scalars, limits, and where things stand."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graphopt import limits, yaml_source
from graphopt.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),  # YAML 1.1 would say False
        ("on", "on"),
        ("true", True),
        ("1e-4", 1e-4),  # YAML 1.1 would say text
        ("1.0e-4", 1e-4),
        ("012", 12),
        ("0x10", 16),
        ("0o17", 15),
        ("-3", -3),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),  # YAML 1.1 would say 90
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    data = yaml_source.parse(f"key: {text}", "r.yaml").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_places_of_keys_and_values():
    document = yaml_source.parse("version: 1\npasses:\n  - fuse:\n      exclude: [gelu, x]\n", "r.yaml")
    path = ("passes", 0, "fuse", "exclude")
    assert str(document.locate(path, at_key=True)) == "r.yaml:4:7"
    assert str(document.locate((*path, 1))) == "r.yaml:4:23"
    assert str(document.locate((*path, 1, "nothing", "here"))) == "r.yaml:4:23"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "r.yaml:2:1: 'a' is given twice"),
        ("a: [1, 2", "r.yaml:1:9: not YAML"),
        ("a: !!python/object:os.system x", "is not allowed"),
        ("? [1]\n: 2", "r.yaml:1:3: a key must be text"),
        ("a: *missing", "r.yaml:1:4: not YAML: found undefined alias"),
        ("", "r.yaml:1:1: the recipe is empty"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: &x [*x]", "nested deeper than"),
        ("a: \x00", "not YAML"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(RecipeError) as caught:
        yaml_source.parse(text, "r.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_depth_size_and_aliases_are_limited():
    with pytest.raises(RecipeError, match="RECIPE_DEPTH"):
        yaml_source.parse("[" * 5000 + "]" * 5000, "r.yaml")
    with pytest.raises(RecipeError, match="RECIPE_BYTES"):
        yaml_source.parse("#" * (limits.RECIPE_BYTES + 1), "r.yaml")
    bomb = "a: &a [x]\n" + "".join(f"k{i}: *a\n" for i in range(limits.RECIPE_ALIASES + 1))
    with pytest.raises(RecipeError, match="RECIPE_ALIASES"):
        yaml_source.parse(bomb, "r.yaml")


def test_aliases_within_the_limit_are_expanded():
    assert yaml_source.parse("a: &a [x]\nb: *a", "r").data == {"a": ["x"], "b": ["x"]}


# PyYAML writes these three line breaks as they are, and reads them as spaces. Text such as 0E0 it writes
# without quotes, since YAML 1.1 takes it for text; YAML 1.2, which is read here, takes it for a number.
_NUMBER = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")
_text = st.text(st.characters(exclude_characters="\x85\u2028\u2029"), max_size=8).filter(
    lambda text: not _NUMBER.fullmatch(text)
)
_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _text)
_data = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)


@given(_data)
def test_any_plain_data_comes_back(data):
    text = yaml.safe_dump({"root": data}, allow_unicode=True)
    assert yaml_source.parse(text, "r").data == {"root": data}


@given(st.text(max_size=60))
def test_any_text_gives_data_or_one_clear_error(text):
    try:
        yaml_source.parse(text, "r.yaml")
    except RecipeError as error:
        assert "\n" not in str(error)
