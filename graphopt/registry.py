"""The passes that a recipe can name.

Three sources, in this order: the modules of :mod:`graphopt.passes` (found by listing the package, so a
new file is all it takes), installed entry points of the group ``graphopt.passes``, and any onnx_ir pass
class by import path (``package.module:Class``), which needs the user's word since it imports code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import pkgutil
import re
from typing import ClassVar, TypeVar

import onnx_ir as ir

from graphopt._collector import collector_held
from graphopt.errors import InputError
from graphopt.options import nearest
from graphopt.rewrite import Refusal

__all__ = ["Pass", "PassResult", "Refusal", "is_exact", "pass_classes", "pass_name", "register", "resolve"]

P = TypeVar("P", bound=type["Pass"])


@dataclasses.dataclass
class PassResult(ir.passes.PassResult):
    """What a pass made.

    Attributes:
        model: The transformed model.
        modified: Whether anything changed; False means that the model is as it was.
        summary: What was done, in a few words for the report's table ("folded 12 nodes").
        refusals: What was left alone, and why.
    """

    summary: str = ""
    refusals: list[Refusal] = dataclasses.field(default_factory=list)


class Pass(ir.passes.InPlacePass):
    """Base of graphopt's passes: an onnx_ir in-place pass with a name and typed options.

    A subclass is a dataclass; its fields (see :func:`graphopt.options.option`) are its options. Its
    docstring's first line says what it does; the rest states the rewrite and when it does not fire.
    """

    #: The one name used in recipes, the CLI, reports and file names (kebab-case).
    name: ClassVar[str]
    #: An exact pass computes the same function to float rounding; any other reports its error.
    exact: ClassVar[bool] = True
    #: Verified on its own even where neighbours are verified together: another tool's work may be wrong.
    alone: ClassVar[bool] = False
    #: Paper, specification section or library the pass follows.
    source: ClassVar[str] = ""

    def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> ir.passes.PassResult:
        """Run the pass on a model, the garbage collector held (see :mod:`graphopt._collector`)."""
        with collector_held():
            return super().__call__(model_or_result)


_registered: dict[str, type[Pass]] = {}


def register(cls: P) -> P:
    """Class decorator: make a pass known by its name."""
    name = cls.name
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"pass name '{name}' of {cls.__qualname__} is not kebab-case")
    if name in _registered and _registered[name].__qualname__ != cls.__qualname__:
        raise ValueError(
            f"two passes are named '{name}': {_registered[name].__qualname__} and {cls.__qualname__}"
        )
    if not (cls.__doc__ or "").strip():
        raise ValueError(f"pass '{name}' has no docstring")
    _registered[name] = cls
    return cls


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group="graphopt.passes")}


@functools.cache
def _import_own_passes() -> None:
    package = importlib.import_module("graphopt.passes")
    for module in pkgutil.walk_packages(package.__path__, "graphopt.passes."):
        importlib.import_module(module.name)


@functools.cache
def _import_one(name: str) -> bool:
    """Import the module that is named like the pass, and no other; whether that made the pass known."""
    package = importlib.import_module("graphopt.passes")
    for family in pkgutil.iter_modules(package.__path__, "graphopt.passes."):
        inside = importlib.import_module(family.name).__path__ if family.ispkg else []
        for module in pkgutil.iter_modules(inside, f"{family.name}."):
            if module.name.rpartition(".")[2] == name.replace("-", "_"):
                importlib.import_module(module.name)
    return name in _registered


def pass_classes() -> dict[str, type[ir.passes.PassBase]]:
    """All named passes, graphopt's own first; an entry point never replaces one of them."""
    _import_own_passes()
    classes: dict[str, type[ir.passes.PassBase]] = dict(sorted(_registered.items()))
    for name, entry in _entry_points().items():
        if name not in classes:
            classes[name] = _checked(entry.load(), f"entry point '{name}'")
    return classes


def resolve(name: str, *, allow_code: bool = False) -> type[ir.passes.PassBase]:
    """The pass class called ``name``, or at the import path ``package.module:Class``.

    Raises:
        InputError: The name is unknown, or an import path was given without ``allow_code``.
    """
    if ":" not in name:
        if name in _registered or _import_one(name):
            return _registered[name]
        classes = pass_classes()
        if name not in classes:
            raise InputError(f"unknown pass '{name}'{nearest(name, classes)}")
        return classes[name]
    if not allow_code:
        raise InputError(f"pass '{name}' would import code; add --allow-code if you trust it")
    return _checked(import_object(name), f"'{name}'")


def import_object(path: str) -> object:
    """The object at ``package.module:name``. The caller has checked that importing code is allowed."""
    module_name, _, attribute = path.partition(":")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import '{path}': {error}") from error


def _checked(found: object, what: str) -> type[ir.passes.PassBase]:
    if isinstance(found, type) and issubclass(found, ir.passes.PassBase):
        return found
    raise InputError(f"{what} is not an onnx_ir pass class (onnx_ir.passes.PassBase)")


def pass_name(cls: type[ir.passes.PassBase]) -> str:
    """The name of a pass class in reports: its own, or the import path of a foreign one."""
    return str(getattr(cls, "name", f"{cls.__module__}:{cls.__qualname__}"))


def is_exact(cls: type[ir.passes.PassBase]) -> bool:
    """Whether the pass promises the same function to float rounding; foreign passes are held to it."""
    return bool(getattr(cls, "exact", True))
