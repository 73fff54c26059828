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

__all__ = ["Comparison", "OutputComparison", "compare", "merge"]

#: Elements that are compared at once.
_CHUNK = 1 << 20
#: Stands for a value that one side does not have at all, not even as an absent optional (None).
_MISSING = object()


@dataclass(frozen=True)
class _Evidence:
    """What a judgement at any tolerance, and pooling over samples, need to know of one pair of arrays.

    Attributes:
        hull: Corners (|a|, |a - b|) of the upper hull of all float elements' errors: a tolerance that is
            linear in |a| holds for every element when it holds for these.
        rms: Root mean square of the finite elements of the reference.
        scale: What the energies were divided by, squared, so that they cannot overflow.
        signal: Sum of a² in units of scale².
        noise: Sum of (a - b)² in units of scale².
        broken: Something differs that no tolerance covers.
    """

    hull: tuple[tuple[float, float], ...] = ()
    rms: float = 0.0
    scale: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    broken: bool = False

    def excess(self, rtol: float, atol: float) -> float:
        """The factor by which the tolerance must grow to cover every element."""
        if self.broken:
            return math.inf
        allowed = atol * max(1.0, self.rms)
        return max((_ratio(error, allowed + rtol * size) for size, error in self.hull), default=0.0)


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
    _evidence: tuple[_Evidence, ...] = field(default=(), repr=False)

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
        return OutputComparison(name, (), "none", 0.0, 0.0, math.inf, 1.0, None)
    note = _difference_in_kind(reference, result)
    if note:
        known = reference is not None and reference is not _MISSING
        array = np.asarray(reference if known else result)
        return _incomparable(OutputComparison(name, array.shape, str(array.dtype), 0, 0, 0, 0, None), note)
    return _compare_arrays(name, np.asarray(reference), np.asarray(result))


def _difference_in_kind(reference: Any, result: Any) -> str:
    """Why two values cannot be compared at all; empty where they can."""
    if result is _MISSING:
        return "missing from the result"
    if reference is _MISSING:
        return "not in the reference"
    kinds = [_kind(reference), _kind(result)]
    if kinds[0] != kinds[1]:
        return f"is {kinds[1]}, the reference is {kinds[0]}"
    first, second = np.asarray(reference), np.asarray(result)
    if first.dtype != second.dtype and not (_is_text(first) and _is_text(second)):
        return f"has dtype {second.dtype}, the reference {first.dtype}"
    if first.shape != second.shape:
        return f"has shape {list(second.shape)}, the reference {list(first.shape)}"
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "absent"
    return {list: "a sequence", tuple: "a sequence", dict: "a map"}.get(type(value), "a tensor")


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OUST"


def _is_float(array: np.ndarray) -> bool:
    if array.dtype.kind in "fc":
        return True
    return array.dtype.kind == "V" and ir.DataType.from_numpy(array.dtype).is_floating_point()


def _incomparable(output: OutputComparison, note: str) -> OutputComparison:
    """The worst figures there are."""
    evidence = _Evidence(noise=math.inf, broken=True)
    worst = {"max_abs": math.inf, "max_rel": math.inf, "sqnr_db": -math.inf, "cosine": 0.0}
    return replace(output, **worst, note=note, _evidence=(evidence,))


