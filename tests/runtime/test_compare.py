from __future__ import annotations

import json
import math

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.runtime import compare

RTOL, ATOL = 1e-4, 1e-5

shapes = hnp.array_shapes(max_dims=3, max_side=8)
floats = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    shapes,
    elements={"allow_nan": True, "allow_infinity": True},
)
finite = hnp.arrays(np.float32, shapes, elements={"min_value": -1000, "max_value": 1000})


def one(reference, result) -> compare.OutputComparison:
    (output,) = compare.compare({"y": reference}, {"y": result}).outputs
    return output


def expected_agreement(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> bool:
    """The definition, element by element."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    rms = math.sqrt(np.mean(a**2)) if a.size else 0.0
    return bool((np.abs(a - b) <= atol * max(1.0, rms) + rtol * np.abs(a)).all())


@given(floats)
def test_a_result_agrees_with_itself_at_no_tolerance(array):
    output = one(array, array.copy())
    assert output.agrees(0.0, 0.0)
    assert (output.max_abs, output.max_rel, output.sqnr_db, output.cosine) == (0.0, 0.0, math.inf, 1.0)


@given(
    finite,
    st.integers(0, 2**32 - 1),
    st.floats(1e-9, 1.0),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
)
def test_agreement_is_the_elementwise_definition_at_any_tolerance(a, seed, size, rtol, atol):
    random = np.random.default_rng(seed)
    absolute = random.random(a.shape) < 0.5
    b = (a + size * random.standard_normal(a.shape) * np.where(absolute, 1, np.abs(a))).astype(np.float32)
    assert one(a, b).agrees(rtol, atol) == expected_agreement(a, b, rtol, atol)


@given(finite, st.floats(-6, -0.5))
def test_scaled_error_gives_the_sqnr_of_its_scale(array, exponent):
    reference = array.astype(np.float64) + 1.0
    output = one(reference, reference * (1 + 10**exponent))
    if not reference.any():
        assert output.sqnr_db == math.inf
        return
    assert output.sqnr_db == pytest.approx(-20 * exponent, abs=1e-3)
    assert output.max_rel == pytest.approx(10**exponent, rel=1e-6)
    assert output.cosine == pytest.approx(1.0)


@given(finite.filter(lambda a: a.size > 0), st.data(), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_lost_number_is_noticed(array, data, lost):
    broken = array.copy()
    broken.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = lost
    for output in (one(array, broken), one(broken, array)):
        assert not output.agrees(1e9, 1e9)
        assert "1 of" in output.note
        assert (output.max_abs, output.sqnr_db, output.cosine) == (math.inf, -math.inf, 0.0)


def test_the_same_nan_and_infinity_agree_and_do_not_hide_other_errors():
    a = np.array([np.nan, np.inf, -np.inf, 1.0, 2.0], np.float32)
    assert one(a, a.copy()).agrees(0, 0)
    b = a.copy()
    b[4] = 2.5
    output = one(a, b)
    assert not output.agrees(RTOL, ATOL)
    assert (output.max_abs, output.max_rel, output.note) == (0.5, 0.25, "")


def test_opposite_infinities_do_not_agree():
    assert not one(np.array([np.inf]), np.array([-np.inf])).agrees(1e9, 1e9)


def test_a_permutation_of_tiny_elements_in_a_large_tensor_is_noticed():
    """They lie beyond the first piece, and are far below the largest element."""
    a = np.zeros(3 * (1 << 20) + 7, np.float32)
    a[:10] = 0.5
    a[-1000:] = np.linspace(1e-3, 2e-3, 1000)
    b = a.copy()
    b[-1000:] = b[-1000:][::-1]
    output = one(a, b)
    assert output.max_rel < 3e-3
    assert not output.agrees(RTOL, ATOL)
    assert output.agrees(RTOL, 1e-3)


def test_near_zero_elements_are_judged_against_the_tensor_not_themselves():
    a = np.array([1000.0, 0.0], np.float32)
    b = np.array([1000.0, 1e-3], np.float32)
    assert one(a, b).agrees(1e-4, 1e-5)  # rms is 707, so 7e-3 is allowed
    assert not one(a[1:], b[1:]).agrees(1e-4, 1e-5)


def test_figures_by_hand():
    output = one(
        np.array([[3.0, 4.0], [1.0, 0.0]], np.float32), np.array([[3.0, 4.5], [0.0, 0.5]], np.float32)
    )
    assert (output.shape, output.dtype) == ((2, 2), "float32")
    assert output.max_abs == 1.0
    assert output.max_rel == 0.25
    assert output.sqnr_db == pytest.approx(10 * math.log10(26 / 1.5))
    assert output.cosine == pytest.approx(27 / math.sqrt(26 * 29.5))
    assert output.top1_agreement == 0.5


@pytest.mark.parametrize("array", [np.float32(1), np.zeros((3, 1), np.float32), np.zeros((2, 3), np.int64)])
def test_no_top1_without_float_classes(array):
    assert one(np.asarray(array), np.asarray(array)).top1_agreement is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_integers_and_booleans_must_be_equal(dtype):
    a = np.ones(100, dtype)
    b = a.copy()
    b[50] = 0
    assert one(a, a.copy()).agrees(0, 0)
    output = one(a, b)
    assert not output.agrees(1e9, 1e9)
    assert output.note == ""
    assert output.max_abs == 1.0


def test_integers_that_float64_cannot_tell_apart_differ():
    a = np.array([2**62, 5], np.int64)
    assert not one(a, a + np.array([1, 0])).agrees(1, 1)


def test_text_must_be_equal():
    a = np.array(["x", "y"], dtype=object)
    assert one(a, np.array(["x", "y"])).agrees(0, 0)
    output = one(a, np.array(["x", "z"]))
    assert not output.agrees(1, 1)
    assert output.max_abs == 1.0


@pytest.mark.parametrize(
    ("reference", "result", "note"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), "shape [3, 2]"),
        (np.zeros(2, np.float32), np.zeros(2, np.float64), "dtype float64"),
        (np.zeros(2, np.float32), None, "absent"),
        (None, np.zeros(2, np.float32), "absent"),
        (np.zeros(2, np.float32), [np.zeros(2, np.float32)], "sequence"),
    ],
)
def test_a_difference_in_kind_never_agrees_and_says_so(reference, result, note):
    output = one(reference, result)
    assert not output.agrees(1e9, 1e9)
    assert note in output.note
    assert output.to_json()["max_abs"] is None


def test_missing_and_extra_outputs_never_agree():
    x = np.zeros(2, np.float32)
    found = compare.compare({"a": x, "b": None}, {"a": x, "c": x})
    assert [(o.name, o.note, o.agrees(1, 1)) for o in found.outputs] == [
        ("a", "", True),
        ("b", "missing from the result", False),
        ("c", "not in the reference", False),
    ]
    assert not found.agrees(1, 1)


def test_sequences_and_absent_optionals():
    x, y = np.zeros(2, np.float32), np.ones(3, np.float32)
    same = compare.compare({"s": [x, y], "n": None, "e": []}, {"s": [x, y], "n": None, "e": []})
    assert [o.name for o in same.outputs] == ["s[0]", "s[1]", "n", "e"]
    assert same.agrees(0, 0)
    shorter = compare.compare({"s": [x, y]}, {"s": [x]})
    assert [(o.name, o.note) for o in shorter.outputs] == [("s[0]", ""), ("s[1]", "missing from the result")]
    assert not shorter.agrees(1, 1)


def test_maps_compare_keys_and_values():
    found = compare.compare({"m": [{2: 0.5, 1: 0.25}]}, {"m": [{1: 0.25, 2: 0.75}]})
    assert [(o.name, o.agrees(RTOL, ATOL)) for o in found.outputs] == [
        ("m[0].keys", True),
        ("m[0].values", False),
    ]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.complex64])
def test_element_types_beyond_numpy(dtype):
    a = np.array([[1, 2], [3, -4]]).astype(dtype)
    assert one(a, a.copy()).agrees(0, 0)
    output = one(a, np.array([[1, 2], [3, -2]]).astype(dtype))
    assert not output.agrees(RTOL, ATOL)
    assert output.max_abs == 2.0


def test_energies_do_not_overflow():
    a = np.array([1e300, 1e299])
    output = one(a, a * 1.01)
    assert output.sqnr_db == pytest.approx(40.0)
    assert output.cosine == pytest.approx(1.0)
    assert not one(np.array([1.7e308]), np.array([-1.7e308])).agrees(1, 1)


def test_empty_outputs_agree():
    assert one(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)).agrees(0, 0)


def test_nothing_is_left_of_a_zero_reference():
    output = one(np.zeros(3, np.float32), np.full(3, 1e-3, np.float32))
    assert (output.max_rel, output.sqnr_db, output.cosine) == (math.inf, -math.inf, 0.0)


def test_worst_is_the_output_that_needs_the_largest_tolerance():
    x = np.ones(4, np.float32)
    found = compare.compare({"a": x, "b": x, "c": x}, {"a": x, "b": x * 1.01, "c": x * 1.001})
    assert found.worst(RTOL, ATOL).name == "b"
    assert found.worst(RTOL, ATOL).excess(RTOL, ATOL) == pytest.approx(0.01 / 1.1e-4, rel=1e-3)


def test_merge_pools_energies_and_keeps_the_worst():
    a, b = np.array([[3.0, 4.0]], np.float32), np.array([[30.0, 40.0]], np.float32)
    first, second = one(a, np.array([[3.0, 4.1]], np.float32)), one(b, np.array([[41.0, 40.0]], np.float32))
    (merged,) = compare.merge([compare.Comparison((first,)), compare.Comparison((second,))]).outputs
    assert merged.max_abs == second.max_abs
    assert merged.max_rel == second.max_rel
    assert merged.cosine == min(first.cosine, second.cosine)
    assert merged.top1_agreement == 0.5
    assert merged.sqnr_db == pytest.approx(10 * math.log10((25 + 2500) / (0.01 + 121)), rel=1e-5)
    assert not merged.agrees(RTOL, ATOL)


def test_merged_agreement_is_every_samples_own():
    """Pooling first would let a large sample excuse a small one."""
    small = compare.compare({"y": np.ones(4)}, {"y": np.ones(4) + 1e-2})
    large = compare.compare({"y": np.full(4, 1e6)}, {"y": np.full(4, 1e6)})
    assert large.agrees(RTOL, ATOL)
    assert not compare.merge([large, small]).agrees(RTOL, ATOL)


def test_merge_keeps_notes_and_counts_a_broken_sample_as_infinite_noise():
    x = np.ones(2, np.float32)
    fine = compare.compare({"y": x}, {"y": x})
    broken = compare.compare({"y": x}, {"y": x * np.float32(np.nan)})
    (merged,) = compare.merge([fine, broken, broken]).outputs
    assert merged.note == broken.outputs[0].note
    assert merged.sqnr_db == -math.inf


@given(floats, st.integers(0, 2**32 - 1))
def test_json_is_strict(array, seed):
    other = np.random.default_rng(seed).permutation(array.reshape(-1)).reshape(array.shape)
    text = json.dumps(compare.compare({"y": array}, {"y": other}).to_json(), allow_nan=False)
    assert set(json.loads(text)[0]) == {
        "name",
        "shape",
        "dtype",
        "max_abs",
        "max_rel",
        "sqnr_db",
        "cosine",
        "top1_agreement",
        "note",
    }
