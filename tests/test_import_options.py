"""What a user may say about an import."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import InputError
from graphopt.import_options import ImportOptions, InputSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("x=float32[batch,3,224,224]", InputSpec("x", "float32", ("batch", 3, 224, 224))),
        (" ids = int64[ 1 , seq ] ".replace(" = ", "="), InputSpec("ids", "int64", (1, "seq"))),
        ("scalar=float32[]", InputSpec("scalar", "float32", ())),
        ("a/b:0=int8[2]", InputSpec("a/b:0", "int8", (2,))),
    ],
)
def test_an_input_as_it_is_written(text, spec):
    assert InputSpec.parse(text) == spec


@pytest.mark.parametrize(
    "text", ["x", "x=float32", "x=[1]", "=float32[1]", "x=float32[-1]", "x=float32[1,,2]", "x=float32[1"]
)
def test_what_is_not_an_input(text):
    with pytest.raises(InputError, match=r"write it as name=float32\[batch,3,224,224\]"):
        InputSpec.parse(text)


@given(
    st.builds(
        ImportOptions,
        inputs=st.lists(
            st.builds(
                InputSpec,
                st.text(min_size=1),
                st.sampled_from(["float32", "int64"]),
                st.lists(st.integers(0, 9) | st.text(min_size=1), max_size=3).map(tuple),
            ),
            max_size=2,
        ).map(tuple),
        weights=st.none() | st.text(),
        custom_objects=st.lists(st.text(), max_size=2).map(tuple),
        allow_code=st.booleans(),
    )
)
def test_options_survive_the_way_to_the_child(options):
    assert ImportOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
