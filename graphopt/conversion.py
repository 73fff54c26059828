"""The registry of converters: importers (source to model) and emitters (model to artefact).

A converter is a class in a module of :mod:`graphopt.converters`, found by listing the package. The target's
suffix picks the emitter; the source's suffix and content pick the importer.

What another framework must read is imported in a child process: a :class:`FrameworkImporter` names the module
that does it there, whose ``export`` makes an ONNX file and a way to run the framework itself on the same
inputs (see :class:`Exported`). :mod:`graphopt.importing` does all the rest.
"""

from __future__ import annotations

import abc
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import InputError, MissingExtraError, OutputError
from graphopt.import_options import ImportOptions

if TYPE_CHECKING:
    from graphopt.references import References

__all__ = [
    "Emitter",
    "Exported",
    "FrameworkImporter",
    "Importer",
    "Tolerance",
    "emitter_for",
    "importer_for",
    "importer_of",
    "register_emitter",
    "register_importer",
]


class Importer(abc.ABC):
    """Reads one kind of source into a model."""

    #: The format's name in reports and errors.
    format: ClassVar[str]
    #: File suffixes, lower case, with the dot.
    suffixes: ClassVar[tuple[str, ...]]

    def accepts(self, source: str) -> bool:
        """Whether this importer reads sources of this name, as its suffix says."""
        return Path(source).suffix.lower() in self.suffixes

    def recognizes(self, source: Path) -> bool:
        """Whether the content of an existing file or folder is surely of this format (its magic number)."""
        return False


class FileImporter(Importer):
    """Reads a file in this process."""

    @abc.abstractmethod
    def load(self, source: Path) -> ir.Model:
        """Read ``source``; raises InputError where it is not what its name says."""


class FrameworkImporter(Importer):
    """Lets a framework read the source in a child process."""

    #: The framework's name in reports and errors.
    framework: ClassVar[str]
    #: The extra of graphopt that installs it, and the modules that must be there.
    extra: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    #: The module with ``export(source: str, options: ImportOptions, folder: Path) -> Exported``.
    exporter: ClassVar[str]

    def check(self, source: str, options: ImportOptions) -> None:
        """Refuse, before a child is started, what can be seen to be wrong; reads no more than a few bytes."""

    def check_extra(self) -> None:
        """Refuse where the framework is not installed.

        Raises:
            MissingExtraError: It names the extra.
        """
        if any(importlib.util.find_spec(name) is None for name in self.needs):
            raise MissingExtraError(f"importing {self.format} files", self.extra)


@dataclass(frozen=True)
class Tolerance:
    """How near an import must be to its source, in each output.

    Attributes:
        rtol: Largest difference of a float output, relative to its largest element. Always allowed is one
            unit in the last place of 1: of an output that is small throughout (a Sigmoid of large negative
            numbers) runtimes know no more digits. Other outputs must be equal.
        steps: Of outputs that a quantized model makes: the size of one step (LSB) in the output's own units
            (1 for integer outputs). They agree within one step on average, and in the largest element.
    """

    rtol: float = 1e-4
    steps: Mapping[str, float] = field(default_factory=dict)


#: The framework itself on one sample, arrays by input name to arrays by output name, as in the ONNX file.
Runner = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Exported:
    """What the exporter of a framework made, inside the child.

    Attributes:
        model: The ONNX file, in the folder that the exporter was given. Inputs and outputs have the user's
            names; axes that are free in the source are symbolic.
        run: The truth: the source, run by its own framework.
        versions: Of what took part, by package name.
        axes: Sizes for the axes of some inputs, where drawing needs help (see ``samples.draw``).
        tolerance: How near the ONNX model must be.
        others: Other ways in which the framework runs the source (a delegate): what they make is compared
            and noted, and decides nothing.
        notes: What the user should know, a line each.
        references: What ``run`` made of the drawn samples, if the exporter asked already.
    """

    model: Path
    run: Runner
    versions: Mapping[str, str]
    axes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    tolerance: Tolerance = Tolerance()
    others: Mapping[str, Runner] = field(default_factory=dict)
    notes: Sequence[str] = ()
    references: References | None = None


class Emitter(abc.ABC):
    """Writes a model as one kind of artefact."""

    #: The format's name in reports and errors.
    format: ClassVar[str]
    #: Target suffixes, lower case, with the dot.
    suffixes: ClassVar[tuple[str, ...]]

    def accepts(self, target: Path) -> bool:
        """Whether this emitter writes ``target``."""
        return target.suffix.lower() in self.suffixes

    @abc.abstractmethod
    def write(self, model: ir.Model, target: Path) -> int:
        """Write ``target`` whole or not at all; returns the bytes written."""


_importers: list[Importer] = []
_emitters: list[Emitter] = []
I = TypeVar("I", bound=type[Importer])  # noqa: E741
E = TypeVar("E", bound=type[Emitter])


def register_importer(cls: I) -> I:
    """Class decorator: make an importer known."""
    _importers.append(cls())
    return cls


def register_emitter(cls: E) -> E:
    """Class decorator: make an emitter known."""
    _emitters.append(cls())
    return cls


@functools.cache
def _import_converters() -> None:
    for kind in ("importers", "emitters"):  # modules with an underscore are theirs, not converters
        package: Any = importlib.import_module(f"graphopt.converters.{kind}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.rpartition(".")[2].startswith("_"):
                importlib.import_module(module.name)


def importer_for(source: str) -> Importer:
    """The importer that reads ``source``: by its name, and by its content where that has a magic number.

    Raises:
        InputError: No importer takes it, or it is not what its name says; names the formats there are.
    """
    _import_converters()
    named = next((importer for importer in _importers if importer.accepts(source)), None)
    path = Path(source)
    holds = [importer for importer in _importers if path.exists() and importer.recognizes(path)]
    if named is None and holds:
        return holds[0]
    if named is None:
        raise InputError(f"'{source}': no importer reads {_kind(path)}; {_known(_importers)}")
    if holds and named not in holds:
        raise InputError(
            f"'{source}': its content is {holds[0].format}, its name says {named.format}; "
            f"rename it to *{' or *'.join(holds[0].suffixes)}"
        )
    return named


def importer_of(format: str) -> Importer:
    """The importer of a format, by its name in reports."""
    _import_converters()
    return next(importer for importer in _importers if importer.format == format)


def emitter_for(target: Path) -> Emitter:
    """The emitter that writes ``target``.

    Raises:
        OutputError: no emitter writes it; names the formats that can be written.
    """
    _import_converters()
    for emitter in _emitters:
        if emitter.accepts(target):
            return emitter
    raise OutputError(f"'{target}': no emitter writes {_kind(target)}; {_known(_emitters)}")


def _kind(path: Path) -> str:
    if path.is_dir():
        return "this folder"
    return f"'{path.suffix or path.name}' files"


def _known(converters: Sequence[Importer] | Sequence[Emitter]) -> str:
    return "known: " + ", ".join(s for converter in converters for s in converter.suffixes)
