"""The framework's own outputs on seeded inputs: what an import must agree with.

They are made in the child that ran the framework, and travel to the parent in one ``.npz`` file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graphopt import io
from graphopt.conversion import Exported, Runner, Tolerance
from graphopt.errors import InputError, UnsupportedError
from graphopt.import_options import ImportOptions
from graphopt.runtime import compare, samples
from graphopt.runtime.evaluate import first_line

__all__ = ["References", "differs", "load", "make", "save"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class References:
    """Inputs, and what the framework makes of them.

    Attributes:
        feeds: Arrays by input name, one mapping for each sample.
        outputs: What the framework made of each.
        notes: What could not be compared, and in which other ways the framework's own results differ.
    """

    feeds: list[Arrays]
    outputs: list[Arrays]
    notes: list[str] = field(default_factory=list)


def make(exported: Exported, framework: str, options: ImportOptions) -> References:
    """Draw samples for the exported model and run the framework itself on them.

    Sizes that only the exported model takes are left out with a note; one sample at least must run.

    Raises:
        UnsupportedError: The framework runs none of the samples.
    """
    model = io.load(exported.model)
    drawn = samples.draw(model, options.samples, options.seed, exported.axes)
    feeds, outputs, notes, failure = [], [], [], ""
    for feed, sizes in zip(drawn.feeds, drawn.axes, strict=True):
        try:
            result = exported.run(feed)
        except Exception as error:  # noqa: BLE001 - frameworks' errors have no common base
            failure = first_line(error)
            at = ", ".join(f"{name} {size}" for name, size in sizes.items())
            notes.append(f"{framework} cannot run its own model at {at or 'its sizes'}: {failure}")
            continue
        feeds.append(feed)
        outputs.append({name: np.asarray(value) for name, value in result.items()})
    if not feeds:
        raise UnsupportedError(f"{framework} runs the model on none of the drawn inputs: {failure}")
    notes += [f"axis '{axis}' is declared dynamic but runs at one size only" for axis in drawn.fixed_axes]
    for name, run in exported.others.items():
        notes += _note_on(name, run, feeds, outputs, exported.tolerance)
    return References(feeds, outputs, notes)


def _note_on(
    name: str, run: Runner, feeds: list[Arrays], outputs: list[Arrays], tolerance: Tolerance
) -> list[str]:
    """What to say of another way in which the framework runs the model."""
    try:
        others = [{n: np.asarray(v) for n, v in run(feed).items()} for feed in feeds]
    except Exception as error:  # noqa: BLE001 - frameworks' errors have no common base
        return [f"{name} cannot run the model: {first_line(error)}"]
    reason = differs(outputs, others, tolerance)
    return [f"{name} gives other results: {reason}"] if reason else []


def differs(references: list[Arrays], results: list[Arrays], tolerance: Tolerance) -> str:
    """Why results do not agree with their references; empty where they do."""
    for reference, result in zip(references, results, strict=True):
        plain = {name: value for name, value in reference.items() if name not in tolerance.steps}
        compared = compare.compare(plain, {n: v for n, v in result.items() if n not in tolerance.steps})
        for output in compared.outputs:
            if not _agrees(output, tolerance.rtol):
                return f"output '{output.name}' " + (
                    output.note or f"differs by {output.max_rel:.2g} relative"
                )
        for name, step in tolerance.steps.items():
            reason = _quantized_differs(reference[name], result.get(name), step)
            if reason:
                return f"output '{name}' {reason}"
    return ""


def _agrees(output: compare.OutputComparison, rtol: float) -> bool:
    """Whether an output is as near to its reference as :class:`Tolerance` says."""
    if output.note:
        return False
    try:
        unit = float(np.finfo(output.dtype).eps)
    except (ValueError, TypeError):  # integers, booleans, text
        return output.max_abs == 0
    return output.max_rel <= rtol or output.max_abs <= unit


def _quantized_differs(reference: np.ndarray, result: np.ndarray | None, step: float) -> str:
    """The rule for quantized outputs: one step on average, the same largest element along the last axis."""
    if result is None or result.shape != reference.shape or result.dtype != reference.dtype:
        return "is missing" if result is None else f"is {result.dtype}{list(result.shape)}"
    if not reference.size:
        return ""
    a, b = np.asarray(reference, np.float64), np.asarray(result, np.float64)
    mean = float(np.mean(np.abs(a - b))) / step
    if not mean <= 1:
        return f"differs by {mean:.2g} quantization steps on average"
    if a.ndim < 2 or a.shape[-1] < 2:
        return ""
    rows_a, rows_b = a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1])
    # The reference's own value where the result is largest: within one step of its largest is a tie.
    chosen = np.take_along_axis(rows_a, rows_b.argmax(-1)[:, None], -1)[:, 0]
    missed = np.count_nonzero(rows_a.max(-1) - chosen > step)
    return f"has another largest element in {missed} of {len(rows_a)} rows" if missed else ""


def save(references: References, target: Path) -> None:
    """Write references to an ``.npz`` file."""
    arrays: Arrays = {}
    names: dict[str, list[list[str]]] = {"feeds": [], "outputs": []}
    for kind, mappings in (("feeds", references.feeds), ("outputs", references.outputs)):
        for number, mapping in enumerate(mappings):
            names[kind].append(list(mapping))
            arrays |= {f"{kind}.{number}.{i}": value for i, value in enumerate(mapping.values())}
    described = json.dumps({"names": names, "notes": references.notes})
    np.savez(target, described=np.frombuffer(described.encode(), np.uint8), **arrays)  # type: ignore[arg-type]


def load(source: Path) -> References:
    """Read what :func:`save` wrote.

    Raises:
        InputError: The file is not such a file.
    """
    try:
        with source.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            described = json.loads(file["described"].tobytes())
            read: Mapping[str, list[Arrays]] = {
                kind: [
                    {name: file[f"{kind}.{number}.{i}"] for i, name in enumerate(row)}
                    for number, row in enumerate(described["names"][kind])
                ]
                for kind in ("feeds", "outputs")
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"'{source}': no references in it: {first_line(error)}") from error
    return References(read["feeds"], read["outputs"], described["notes"])
