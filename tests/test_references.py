"""The framework's outputs: how they are made, kept, and compared."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import io, references
from graphopt.conversion import Exported, Tolerance
from graphopt.errors import InputError, UnsupportedError
from graphopt.import_options import ImportOptions

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch,3] x) => (float[batch,3] y) <float two = {2}> { y = Mul(x, two) }"""


@pytest.fixture
def exported(parse, tmp_path):
    io.save(parse(TEXT), tmp_path / "raw.onnx")

    def make(run, **others) -> Exported:
        return Exported(tmp_path / "raw.onnx", run, {"framework": "1"}, **others)

    return make


def double(feed):
    return {"y": feed["x"] * 2}


def test_every_sample_is_run_by_the_framework(exported):
    made = references.make(exported(double), "framework", ImportOptions())
    assert len(made.feeds) == len(made.outputs) == 3
    assert len({feed["x"].shape[0] for feed in made.feeds}) > 1  # a free axis has several sizes
    for feed, output in zip(made.feeds, made.outputs, strict=True):
        np.testing.assert_array_equal(output["y"], feed["x"] * 2)
    assert made.notes == []


def test_the_same_seed_gives_the_same_inputs(exported):
    feeds = [references.make(exported(double), "f", ImportOptions(seed=s)).feeds[0]["x"] for s in (1, 1, 2)]
    assert np.array_equal(feeds[0], feeds[1])
    assert not np.array_equal(feeds[0], feeds[2])


def test_sizes_that_only_the_exported_model_takes_are_noted(exported):
    sizes = set()

    def one_size(feed):
        sizes.add(feed["x"].shape[0])
        if len(sizes) > 1:
            raise ValueError("one size only")
        return double(feed)

    made = references.make(exported(one_size), "framework", ImportOptions())
    assert 1 <= len(made.feeds) < 3
    assert any("framework cannot run its own model at batch" in note for note in made.notes)
    assert all("one size only" in note for note in made.notes)


def test_a_framework_that_runs_nothing_is_an_error(exported):
    def broken(feed):
        raise RuntimeError("no kernel")

    with pytest.raises(UnsupportedError, match="framework runs the model on none of the drawn inputs: no"):
        references.make(exported(broken), "framework", ImportOptions())


def test_other_ways_to_run_it_decide_nothing(exported):
    others = {"delegate": lambda feed: {"y": feed["x"] * 3}, "same": double}
    made = references.make(exported(double, others=others), "framework", ImportOptions())
    assert len(made.notes) == 1
    assert made.notes[0].startswith("delegate gives other results")


def test_saved_and_loaded(tmp_path):
    made = references.References(
        [{"a/b:0": np.arange(3), "c": np.float16([1])}], [{"": np.array(True)}], ["a note"]
    )
    references.save(made, tmp_path / "r.npz")
    loaded = references.load(tmp_path / "r.npz")
    assert list(loaded.feeds[0]) == ["a/b:0", "c"]
    assert loaded.feeds[0]["c"].dtype == np.float16
    assert loaded.outputs[0][""].item() is True
    assert loaded.notes == ["a note"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"something else"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(InputError, match="no references in it"):
        references.load(tmp_path / "r.npz")


def differs(a, b, **tolerance):
    return references.differs([{"y": np.asarray(a)}], [{"y": np.asarray(b)}], Tolerance(**tolerance))


def test_floats_agree_relative_to_the_largest_element():
    assert differs(np.float32([1, 2]), np.float32([1, 2.0001])) == ""
    assert differs(np.float32([0, 2]), np.float32([1e-4, 2])) == ""
    assert differs(np.float32([1, 2]), np.float32([1, 2.01])) == "output 'y' differs by 0.005 relative"
    assert differs(np.float32([1, 2]), np.float32([1, 2.0001]), rtol=1e-5).endswith("relative")
    assert "dtype" in differs(np.float32([1]), np.float64([1]))
    assert "missing" in references.differs([{"y": np.zeros(1)}], [{}], Tolerance())
    assert "not the same infinity, NaN or number" in differs(np.float32([1, 2]), np.float32([1, np.nan]))


def test_small_outputs_are_compared_as_well():
    assert differs(np.float32([1e-3]), np.float32([1.001e-3])).endswith("relative")
    assert differs(np.float32([1e-5]), np.float32([1.001e-5])) == ""  # less than the last place of 1
    assert differs(np.float64([1e-5]), np.float64([1.001e-5])).endswith("relative")


def test_integers_are_equal():
    assert differs(np.int64([1, 2]), np.int64([1, 2])) == ""
    assert differs(np.int64([1, 20000]), np.int64([1, 20001])).endswith("relative")
    assert differs(np.array([True]), np.array([False])).endswith("relative")


def test_quantized_outputs_agree_within_a_step_on_average():
    steps = {"y": 1.0}
    a = np.int8([[5, 0, -3, 9]])
    assert differs(a, np.int8([[6, 1, -4, 8]]), steps=steps) == ""
    assert "differs by 1.5 quantization steps" in differs(a, np.int8([[7, 1, -4, 7]]), steps=steps)
    assert differs(a, a.astype(np.float32), steps=steps) == "output 'y' is float32[1, 4]"
    assert references.differs([{"y": a}], [{}], Tolerance(steps=steps)) == "output 'y' is missing"


def test_quantized_outputs_have_the_same_largest_element():
    steps = {"y": 1.0}
    assert "another largest element in 1 of 1 rows" in differs(
        np.int8([[9, 7, 0, 0, 0]]), np.int8([[8, 9, 0, 0, 0]]), steps=steps
    )
    # Within a step of each other the two are a tie, which rounding decides.
    assert differs(np.int8([[9, 8, 0, 0, 0]]), np.int8([[8, 9, 0, 0, 0]]), steps=steps) == ""


def test_nan_is_no_agreement():
    assert "differs by nan" in differs(np.float32([[1, 2]]), np.float32([[1, np.nan]]), steps={"y": 0.1})
