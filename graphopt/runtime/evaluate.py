"""Run a model: onnxruntime with its optimizer off is the truth, the ONNX reference evaluator the fallback.

Weights are never serialized: onnxruntime maps data files itself and is handed the tensors in memory. A
model whose weights pass :data:`graphopt.limits.SEGMENT_WEIGHTS` runs in segments of ``SEGMENT_PIECE``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import limits
from graphopt.errors import UnsupportedError
from graphopt.runtime import segments
from graphopt.runtime._onnxruntime import InputsRefused, NoKernelError, OrtSession, Settings, first_line
from graphopt.runtime._weights import Structure

__all__ = ["Engine", "Evaluation", "InputsRefused", "Session", "Structure", "first_line", "run"]

Engine = Literal["onnxruntime", "reference"]
Feed = Mapping[str, Any]
Outputs = dict[str, Any]

#: What the reference evaluator raises on models or inputs that do not fit; it has no error class of its own.
_REFERENCE_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    ImportError,
)


@dataclass(frozen=True)
class Evaluation:
    """What a model made of some inputs.

    Attributes:
        outputs: For each feed the graph outputs by name: arrays, lists of arrays for sequences, None for
            an absent optional.
        engine: What ran the model.
        reason: Why that was not onnxruntime; empty where it was.
    """

    outputs: list[dict[str, np.ndarray]]
    engine: Engine
    reason: str = ""


class Session:
    """A model ready to run many times, at any sizes that it takes. Close it, or use it in a ``with``.

    The model must not be changed while the session is open. ``segmented`` tells whether it runs in segments,
    so that every run reads the weights anew.

    Args:
        model: The model, or its structure, which is then shared and must not be changed.
        optimize: Whether onnxruntime's graph optimizations are on.
        threads: Threads inside an operator; None takes as many as the size of the model asks for.
        segment_weights: Bytes of weights above which the model runs segment by segment.

    Raises:
        UnsupportedError: No engine can load the model.
    """

    def __init__(
        self,
        model: ir.Model | Structure,
        *,
        optimize: bool = False,
        threads: int | None = None,
        segment_weights: int = limits.SEGMENT_WEIGHTS,
    ) -> None:
        self._structure = model if isinstance(model, Structure) else Structure.of(model)
        self._limit = min(segment_weights, limits.SEGMENT_PIECE)
        self.segmented = self._structure.weight_bytes() > segment_weights
        self._settings = Settings(optimize, threads, lean=self.segmented)
        self._whole: OrtSession | None = None
        self._reference: _Reference | None = None
        #: Why onnxruntime does not run the model; empty where it does.
        self.reason = ""
        if not self.segmented:
            try:
                self._whole = OrtSession(self._structure, self._settings)
            except NoKernelError as error:
                self._fall_back(error)

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return "onnxruntime" if self._reference is None else "reference"

    def run(self, feed: Feed) -> Outputs:
        """The graph outputs by name, for one set of inputs.

        Raises:
            InputsRefused: The model does not run on these inputs.
            UnsupportedError: No engine can run the model.
        """
        return self.run_all([feed])[0]

    def run_all(self, feeds: Sequence[Feed]) -> list[Outputs]:
        """As :meth:`run` for several feeds; with segments, the weights are read once for all of them."""
        for feed in feeds:
            self._check_names(feed)
        feeds = [{name: _as_arrays(value) for name, value in feed.items()} for feed in feeds]
        if self._reference is None:
            try:
                return self._run_onnxruntime(feeds)
            except NoKernelError as error:
                self._fall_back(error)
        assert self._reference is not None
        return [self._reference.run(feed) for feed in feeds]

    def _run_onnxruntime(self, feeds: Sequence[Feed]) -> list[Outputs]:
        if self.segmented:
            return segments.run(self._structure, feeds, self._settings, self._limit)
        assert self._whole is not None, "the session is closed"
        return [self._whole.run(feed) for feed in feeds]

    def _check_names(self, feed: Feed) -> None:
        known = {value.name for value in self._structure.proto.graph.input}
        missing = sorted(known - set(feed) - set(self._structure.tensors))
        unknown = sorted(set(feed) - known)
        if missing or unknown:
            listed = {"missing": missing, "unknown": unknown}
            parts = "; ".join(f"{what}: {', '.join(names)}" for what, names in listed.items() if names)
            raise InputsRefused(f"the inputs do not match the model's ({parts})")

    def _fall_back(self, reason: NoKernelError) -> None:
        self._whole = None
        self.reason = str(reason)
        if self._structure.weight_bytes() > limits.PROTOBUF_MAX:
            raise UnsupportedError(str(reason)) from reason
        try:
            self._reference = _Reference(self._structure)
        except _REFERENCE_ERRORS as error:
            raise UnsupportedError(f"{reason}; nor does onnx.reference: {first_line(error)}") from reason

    def close(self) -> None:
        """Free the memory; the session cannot run any more."""
        self._whole = None
        self._reference = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reference:
    """The ONNX reference evaluator: numpy, slow, complete."""

    def __init__(self, structure: Structure) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(structure.with_all_data())

    def run(self, feed: Feed) -> Outputs:
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = self._evaluator.run(None, dict(feed))
        except _REFERENCE_ERRORS as error:
            raise InputsRefused(f"the model does not run on these inputs: {first_line(error)}") from error
        return dict(zip(self._evaluator.output_names, map(_as_arrays, made), strict=True))


def _as_arrays(value: Any) -> Any:
    """Scalars as arrays; sequences, maps and absent optionals as they are."""
    return np.asarray(value) if isinstance(value, np.generic | float | int) else value


def run(
    model: ir.Model | Structure,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    optimize: bool = False,
    threads: int | None = None,
    segment_weights: int = limits.SEGMENT_WEIGHTS,
) -> Evaluation:
    """Run ``model`` on every feed (arrays by input name); see :class:`Session` for the arguments.

    Raises:
        InputsRefused: The model is loaded, but one of the feeds does not fit it.
        UnsupportedError: No engine can run the model.
    """
    with Session(model, optimize=optimize, threads=threads, segment_weights=segment_weights) as session:
        outputs = session.run_all(feeds)
        return Evaluation(outputs, session.engine, session.reason)
