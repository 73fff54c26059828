"""The models of the node suite: the official cases as they are, with constant inputs, and random graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import _checks
import numpy as np
import onnx
import onnxruntime as ort
from _random_graphs import SIZES, random_graph
from _random_ops import OPERATORS
from onnx import numpy_helper

__all__ = ["Case", "Run", "difference", "is_repeatable", "official", "randoms", "session"]

#: Attempts at a random graph that runs, is finite, and on which both engines agree.
_ATTEMPTS = 200
#: How closely the two engines must agree, in units of the tolerance.
_AGREEMENT = 0.1
#: Larger numbers overflow soon.
_LARGEST = 1e4
#: Tolerances of coarser types in units of that of float32.
_COARSE = {"float16": 32.0, "bfloat16": 256.0}

Value = Any  # an array, a list of values, or None
Feeds = dict[str, Value]
Run = Callable[[Feeds], list[Value]]


@dataclass
class Case:
    """A model with inputs and what onnxruntime, its optimizer off, makes of them.

    Attributes:
        skipped: Why the model is no case; empty where it is one.
    """

    name: str
    model: onnx.ModelProto
    runs: list[tuple[Feeds, list[Value]]]
    skipped: str = ""


def session(model: onnx.ModelProto) -> Run:
    """The model in onnxruntime, its optimizer off, on one thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in made.get_inputs()}
    return lambda feeds: list(made.run(None, {k: v for k, v in feeds.items() if k in wanted}))


def difference(reference: Value, result: Value) -> float:
    """The largest gap in units of its tolerance: at most 1 is equal; infinite where all else differs."""
    if isinstance(reference, list) and isinstance(result, list) and len(reference) == len(result):
        return max((difference(a, b) for a, b in zip(reference, result, strict=True)), default=0.0)
    if reference is None or result is None:
        return 0.0 if reference is result else float("inf")
    a, b = np.asarray(reference), np.asarray(result)
    if a.dtype != b.dtype or a.dtype.kind == "c":
        return 0.0 if a.dtype == b.dtype and np.allclose(a, b, 1e-4, 1e-5, equal_nan=True) else float("inf")
    unit = _COARSE.get(a.dtype.name, 1.0)
    if a.dtype.kind == "V" or a.dtype.name == "bfloat16":
        a, b = (x.astype(np.float32) if x.dtype.name == "bfloat16" else x for x in (a, b))
    return _checks.difference(a, b).margin / unit


def is_repeatable(run: Run, feeds: Feeds) -> list[Value] | None:
    """What two runs give; None where they differ, since something in the model is random."""
    first, second = run(feeds), run(feeds)
    same = all(difference(a, b) == 0 for a, b in zip(first, second, strict=True))
    return first if same else None


# The official cases.


def official(indices: Sequence[int], *, constant_inputs: bool) -> Iterator[Callable[[], Case]]:
    """The official cases at ``indices``, made when called; indices behind the last are none."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [c for c in collect_testcases(None) if c.model is not None]
    for case in cases[indices[0] : indices[-1] + 1]:
        yield lambda c=case: _official(c, constant_inputs=constant_inputs)  # type: ignore[misc]


def _official(case: Any, *, constant_inputs: bool) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    runs: list[Any] = [
        (_feeds(model, inputs), [_plain(x) for x in outputs]) for inputs, outputs in case.data_sets or ()
    ]
    if not runs:
        return Case(case.name, model, [], "no data")
    if constant_inputs:
        feeds = runs[0][0]
        if not _fix_inputs(model, feeds):
            return Case(case.name, model, [], "has no second input that a constant can replace")
        runs = [(feeds, None)]
    return _with_truth(case.name, model, runs, case.rtol, case.atol)


def _feeds(model: onnx.ModelProto, inputs: Sequence[Value]) -> Feeds:
    return {v.name: _plain(x) for v, x in zip(model.graph.input, inputs, strict=False)}


def _plain(value: Value) -> Value:
    """Types that numpy lacks come as protos, some arrays without axes as numbers."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _with_truth(
    name: str, model: onnx.ModelProto, runs: Sequence[tuple[Feeds, Any]], rtol: float, atol: float
) -> Case:
    case = Case(name, model, [])
    try:
        run = session(model)
        for feeds, expected in runs:
            outputs = is_repeatable(run, feeds)
            if outputs is None:
                case.skipped = "random"
                break
            if expected is not None and not _agrees(expected, outputs, rtol, atol):
                case.skipped = "onnxruntime gives something else than the suite expects"
                break
            case.runs.append((feeds, outputs))
    except (*_checks.ORT_ERRORS, ValueError, TypeError, RuntimeError) as error:
        case.skipped = f"onnxruntime: {str(error).splitlines()[0][:120]}"
    return case


