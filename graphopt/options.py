"""Typed options, declared once as dataclass fields.

The same fields serve the recipe (YAML), ``--set``, the docs, ``graphopt passes`` and the JSON Schema:
:func:`options_of` lists them, :func:`convert` turns plain data into a typed value or says what is wrong
at which path, :func:`json_schema` describes a type.

Supported types: bool, int, float, str, Literal, ``X | None``, unions, ``tuple[X, ...]``, ``Mapping[str, X]``
and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = [
    "ConversionError",
    "Option",
    "convert",
    "json_schema",
    "nearest",
    "option",
    "options_of",
    "type_name",
]

T = TypeVar("T")
Path = tuple[str | int, ...]


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    min: float | None = None,
    max: float | None = None,
    default_factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field that is an option: its default, one line of help, and bounds for numbers."""
    metadata = {"help": help, "min": min, "max": max}
    return dataclasses.field(default=default, default_factory=default_factory, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One declared option: what the docs, the schema and the recipe need to know of it."""

    name: str
    type: Any
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is dataclasses.MISSING


class ConversionError(ValueError):
    """A value does not fit its option. ``path`` leads to it; ``at_key`` says the key itself is wrong."""

    def __init__(self, message: str, path: Path = (), *, at_key: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.at_key = at_key


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the list of what exists where nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def options_of(cls: type) -> list[Option]:
    """The options of a dataclass, or of any class by the annotated parameters of its constructor."""
    return list(_options_of(cls))


@functools.cache
def _options_of(cls: Hashable) -> list[Option]:
    assert isinstance(cls, type)
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        found = []
        for field in dataclasses.fields(cls):
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            metadata = field.metadata
            found.append(
                Option(
                    field.name,
                    hints[field.name],
                    default,
                    metadata.get("help", ""),
                    metadata.get("min"),
                    metadata.get("max"),
                )
            )
        return found
    return _constructor_options(cls)


def _constructor_options(cls: type) -> list[Option]:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return []
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    found = []
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:  # type: ignore[misc]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        found.append(Option(name, hints.get(name, Any), default, ""))
    return found


def type_name(kind: Any) -> str:
    """A type as a user reads it: ``int``, ``per-tensor | per-channel``, ``list of str``."""
    if kind is types.NoneType:
        return "null"
    if kind is Any:
        return "any"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(a) for a in arguments)
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is Mapping:
        return f"mapping of name to {type_name(arguments[1])}"
    if dataclasses.is_dataclass(kind):
        return "mapping"
    return str(getattr(kind, "__name__", kind))


def convert(value: Any, kind: Any, path: Path = ()) -> Any:
    """Turn plain data (as from YAML or JSON) into a value of type ``kind``.

    Raises:
        ConversionError: with the path inside ``value`` of what does not fit.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return _convert_literal(value, arguments, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, kind, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(value, kind, path)
        return tuple(convert(v, arguments[0], (*path, i)) for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong_type(value, kind, path)
        for key in value:
            if not isinstance(key, str):
                raise ConversionError(f"key {key!r} must be text", (*path, key), at_key=True)
        return {k: convert(v, arguments[1], (*path, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, path)
    return _convert_scalar(value, kind, path)


def build(cls: type[T], value: Any, path: Path = ()) -> T:
    """Make a ``cls`` from a mapping of its options; an unknown or missing one is an error."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _wrong_type(value, cls, path)
    options = {o.name: o for o in options_of(cls)}
    arguments: dict[str, Any] = {}
    for key, item in value.items():
        if key not in options:
            where = (*path, key)
            raise ConversionError(f"unknown key '{key}'{nearest(str(key), options)}", where, at_key=True)
        arguments[key] = _bounded(convert(item, options[key].type, (*path, key)), options[key], (*path, key))
    for name, declared in options.items():
        if declared.required and name not in arguments:
            raise ConversionError(f"'{name}' is missing ({type_name(declared.type)})", path)
    try:
        return cls(**arguments)
    except ValueError as error:  # a check of the class itself, such as a bad regular expression
        raise ConversionError(str(error), path) from error


def _bounded(value: Any, declared: Option, path: Path) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = declared.minimum, declared.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = (
                f"at least {low}"
                if high is None
                else f"at most {high}"
                if low is None
                else f"{low} to {high}"
            )
            raise ConversionError(f"'{declared.name}' is {value}, must be {bounds}", path)
    return value


def _convert_literal(value: Any, choices: tuple[Any, ...], path: Path) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    if isinstance(value, str) and all(isinstance(c, str) for c in choices):
        raise ConversionError(f"'{value}' is not one of {' | '.join(choices)}{_close(value, choices)}", path)
    raise ConversionError(f"{value!r} is not one of {' | '.join(str(c) for c in choices)}", path)


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _convert_union(value: Any, members: tuple[Any, ...], kind: Any, path: Path) -> Any:
    if value is None and types.NoneType in members:
        return None
    candidates = [m for m in members if m is not types.NoneType]
    if len(candidates) == 1:
        return convert(value, candidates[0], path)
    if isinstance(value, Mapping):  # the error of the mapping member is the useful one
        for member in candidates:
            if dataclasses.is_dataclass(member) or typing.get_origin(member) is Mapping:
                return convert(value, member, path)
    for member in candidates:
        try:
            return convert(value, member, path)
        except ConversionError:
            continue
    raise _wrong_type(value, kind, path)


def _convert_scalar(value: Any, kind: Any, path: Path) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConversionError(f"{value} is not a finite number", path)
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise _wrong_type(value, kind, path)


def _wrong_type(value: Any, kind: Any, path: Path) -> ConversionError:
    name = f"'{path[-1]}'" if path else "the value"
    shown = {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(value), repr(value))
    return ConversionError(f"{name} must be {type_name(kind)}, not {shown}", path)


def json_schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a type; options have their help, default and bounds."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [json_schema(a) for a in arguments]}
    if origin is tuple:
        return {"type": "array", "items": json_schema(arguments[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": json_schema(arguments[1])}
    if kind is types.NoneType:
        return {"type": "null"}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    if kind in names:
        return {"type": names[kind]}
    return _object_schema(options_of(kind))


def _object_schema(options: list[Option]) -> dict[str, Any]:
    properties = {}
    for declared in options:
        schema = json_schema(declared.type)
        if declared.help:
            schema["description"] = declared.help
        if declared.minimum is not None:
            schema["minimum"] = declared.minimum
        if declared.maximum is not None:
            schema["maximum"] = declared.maximum
        if not declared.required and isinstance(declared.default, str | int | float | bool):
            schema["default"] = declared.default
        properties[declared.name] = schema
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [o.name for o in options if o.required]
    return {**schema, "required": required} if required else schema