def _compare_arrays(name: str, reference: np.ndarray, result: np.ndarray) -> OutputComparison:
    sums = _Sums(_scale(reference, result))
    exact = not _is_float(reference)
    for first, second in _chunks(reference, result):
        sums.add(first, second, exact)
    output = OutputComparison(
        name,
        reference.shape,
        str(reference.dtype),
        max_abs=sums.max_abs,
        max_rel=_ratio(sums.max_abs, sums.max_reference),
        sqnr_db=_decibels(sums.signal, sums.noise),
        cosine=_cosine(sums),
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


class _Sums:
    """What accumulates over the pieces of one output."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.max_abs = self.max_reference = 0.0
        self.signal = self.noise = self.energy = self.product = 0.0
        self.finite = self.not_finite = 0
        self.hull = np.empty((0, 2))
        self.unequal = False

    def add(self, reference: np.ndarray, result: np.ndarray, exact: bool) -> None:
        """Take in a piece; the elements of an ``exact`` one must be equal."""
        a, b = reference.astype(np.float64), result.astype(np.float64)
        if exact:
            self.unequal |= bool((reference != result).any())
        else:
            a, b = self._finite(a, b)
        error, size = np.abs(a - b), np.abs(a)
        self.max_abs = max(self.max_abs, float(error.max(initial=0.0)))
        self.max_reference = max(self.max_reference, float(size.max(initial=0.0)))
        if not exact:
            self.hull = _upper_hull(np.concatenate((self.hull, np.stack((size, error), axis=1)[error > 0])))
        self._add_energies(a / self.scale, b / self.scale, error / self.scale)

    def _finite(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        finite = np.isfinite(a) & np.isfinite(b)
        if finite.all():
            return a, b
        first, second = a[~finite], b[~finite]
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        self.not_finite += int((~same).sum())
        return a[finite], b[finite]

    def _add_energies(self, a: np.ndarray, b: np.ndarray, error: np.ndarray) -> None:
        self.finite += a.size
        self.signal += float(a @ a)
        self.energy += float(b @ b)
        self.noise += float(error @ error)
        self.product += float(a @ b)

    def evidence(self) -> _Evidence:
        """The part that later judgements need."""
        corners = tuple((float(size), float(error)) for size, error in self.hull)
        rms = self.scale * math.sqrt(self.signal / self.finite) if self.finite else 0.0
        return _Evidence(corners, rms, self.scale, self.signal, self.noise, self.unequal)


def _upper_hull(points: np.ndarray) -> np.ndarray:
    """The points (x, y), shape (n, 2), that bound all others under every line of non-negative slope.

    Quickhull: from the leftmost to the highest point, the farthest point above a chord is a corner.
    """
    if len(points) < 2:
        return points
    nearest = points[points[:, 0] == points[:, 0].min()]
    left = nearest[nearest[:, 1].argmax()]
    highest = points[points[:, 1] == points[:, 1].max()]
    right = highest[highest[:, 0].argmin()]
    corners, chords = [left], [(left, right, points[points[:, 0] < right[0]])]
    while chords:
        start, end, inside = chords.pop()
        (run, rise), offset = end - start, inside - start
        height = run * offset[:, 1] - rise * offset[:, 0]
        inside, height = inside[height > 0], height[height > 0]
        if len(inside):
            corner = inside[height.argmax()]
            chords += [(corner, end, inside), (start, corner, inside)]
        else:
            corners.append(end)
    return np.unique(corners, axis=0)


def _ratio(part: float, whole: float) -> float:
    if part == 0.0:
        return 0.0
    return part / whole if whole else math.inf


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    ratio = signal / noise
    return 10.0 * math.log10(ratio) if ratio > 0.0 else -math.inf


def _cosine(sums: _Sums) -> float:
    if sums.signal == 0.0 or sums.energy == 0.0:
        return float(sums.signal == sums.energy)
    return max(-1.0, min(1.0, sums.product / (math.sqrt(sums.signal) * math.sqrt(sums.energy))))


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


def _pooled_sqnr(evidence: Sequence[_Evidence]) -> float:
    if any(math.isinf(e.noise) for e in evidence):
        return -math.inf
    largest = max((e.scale for e in evidence), default=0.0) or 1.0
    weights = [(e.scale / largest) ** 2 for e in evidence]
    signal, noise = (
        sum(weight * part for weight, part in zip(weights, parts, strict=True))
        for parts in ([e.signal for e in evidence], [e.noise for e in evidence])
    )
    return _decibels(signal, noise)
