"""Judge two results of the same inputs: how far apart they are, and whether they are the same function.

For an output with reference ``a`` and result ``b``, over the elements that are finite in both:

- ``max_abs`` = max |a - b|
- ``max_rel`` = max |a - b| / max |a|, normwise, so that near-zero elements do not inflate it
- ``sqnr_db`` = 10 log10(sum a² / sum (a - b)²), infinite where they are equal
- ``cosine`` = sum a b / sqrt(sum a² · sum b²)
- ``top1_agreement`` = the share of rows (along the last axis) with the same arg-max, for float outputs
  whose last axis has at least two elements

They agree within ``rtol`` and ``atol`` when every float element has |a - b| <= atol · max(1, rms(a)) +
rtol · |a|, where the rms runs over the finite elements of the output, and every integer, boolean or text
is equal. NaN equals NaN and an infinity the same infinity; any other non-finite element never agrees,
nor does a missing output or one of another shape or dtype: these have a note, and the worst figures.

All is computed in float64, in pieces, so that large outputs need little memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.runtime._error_sums import Evidence, Sums, decibels, ratio

__all__ = ["Comparison", "OutputComparison", "compare", "merge"]

#: Elements that are compared at once: few enough for the caches of a processor.
_CHUNK = 1 << 16
#: Stands for a value that one side does not have at all, not even as an absent optional (None).
_MISSING = object()


@dataclass(frozen=True)
class OutputComparison:
    """How far one output is from its reference; the module says what the figures mean.

    Attributes:
        name: The graph output; elements of sequences are ``name[0]``, ``name[1]`` …
        shape: Shape of the reference.
        dtype: Dtype of the reference, as numpy names it.
        max_abs: Largest absolute difference; for text, 1 where anything differs.
        max_rel: Largest difference relative to the largest reference element.
        sqnr_db: Signal to noise ratio in dB, infinite where all is equal.
        cosine: Cosine similarity, from -1 to 1.
        top1_agreement: Share of rows with the same arg-max; None where the output has no classes.
        note: Why no tolerance could cover the difference; empty otherwise.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    note: str = ""
    _evidence: tuple[Evidence, ...] = field(default=(), repr=False)

    def excess(self, rtol: float, atol: float) -> float:
        """The factor by which the tolerance must grow to cover this output; at most 1 where it agrees."""
        return max((e.excess(rtol, atol) for e in self._evidence), default=0.0)

    def agrees(self, rtol: float, atol: float) -> bool:
        """Whether the output is within the tolerance of its reference."""
        return self.excess(rtol, atol) <= 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is infinite becomes None."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        plain["shape"] = list(self.shape)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


@dataclass(frozen=True)
class Comparison:
    """How far all outputs of a model are from their references, in the order of the reference."""

    outputs: tuple[OutputComparison, ...]

    def agrees(self, rtol: float, atol: float) -> bool:
        """Whether every output is within the tolerance of its reference."""
        return all(output.agrees(rtol, atol) for output in self.outputs)

    def worst(self, rtol: float, atol: float) -> OutputComparison:
        """The output that needs the largest tolerance (the first of equals)."""
        return max(self.outputs, key=lambda output: output.excess(rtol, atol))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data: one mapping for each output."""
        return [output.to_json() for output in self.outputs]


def compare(reference: Mapping[str, Any], result: Mapping[str, Any]) -> Comparison:
    """Compare the outputs of one run with their references, both by name.

    Args:
        reference: What is right: arrays, lists of arrays (sequences), None (an absent optional).
        result: What is judged.
    """
    names = dict.fromkeys((*reference, *result))
    leaves = (_leaves(name, reference.get(name, _MISSING), result.get(name, _MISSING)) for name in names)
    return Comparison(tuple(_compare(*leaf) for leaf in itertools.chain.from_iterable(leaves)))


def _leaves(name: str, reference: Any, result: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of single values; elements of sequences and maps pair up by position and by column."""
    if isinstance(reference, list | tuple) and isinstance(result, list | tuple):
        if not reference and not result:
            yield name, None, None
        pairs = itertools.zip_longest(reference, result, fillvalue=_MISSING)
        for index, (first, second) in enumerate(pairs):
            yield from _leaves(f"{name}[{index}]", first, second)
    elif isinstance(reference, dict) and isinstance(result, dict):
        for column in ("keys", "values"):
            yield f"{name}.{column}", _column(reference, column), _column(result, column)
    else:
        yield name, reference, result


def _column(value: dict[Any, Any], column: str) -> np.ndarray:
    """The keys or values of a map (as ai.onnx.ml's ZipMap makes), in the order of the keys."""
    keys = sorted(value)
    return np.asarray(keys if column == "keys" else [value[key] for key in keys])


def _compare(name: str, reference: Any, result: Any) -> OutputComparison:
    if reference is None and result is None:
        return OutputComparison(name, (), _kind(None), 0.0, 0.0, math.inf, 1.0, None)
    note = _difference_in_kind(reference, result)
    if not note:
        return _compare_arrays(name, np.asarray(reference), np.asarray(result))
    described = result if reference is _MISSING else reference
    shape, dtype = (), _kind(described)
    if _is_tensor(described):
        shape, dtype = np.shape(described), str(np.asarray(described).dtype)
    return _incomparable(OutputComparison(name, shape, dtype, 0.0, 0.0, 0.0, 0.0, None), note)


