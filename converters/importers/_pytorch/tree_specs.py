"""How inputs and outputs nest, as an exported program says it.

torch imports modules that a spec names (the factory of a ``defaultdict``, an enumeration among the keys) and
writes keys into source that it runs. So only plain containers with plain keys are let through.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["canonical_inputs", "canonical_tree"]

_PROTOCOL = 1
_SEQUENCES = frozenset(
    {"builtins.list", "builtins.tuple", "torch.Size", "torch.fx.immutable_collections.immutable_list"}
)
_MAPPINGS = frozenset(
    {"builtins.dict", "collections.OrderedDict", "torch.fx.immutable_collections.immutable_dict"}
)
_DEPTH = 50
_KEY = 500


def canonical_tree(text: str) -> str:
    """The spec, written anew.

    Raises:
        ValueError: It nests something else than lists, tuples and dictionaries.
    """
    try:
        protocol, spec = json.loads(text) if text else (None, None)
    except (ValueError, TypeError, RecursionError):
        protocol, spec = None, None
    if protocol != _PROTOCOL or isinstance(protocol, bool):
        raise ValueError(f"{text[:60]!r} is no spec of a tree")
    return json.dumps([_PROTOCOL, _node(spec, 0)])


def canonical_inputs(text: str) -> str:
    """The same for inputs: keys of the keyword arguments become parameters of torch's source.

    Raises:
        ValueError: They are no names.
    """
    written = canonical_tree(text)
    for child in json.loads(written)[1]["children_spec"]:
        if child["type"] in _MAPPINGS and not all(_is_name(key) for key in json.loads(child["context"])):
            raise ValueError("keyword arguments have names that are no identifiers")
    return written


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isascii() and key.isidentifier()


def _node(spec: Any, depth: int) -> dict[str, Any]:
    if not isinstance(spec, dict) or depth > _DEPTH:
        raise ValueError("a spec of a tree is damaged")
    kind, context, children = (spec.get(key) for key in ("type", "context", "children_spec"))
    if not isinstance(children, list):
        raise ValueError("a spec of a tree is damaged")
    if kind is None and context is None and not children:
        return {"type": None, "context": None, "children_spec": []}
    if not isinstance(kind, str) or kind not in _SEQUENCES | _MAPPINGS:
        raise ValueError(
            f"it takes or returns a {str(kind)[:60]!r}; only lists, tuples and dicts are imported"
        )
    keys = _keys(context, len(children)) if kind in _MAPPINGS else None
    return {
        "type": kind,
        "context": json.dumps(keys),
        "children_spec": [_node(child, depth + 1) for child in children],
    }


def _keys(context: Any, number: int) -> list[str | int]:
    """Keys of a dictionary: as torch puts them in quotes of its source, they must not hold any."""
    try:
        keys = json.loads(context)
    except (ValueError, TypeError, RecursionError):
        keys = None
    if not isinstance(keys, list) or len(keys) != number:
        raise ValueError("a spec of a tree is damaged")
    for key in keys:
        if type(key) not in (str, int) or len(str(key)) > _KEY or not str(key).isprintable():
            raise ValueError("a dict has keys that are neither names nor numbers")
        if set(str(key)) & set("'\"\\{}"):
            raise ValueError(f"a dict has the key {key!r:.60}, which holds quotes")
    return keys
