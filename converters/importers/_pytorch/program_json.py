"""The JSON of an exported program, written anew from what was understood of it.

torch makes Python source of a program's names and runs it, evaluates its expressions and guards, imports what
its tree specs name and calls what its nodes name. So each string is held to what it may be, by the field that
it is in; a field without a rule is refused. What torch only shows to people (stacks, metadata) and guards,
which would be run as Python, are left out.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from graphopt.converters.importers._pytorch.expressions import canonical
from graphopt.converters.importers._pytorch.operators import check_target
from graphopt.converters.importers._pytorch.tree_specs import canonical_inputs, canonical_tree

__all__ = ["checked", "parse"]

_KEYWORD = re.compile(r"(?!__.*__$)[A-Za-z_][A-Za-z0-9_]{0,999}")
#: The same, and nothing that hides what torch's source means by that name.
_NAME = re.compile(rf"(?!(?:fx_pytree|getattr|math|pytree|self|torch)$){_KEYWORD.pattern}")
#: Dotted names of parameters; a part that is no identifier becomes a string in torch's source.
_PATH = re.compile(r"[A-Za-z0-9_ .:/+@-]{1,2000}")
_TEXT = re.compile(r"[^\x00-\x1f'\"\\]{0,2000}")
#: A symbol with a range: torch counts up to the number of one that is found when the program runs.
_SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,5}")
_VERSION = re.compile(r"[\w.+<>=-]{1,80}")
_INTEGER = 1 << 63
_DEPTH = 100
_FLOATS = ("Infinity", "-Infinity", "NaN")


def _matches(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"{text[:60]!r} is no {what}")
        return text

    return check


def _path(text: str) -> str:
    if not _PATH.fullmatch(text) or any(re.fullmatch("__.*__", part) for part in text.split(".")):
        raise ValueError(f"{text[:60]!r} is no name of a parameter")
    return text


def _target(text: str) -> str:
    check_target(text)
    return text


def _optional(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: check(text) if text else text


_name = _matches(_NAME, "name")
_text = _matches(_TEXT, "plain text")
#: What the strings of a field may be, its keys where it is a mapping. Custom objects, tokens and operators as
#: arguments have no rule, which is how they are refused.
_RULES: dict[tuple[str, str], Callable[[str], str]] = {
    ("Argument", "as_string"): _matches(re.compile(r"[^\x00]{0,10000}", re.DOTALL), "text"),
    ("Argument", "as_strings"): _text,
    ("BufferMutationSpec", "buffer_name"): _path,
    ("ConstantValue", "as_string"): _text,
    ("Device", "type"): _matches(re.compile("cpu"), "device that is imported from: export it on the CPU"),
    ("ExportedProgram", "opset_version"): _name,
    ("ExportedProgram", "range_constraints"): str,
    ("ExportedProgram", "torch_version"): _matches(_VERSION, "version"),
    ("ExportedProgram", "verifiers"): _matches(re.compile("ATEN|TRAINING|"), "dialect of torch.export"),
    ("Graph", "sym_bool_values"): _name,
    ("Graph", "sym_float_values"): _name,
    ("Graph", "sym_int_values"): _name,
    ("Graph", "tensor_values"): _name,
    ("GraphArgument", "name"): _name,
    ("InputToBufferSpec", "buffer_name"): _path,
    ("InputToConstantInputSpec", "name"): _name,
    ("InputToParameterSpec", "parameter_name"): _path,
    ("InputToTensorConstantSpec", "tensor_constant_name"): _path,
    ("ModuleCallEntry", "fqn"): _optional(_path),
    ("ModuleCallSignature", "forward_arg_names"): _name,
    ("ModuleCallSignature", "in_spec"): canonical_inputs,
    ("ModuleCallSignature", "out_spec"): canonical_tree,
    ("NamedArgument", "name"): _optional(_matches(_KEYWORD, "name")),
    ("Node", "name"): _name,
    ("Node", "target"): _target,
    ("ParameterMutationSpec", "parameter_name"): _path,
    ("PayloadConfig", "config"): _path,
    ("PayloadMeta", "path_name"): _matches(re.compile(r"(weight|tensor)_\d{1,9}"), "member of a tensor"),
    ("SymBoolArgument", "as_name"): _name,
    ("SymExpr", "expr_str"): canonical,
    ("SymFloatArgument", "as_name"): _name,
    ("SymIntArgument", "as_name"): _name,
    ("TensorArgument", "name"): _name,
    ("UserInputMutationSpec", "user_input_name"): _name,
}
#: What is left out: torch runs guards as Python, and the rest is only shown.
_LEFT_OUT: dict[tuple[str, str], Any] = {
    ("ExportedProgram", "guards_code"): [],
    ("GraphModule", "metadata"): {},
    ("GraphModule", "treespec_namedtuple_fields"): {},
    ("Node", "metadata"): {},
}
_Field = tuple[str, str]


def parse(content: bytes) -> Any:
    """JSON without what JSON does not have.

    Raises:
        ValueError: It is none.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def checked(kind: str, data: Any) -> Any:
    """The same data with nothing in it that has not been understood.

    Args:
        kind: Class of torch's schema that it is one of.
        data: As :func:`parse` read it.

    Raises:
        ValueError: It holds something else; says where and what.
    """
    found = _record(getattr(schema, kind), data, kind, 0)
    if "range_constraints" in found:
        # Ranges of what is derived from a symbol follow from its own, and torch's exporter fails on them.
        ranges = found["range_constraints"]
        found["range_constraints"] = {key: ranges[key] for key in ranges if _SYMBOL.fullmatch(key)}
    return found