def _agrees(expected: Sequence[Value], outputs: Sequence[Value], rtol: float, atol: float) -> bool:
    if len(expected) != len(outputs):
        return False
    for a, b in zip(expected, outputs, strict=True):
        if isinstance(a, list) or isinstance(b, list):
            if not (isinstance(a, list) and isinstance(b, list) and _agrees(a, b, rtol, atol)):
                return False
        elif a is None or b is None:
            if a is not b:
                return False
        elif not _close(np.asarray(a), np.asarray(b), rtol, atol):
            return False
    return True


def _close(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "OSU":
        return a.tolist() == b.tolist()
    if a.dtype.kind == "V" or a.dtype.name == "bfloat16":
        a, b = a.astype(np.float32), b.astype(np.float32)
    return bool(np.allclose(b, a, rtol, atol, equal_nan=True))


def _fix_inputs(model: onnx.ModelProto, feeds: Feeds) -> bool:
    """Make initializers of all inputs but the first; False where none can be."""
    fixed = [
        v for v in model.graph.input[1:] if v.type.HasField("tensor_type") and feeds.get(v.name) is not None
    ]
    for value in fixed:
        array = np.asarray(feeds.pop(value.name))
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, 4)  # before, an initializer had to be an input too
    return bool(fixed)


# Random graphs.


def randoms(seed: int, indices: Sequence[int]) -> Iterator[Callable[[], Case]]:
    """Random graphs that are valid cases, one for each index."""
    for index in indices:
        yield lambda i=index: _random(seed, i)  # type: ignore[misc]


def _random(seed: int, index: int) -> Case:
    for attempt in range(_ATTEMPTS):
        graph = random_graph((seed, index, attempt), OPERATORS)
        name = f"random-{seed}-{index}-{attempt}"
        try:
            onnx.checker.check_model(graph.model)
            run = session(graph.model)
            feeds = graph.feeds(SIZES[0])
            runs = [(feeds, run(feeds))]
        except (*_checks.ORT_ERRORS, onnx.checker.ValidationError):
            continue
        if not _is_truth(graph.model, *runs[0]):
            continue
        for size in SIZES[1:]:
            feeds = graph.feeds(size)
            try:
                outputs = run(feeds)
            except _checks.ORT_ERRORS:  # a graph may hold at one size only
                continue
            if _is_truth(graph.model, feeds, outputs):
                runs.append((feeds, outputs))
        return Case(name, graph.model, runs)
    return Case(f"random-{seed}-{index}", onnx.ModelProto(), [], "no valid graph found")


def _is_truth(model: onnx.ModelProto, feeds: Feeds, outputs: Sequence[np.ndarray]) -> bool:
    """Whether the numbers are finite, and the reference evaluator agrees.

    It must agree much closer than a result has to: graphs that amplify rounding (a LayerNormalization of
    nearly equal numbers) cannot be judged. Where it fails, having gaps, onnxruntime's word counts.
    """
    floats = [x for x in outputs if x.dtype.kind == "f"]
    if not all(np.isfinite(x).all() and (not x.size or np.abs(x).max() < _LARGEST) for x in floats):
        return False
    from onnx.reference import ReferenceEvaluator

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            others = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # noqa: BLE001 (whatever it raises, it has no opinion)
        return True
    gaps = [difference(a, np.asarray(b)) for a, b in zip(outputs, others, strict=True)]
    return max(gaps, default=0.0) <= _AGREEMENT
