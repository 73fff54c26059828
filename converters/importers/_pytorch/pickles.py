"""Which names a pickle would look up, found without running it.

A pickle is a program for a small stack machine; what it may call are the names that it looks up (opcodes
GLOBAL, STACK_GLOBAL, INST and the EXT codes). Source: the opcode table of :mod:`pickletools`.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from graphopt.errors import InputError
from graphopt.runtime.evaluate import first_line

__all__ = ["foreign_names", "foreign_names_of", "names_in", "refuse_foreign"]

#: What torch itself writes for tensors, parameters, storages and their containers.
_TENSORS = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch device",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_parameter_with_state",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_tensor_v3",
        "torch.serialization _get_layout",
        "torch.storage TypedStorage",
        "torch.storage UntypedStorage",
    }
)
_KINDS = (
    "BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half Int Long QInt8 QInt32 QUInt8 Short"
)
_TYPES = (
    "bfloat16 bool complex128 complex64 float16 float32 float64 int16 int32 int64 int8 uint16 uint32 uint64 "
    "uint8 strided"
)
_STORAGES = frozenset(f"torch {kind}Storage" for kind in _KINDS.split())
_DTYPES = frozenset(f"torch {name}" for name in _TYPES.split())
_UNKNOWN = "a name that is computed"


def foreign_names(
    content: bytes, also: Collection[str] = (), classes: re.Pattern[str] | None = None
) -> list[str]:
    """Names that are not tensors' own, as ``module.name``; empty where the pickle holds tensors only.

    Args:
        content: The pickle.
        also: Names that are allowed as well, as ``module name``.
        classes: A pattern for such names.

    Raises:
        ValueError: It is no pickle.
    """
    allowed = _TENSORS | _STORAGES | _DTYPES | frozenset(also)
    return [
        name.replace(" ", ".", 1) if name != _UNKNOWN else name
        for name in names_in(content)
        if name not in allowed and not (classes and classes.fullmatch(name))
    ]


def foreign_names_of(
    source: Path,
    member: str,
    content: bytes,
    also: Collection[str] = (),
    classes: re.Pattern[str] | None = None,
) -> list[str]:
    """The same of a member of an archive.

    Raises:
        InputError: It is no pickle.
    """
    try:
        return foreign_names(content, also, classes)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(f"'{source}': damaged member '{member}': {first_line(error)}") from error


def refuse_foreign(
    source: Path,
    member: str,
    content: bytes,
    also: Collection[str] = (),
    classes: re.Pattern[str] | None = None,
) -> None:
    """Let through a pickle of tensors.

    Raises:
        InputError: It is none; names the first thing that it would look up.
    """
    foreign = foreign_names_of(source, member, content, also, classes)
    if foreign:
        raise InputError(
            f"'{source}': member '{member}' looks up {foreign[0]}, which is no tensor; loading it could run "
            "code, so it is refused"
        )


def names_in(content: bytes) -> list[str]:
    """Every name that the pickle would look up, as ``module name``, in order.

    Raises:
        ValueError: It is no pickle.
    """
    found: list[str] = []
    recent: list[str | None] = []  # strings that were pushed last; None for anything else
    memo: dict[Any, str | None] = {}
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument))
            recent.append(None)
        elif opcode.name == "STACK_GLOBAL":
            pair = recent[-2:]
            known = len(pair) == 2 and all(part is not None for part in pair)
            found.append(f"{pair[0]} {pair[1]}" if known else _UNKNOWN)
            recent.append(None)
        elif opcode.name.startswith("EXT"):
            found.append(_UNKNOWN)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = recent[-1] if recent else None
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = recent[-1] if recent else None
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            recent.append(memo.get(argument))
        elif opcode.name not in ("PROTO", "FRAME"):
            recent.append(argument if isinstance(argument, str) else None)
    return list(dict.fromkeys(found))