def _difference_in_kind(reference: Any, result: Any) -> str:
    """Why two values cannot be compared at all; empty where they can."""
    if result is _MISSING:
        return "missing from the result"
    if reference is _MISSING:
        return "not in the reference"
    if not _is_tensor(reference) or not _is_tensor(result):
        return f"is {_kind(result)}, the reference is {_kind(reference)}"
    first, second = np.asarray(reference), np.asarray(result)
    if first.dtype != second.dtype and not (_is_text(first) and _is_text(second)):
        return f"has dtype {second.dtype}, the reference {first.dtype}"
    if first.shape != second.shape:
        return f"has shape {list(second.shape)}, the reference {list(first.shape)}"
    return ""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _kind(value: Any) -> str:
    if value is None:
        return "absent"
    return "a tensor" if _is_tensor(value) else "a map" if isinstance(value, dict) else "a sequence"


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OUST"


def _is_float(array: np.ndarray) -> bool:
    if array.dtype.kind in "fc":
        return True
    return array.dtype.kind == "V" and ir.DataType.from_numpy(array.dtype).is_floating_point()


def _incomparable(output: OutputComparison, note: str) -> OutputComparison:
    """The worst figures there are."""
    return replace(
        output,
        max_abs=math.inf,
        max_rel=math.inf,
        sqnr_db=-math.inf,
        cosine=0.0,
        note=note,
        _evidence=(Evidence(noise=math.inf, broken=True),),
    )


def _compare_arrays(name: str, reference: np.ndarray, result: np.ndarray) -> OutputComparison:
    sums = Sums(_scale(reference, result))
    exact = not _is_float(reference)
    with np.errstate(over="ignore", invalid="ignore"):  # differences of the largest float64
        for first, second in _chunks(reference, result):
            sums.add(first, second, exact)
    output = OutputComparison(
        name,
        reference.shape,
        str(reference.dtype),
        max_abs=sums.max_abs,
        max_rel=ratio(sums.max_abs, sums.max_reference),
        sqnr_db=decibels(sums.signal, sums.noise),
        cosine=sums.cosine(),
        top1_agreement=None if exact else _top1_agreement(reference, result),
        _evidence=(sums.evidence(),),
    )
    if sums.not_finite:
        share = f"{sums.not_finite} of {reference.size}"
        return _incomparable(output, f"{share} elements are not the same infinity, NaN or number")
    return output


def _chunks(reference: np.ndarray, result: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Flat pieces of both; text becomes ones, and ones where it is equal; complex numbers become pairs."""
    first, second = reference.reshape(-1), result.reshape(-1)
    if first.dtype.kind == "c":
        real = np.float32 if first.dtype == np.complex64 else np.float64
        first, second = first.view(real), second.view(real)
    for start in range(0, first.size, _CHUNK):
        a, b = first[start : start + _CHUNK], second[start : start + _CHUNK]
        yield (np.ones(a.size, np.int8), (a == b).astype(np.int8)) if _is_text(first) else (a, b)


def _scale(reference: np.ndarray, result: np.ndarray) -> float:
    """A divisor that keeps squares of float64 in range; all other types fit as they are."""
    if reference.dtype not in (np.float64, np.complex128):
        return 1.0
    largest = 0.0
    for first, second in _chunks(reference, result):
        values = np.abs(np.concatenate((first, second)))
        largest = max(largest, float(values.max(initial=0.0, where=np.isfinite(values))))
    return largest or 1.0


def _top1_agreement(reference: np.ndarray, result: np.ndarray) -> float | None:
    if reference.ndim == 0 or reference.shape[-1] < 2 or reference.size == 0 or reference.dtype.kind == "c":
        return None
    return float(np.mean(_top1(reference) == _top1(result)))


def _top1(array: np.ndarray) -> np.ndarray:
    plain = array if array.dtype.kind == "f" else array.astype(np.float32)
    return np.asarray(plain.argmax(axis=-1))


def merge(comparisons: Sequence[Comparison]) -> Comparison:
    """One comparison for several samples of the same model.

    Per output: the worst max_abs, max_rel and cosine, the SQNR of the pooled energies, the mean top-1
    agreement. It agrees where every sample does.
    """
    outputs: dict[str, list[OutputComparison]] = {}
    for comparison in comparisons:
        for output in comparison.outputs:
            outputs.setdefault(output.name, []).append(output)
    return Comparison(tuple(_merge(same) for same in outputs.values()))


def _merge(samples: list[OutputComparison]) -> OutputComparison:
    top1 = [s.top1_agreement for s in samples if s.top1_agreement is not None]
    evidence = tuple(e for s in samples for e in s._evidence)
    return replace(
        samples[0],
        max_abs=max(s.max_abs for s in samples),
        max_rel=max(s.max_rel for s in samples),
        sqnr_db=_pooled_sqnr(evidence),
        cosine=min(s.cosine for s in samples),
        top1_agreement=sum(top1) / len(top1) if top1 else None,
        note="; ".join(dict.fromkeys(s.note for s in samples if s.note)),
        _evidence=evidence,
    )


def _pooled_sqnr(evidence: Sequence[Evidence]) -> float:
    if any(math.isinf(e.noise) for e in evidence):
        return -math.inf
    largest = max((e.scale for e in evidence), default=0.0) or 1.0
    weights = [(e.scale / largest) ** 2 for e in evidence]
    signal, noise = (
        sum(weight * part for weight, part in zip(weights, parts, strict=True))
        for parts in ([e.signal for e in evidence], [e.noise for e in evidence])
    )
    return decibels(signal, noise)
