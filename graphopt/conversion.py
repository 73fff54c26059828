"""The registry of converters: importers (source to model) and emitters (model to artefact).

A converter is a class in a module of :mod:`graphopt.converters`, found by listing the package; it says
which file names it takes. The target's suffix picks the emitter, suffix and content the importer.
"""

from __future__ import annotations

import abc
import functools
import importlib
import pkgutil
from pathlib import Path
from typing import ClassVar, TypeVar

import onnx_ir as ir

from graphopt.errors import InputError, OutputError

__all__ = ["Emitter", "Importer", "emitter_for", "importer_for", "register_emitter", "register_importer"]


class Importer(abc.ABC):
    """Reads one kind of source into a model."""

    #: The format's name in reports and errors.
    format: ClassVar[str]
    #: File suffixes, lower case, with the dot.
    suffixes: ClassVar[tuple[str, ...]]

    def accepts(self, source: Path) -> bool:
        """Whether this importer reads ``source``; looks at the suffix unless a subclass looks closer."""
        return source.suffix.lower() in self.suffixes

    @abc.abstractmethod
    def load(self, source: Path) -> ir.Model:
        """Read ``source``; raises InputError where it is not what its name says."""


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
    package = importlib.import_module("graphopt.converters")
    for module in pkgutil.walk_packages(package.__path__, "graphopt.converters."):
        importlib.import_module(module.name)


def importer_for(source: Path) -> Importer:
    """The importer that reads ``source``.

    Raises:
        InputError: no importer takes it; names the formats that can be read.
    """
    _import_converters()
    for importer in _importers:
        if importer.accepts(source):
            return importer
    raise InputError(
        f"'{source}': no importer reads '{source.suffix or source.name}' files; {_known(_importers)}"
    )


def emitter_for(target: Path) -> Emitter:
    """The emitter that writes ``target``.

    Raises:
        OutputError: no emitter writes it; names the formats that can be written.
    """
    _import_converters()
    for emitter in _emitters:
        if emitter.accepts(target):
            return emitter
    raise OutputError(
        f"'{target}': no emitter writes '{target.suffix or target.name}' files; {_known(_emitters)}"
    )


def _known(converters: list[Importer] | list[Emitter]) -> str:
    return "known: " + ", ".join(s for converter in converters for s in converter.suffixes)
