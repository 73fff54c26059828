"""The architectures of the tests as PyTorch code, as exported programs and as TorchScript."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from _import_case import Case

from graphopt.converters.importers._pytorch.subject import Subject, with_examples
from graphopt.import_options import ImportOptions, InputSpec
from graphopt.runtime.evaluate import first_line

# Where a user's own package would be: on the import path, which the child that imports inherits.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from architectures.index import ARCHITECTURES

#: Of the largest element of an output.
FLOAT = 1e-5


def cases(folder: Path, names: Collection[str] = ()) -> Iterator[Case]:
    """Every architecture in each format that torch itself can make of it; files go to ``folder``."""
    for name, architecture in ARCHITECTURES.items():
        if names and not any(part in name for part in names):
            continue
        inputs = tuple(InputSpec.parse(text) for text in architecture.inputs)
        options = ImportOptions(inputs=inputs)
        yield Case(architecture.source, name, "factory", options, FLOAT)
        subject = with_examples(architecture.factory(), inputs)
        program = folder / f"{name}.pt2"
        if _made(_exported, subject, program):
            yield Case(str(program), name, ".pt2", ImportOptions(), FLOAT)
        script = folder / f"{name}.pt"
        if _made(_traced, subject, script):
            yield Case(str(script), name, "TorchScript", options, FLOAT)


def _made(make: Callable[[Subject, Path], None], subject: Subject, target: Path) -> bool:
    """Whether torch makes this of it; where it does not, there is nothing to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)  # torch logs whole programs
        try:
            make(subject, target)
        except Exception as error:  # noqa: BLE001 - torch raises anything
            print(f"{target.name}: torch does not write it: {first_line(error)}", file=sys.stderr)
            return False
        finally:
            logging.disable(logging.NOTSET)
    return True


def _exported(subject: Subject, target: Path) -> None:
    free = {axis for spec in subject.inputs for axis in spec.shape if isinstance(axis, str)}
    named = {axis: torch.export.Dim(axis) for axis in free}
    try:
        program = _program(subject, named)
    except Exception:  # noqa: BLE001 - sizes that must be multiples: torch finds out of what
        program = _program(subject, dict.fromkeys(free, torch.export.Dim.AUTO))
    torch.export.save(program, target)


def _program(subject: Subject, dims: dict[str, torch.export.Dim]) -> torch.export.ExportedProgram:
    shapes = tuple(
        {number: dims[axis] for number, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in subject.inputs
    )
    return torch.export.export(subject.module, subject.examples, dynamic_shapes=shapes)


def _traced(subject: Subject, target: Path) -> None:
    # Its own check runs without gradients, where nn.TransformerEncoder takes another way.
    traced = torch.jit.trace(subject.module, subject.examples, strict=False, check_trace=False)
    torch.jit.save(traced, target)
