"""Which function converts which operator."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from graphopt.converters.importers._tflite.model import Model, Operator
from graphopt.errors import UnsupportedError

if TYPE_CHECKING:
    from graphopt.converters.importers._tflite.context import Context

__all__ = ["check_supported", "converter", "converter_of", "families", "names"]

Converter = Callable[["Context", Operator], None]
F = TypeVar("F", bound=Callable[..., None])

_converters: dict[str, Converter] = {}


def converter(*operators: str) -> Callable[[F], F]:
    """Decorator: the function converts these operators; a custom one is written ``CUSTOM:name``."""

    def register(function: F) -> F:
        for operator in operators:
            if operator in _converters:
                raise ValueError(f"two converters of {operator}")
            _converters[operator] = function
        return function

    return register


@functools.cache
def _load() -> None:
    package = importlib.import_module("graphopt.converters.importers._tflite.operators")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def names() -> list[str]:
    """Every operator that is converted, custom ones as ``CUSTOM:name``."""
    _load()
    return sorted(_converters)


def families() -> dict[str, list[str]]:
    """The operators of each family, by the first sentence of its module."""
    found: dict[str, list[str]] = {}
    for name in names():
        module = importlib.import_module(_converters[name].__module__)
        title = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        found.setdefault(title, []).append(name.removeprefix("CUSTOM:"))
    return dict(sorted(found.items()))


def converter_of(operator: Operator) -> Converter:
    """What converts an operator that :func:`check_supported` let pass."""
    return _converters[_key(operator)]


def check_supported(model: Model, subgraphs: Iterable[int]) -> None:
    """Refuse a model with operators that nothing converts, naming all of them and the first place of each.

    Raises:
        UnsupportedError: There are such.
    """
    _load()
    places: dict[str, str] = {}
    for index in subgraphs:
        for operator in model.subgraphs[index].operators:
            if _key(operator) not in _converters:
                places.setdefault(_named(operator), operator.place)
    if places:
        found = ", ".join(f"{name} (first: {place})" for name, place in places.items())
        raise UnsupportedError(f"operators that the TFLite reader does not know: {found}")


def _key(operator: Operator) -> str:
    return f"CUSTOM:{operator.custom}" if operator.name == "CUSTOM" else operator.name


def _named(operator: Operator) -> str:
    if operator.name != "CUSTOM":
        return operator.name
    if operator.custom.startswith("Flex"):
        return f"TensorFlow's own {operator.custom.removeprefix('Flex')} (convert without SELECT_TF_OPS)"
    return f"custom operator {operator.custom}"