def _record(kind: Any, data: Any, where: str, depth: int) -> Any:
    """An object of a class of the schema; of a union, the one field that is set."""
    if not isinstance(data, dict) or depth > _DEPTH:
        raise ValueError(f"{where} is no {kind.__name__}")
    hints = _fields(kind)
    union = issubclass(kind, _Union)
    if union and (len(data) != 1 or not data.keys() <= hints.keys()):
        raise ValueError(f"{where} is no {kind.__name__}")
    if not union and not _needed(kind) <= data.keys():
        raise ValueError(f"{where} has no {min(_needed(kind) - data.keys())}")
    found = {}
    for field in hints.keys() & data.keys() if union else hints:
        here = (kind.__name__, field)
        if here in _LEFT_OUT:
            found[field] = _LEFT_OUT[here]
        elif field in data:
            found[field] = _value(hints[field], data[field], here, f"{where}.{field}", depth + 1)
    return found


@functools.cache
def _needed(kind: Any) -> set[str]:
    """The fields of a class that have no default."""
    missing = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing}


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """The types of a class's fields."""
    return typing.get_type_hints(kind, globalns=vars(schema))


def _value(kind: Any, data: Any, field: _Field, where: str, depth: int) -> Any:
    """A value of a type of the schema."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _value(arguments[0], data, field, where, depth)
    if origin is list and isinstance(data, list):
        return [_value(arguments[0], v, field, f"{where}[{n}]", depth) for n, v in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        return {
            _string(key, field, where): _value(arguments[1], v, field, f"{where}[{key[:60]!r}]", depth)
            for key, v in data.items()
        }
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where, depth)
    if kind is str and isinstance(data, str):
        return _string(data, field, where)
    if _is_plain(kind, data):
        return data
    raise ValueError(f"{where} is no {getattr(kind, '__name__', kind)}")


def _string(text: str, field: _Field, where: str) -> str:
    rule = _RULES.get(field)
    if rule is None:
        raise ValueError(f"{where}: {'.'.join(field)} is not imported, since it may stand for code")
    try:
        return rule(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _is_plain(kind: Any, data: Any) -> bool:
    """Whether the data is the number or truth value that the schema wants."""
    if kind is bool:
        return isinstance(data, bool)
    if isinstance(data, bool):
        return False
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        return isinstance(data, int) and data in set(kind)
    if kind is float:
        return isinstance(data, float) or data in _FLOATS or (isinstance(data, int) and abs(data) < _INTEGER)
    return kind is int and isinstance(data, int) and -_INTEGER <= data < _INTEGER
