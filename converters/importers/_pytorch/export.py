"""Export a PyTorch source: the dynamo exporter first, TorchScript's where that does not do.

What an exporter writes counts only if it computes what the module computes, at two sizes of each axis that is
to be free: exporters lose axes and bake sizes in without a word.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch

from graphopt import io, references
from graphopt.conversion import Exported
from graphopt.converters.importers._interface import ordered_inputs
from graphopt.converters.importers._pytorch import sources
from graphopt.converters.importers._pytorch.axes import correct, name_axes
from graphopt.converters.importers._pytorch.routes import dynamo, torchscript
from graphopt.converters.importers._pytorch.subject import Subject
from graphopt.errors import UnsupportedError
from graphopt.import_options import ImportOptions
from graphopt.references import References
from graphopt.runtime import evaluate
from graphopt.runtime.evaluate import first_line

__all__ = ["export", "export_subject"]

Route = Callable[[Subject, Path], None]
_COLOURS = re.compile(r"\x1b\[\d*m")
_ROUTES: dict[str, Route] = {"dynamo": dynamo, "TorchScript": torchscript}


def export(source: str, options: ImportOptions, folder: Path) -> Exported:
    """Load ``source`` and export it into ``folder``; called in the child.

    Raises:
        InputError, UnsupportedError: It cannot be loaded, or no exporter writes it rightly.
    """
    return export_subject(sources.load(source, options, folder), options, folder)


def export_subject(subject: Subject, options: ImportOptions, folder: Path) -> Exported:
    """Export a module into ``folder``.

    Raises:
        UnsupportedError: No exporter writes it rightly; names what was wrong with each.
    """
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that has no ONNX form
    routes = {"TorchScript": torchscript} if subject.scripted else _ROUTES
    second_best: tuple[str, Exported] | None = None
    reasons: dict[str, str] = {}
    for name, route in routes.items():
        target = folder / f"{name}.onnx"
        try:
            route(subject, target)
            exported, lost = _named(subject, target, options, _earlier(name, reasons))
        except Exception as error:  # noqa: BLE001 - the exporters raise anything
            reasons[name] = _COLOURS.sub("", f"{type(error).__name__}: {first_line(error)}")
            continue
        reasons[name] = lost
        if not lost:
            return exported
        second_best = second_best or (name, exported)
    if second_best is not None:
        name, exported = second_best
        return replace(exported, notes=[*exported.notes, f"{reasons[name]}; no exporter keeps it free"])
    raise UnsupportedError(
        "no exporter writes it rightly: " + "; ".join(f"{name}: {why}" for name, why in reasons.items())
    )


def _earlier(name: str, reasons: dict[str, str]) -> list[str]:
    """What to tell of the exporters that were tried before."""
    return [f"the {name} exporter was used; {n}: {why}" for n, why in reasons.items()]


def _named(subject: Subject, target: Path, options: ImportOptions, notes: list[str]) -> tuple[Exported, str]:
    """What a route wrote, with the user's names; and which axes it lost.

    Raises:
        UnsupportedError: It does not compute what the module computes, or has inputs of its own.
    """
    model = io.load(target)
    dtypes = [ir.DataType.from_numpy(example.numpy().dtype) for example in subject.examples]
    names = [spec.name for spec in subject.inputs]
    for value, spec in zip(ordered_inputs(model, names, dtypes), subject.inputs, strict=True):
        value.shape = value.shape or ir.Shape(spec.shape)
    lost = name_axes(model, subject)
    named = target.with_name(f"{target.stem}.named.onnx")
    io.save(model, named)
    exported = Exported(named, subject.run, {"torch": torch.__version__}, notes=notes)
    if not options.verify:
        return exported, f"axis {', '.join(lost)} is no longer free" if lost else ""
    made = _references(subject, exported, options)
    exported = replace(exported, references=made)
    outputs = evaluate.run(model, made.feeds).outputs
    reason = references.differs(made.outputs, outputs, exported.tolerance)
    if reason:
        raise UnsupportedError(reason)
    if correct(model, made):
        io.save(model, named)
    fixed = [note for note in made.notes if note.startswith("axis")]
    if lost:
        return exported, f"axis {', '.join(lost)} is no longer free"
    return exported, fixed[0] if fixed else ""


def _references(subject: Subject, exported: Exported, options: ImportOptions) -> References:
    """References; where the module takes none of the drawn sizes, at those of its examples and others near.

    Raises:
        UnsupportedError: The module runs on none of the drawn inputs.
    """
    try:
        return references.make(exported, "PyTorch", options)
    except UnsupportedError as error:
        made, failure = [], error
    for factor in (1.0, 1.5, 2.0):  # where one pixel more is none, twice as many are some
        sizes = {
            spec.name: [
                round(size * factor) if isinstance(axis, str) else size
                for axis, size in zip(spec.shape, example.shape, strict=True)
            ]
            for spec, example in zip(subject.inputs, subject.examples, strict=True)
        }
        with contextlib.suppress(UnsupportedError):
            made.append(references.make(replace(exported, axes=sizes), "PyTorch", options))
    if not made:
        raise failure
    notes = list(dict.fromkeys(note for each in made for note in each.notes))
    if len(made) == 1:
        notes.append(f"compared at the sizes of one example only: {failure}")
    feeds, outputs = ([x for each in made for x in getattr(each, k)] for k in ("feeds", "outputs"))
    return References(feeds, outputs, notes)
