"""YAML as plain data that remembers where each key and value stood.

YAML 1.2's core schema (``no`` and ``on`` are text, ``1e-4`` is a number), duplicate keys refused, size,
depth and aliases limited. Nothing is constructed but mappings, lists, text, numbers, booleans and null.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from graphopt import limits
from graphopt.errors import Location, RecipeError
from graphopt.options import Path

__all__ = ["Document", "parse"]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe composer with the scalar rules of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(f"(?:{_pattern})$"),
        [*_first, ""] if _tag == "null" else list(_first),
    )


class Document:
    """Plain data, and the place of every path in it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: Any = None
        self._values: dict[Path, Location] = {}
        self._keys: dict[Path, Location] = {}

    def locate(self, path: Path, *, at_key: bool = False) -> Location:
        """Where the value (or key) at ``path`` stands; the nearest enclosing place where it is absent."""
        places = self._keys if at_key else self._values
        while path and path not in places:
            path, places = path[:-1], self._values
        return places.get(path, Location(self.file, 1, 1))

    def remember(self, path: Path, mark: Any, *, as_key: bool = False) -> None:
        """Note where the value (or key) at ``path`` stands."""
        places = self._keys if as_key else self._values
        places[path] = _place(self.file, mark)


def _place(file: str, mark: Any) -> Location:
    return Location(file, mark.line + 1, mark.column + 1)


def parse(text: str, file: str) -> Document:
    """Parse YAML ``text``; ``file`` is the name that errors show.

    Raises:
        RecipeError: not YAML, duplicate keys, a tag, or over a limit of :mod:`graphopt.limits`.
    """
    if len(text) > limits.RECIPE_BYTES:
        raise RecipeError(f"{file}: larger than {limits.RECIPE_BYTES} bytes (RECIPE_BYTES); not a recipe")
    document = Document(file)
    try:
        _check_events(text, file)
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = _place(file, mark) if mark else None
        raise RecipeError(f"not YAML: {error.problem or error.context}", where) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"not YAML: {str(error).splitlines()[0]}", Location(file, 1, 1)) from error
    if root is None:
        raise RecipeError("the recipe is empty", Location(file, 1, 1))
    document.data = _plain(root, (), document)
    return document


def _check_events(text: str, file: str) -> None:
    """Refuse deep nesting and alias bombs before anything recursive sees the text."""
    depth = aliases = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        where = _place(file, event.start_mark)
        if depth > limits.RECIPE_DEPTH:
            raise RecipeError(f"nested deeper than {limits.RECIPE_DEPTH} levels (RECIPE_DEPTH)", where)
        if aliases > limits.RECIPE_ALIASES:
            raise RecipeError(f"more than {limits.RECIPE_ALIASES} aliases (RECIPE_ALIASES)", where)


def _plain(node: yaml.Node, path: Path, document: Document) -> Any:
    if len(path) > limits.RECIPE_DEPTH:  # an alias inside its own anchor
        raise RecipeError(
            f"nested deeper than {limits.RECIPE_DEPTH} levels (RECIPE_DEPTH)", document.locate(path[:8])
        )
    document.remember(path, node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), document) for i, item in enumerate(node.value)]
    return _scalar(node, path, document)


def _plain_mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = _place(document.file, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError("a key must be text", where)
        key = key_node.value
        if key in data:
            raise RecipeError(f"'{key}' is given twice", where)
        document.remember((*path, key), key_node.start_mark, as_key=True)
        data[key] = _plain(value_node, (*path, key), document)
    return data


def _scalar(node: yaml.Node, path: Path, document: Document) -> Any:
    kind, text = node.tag.rpartition(":")[2], str(node.value)
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise RecipeError(f"tag '{node.tag}' is not allowed: a recipe is plain data", document.locate(path))
