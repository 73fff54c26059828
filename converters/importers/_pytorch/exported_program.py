"""Exported programs (``.pt2``): what torch loads is a copy that holds only what was understood.

``torch.export.load`` unpickles, evaluates and imports what a file tells it to. So it never sees the file: the
copy has the program's JSON, written anew (:mod:`program_json`), and the bytes of the tensors that this names.
No pickle is in it: that of the sample inputs, which every file has, is not needed.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from graphopt.converters.importers._archive import DAMAGE, check_archive, copy_archive, read_member
from graphopt.converters.importers._pytorch.pickles import refuse_foreign
from graphopt.converters.importers._pytorch.program_json import checked, parse
from graphopt.errors import InputError
from graphopt.limits import ARCHIVE_MEMBER, PICKLE, PROGRAM_JSON
from graphopt.runtime.evaluate import first_line

__all__ = ["checked_copy"]

_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
#: Members of which the copy has the same bytes: numbers, and one-line texts.
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_NOTE = re.compile(r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)")
#: Members that torch does not need to load the program, and which the copy does not have.
_NEEDLESS = re.compile(r"extra/.*", re.DOTALL)
_NOTES = {"archive_format": b"pt2", "byteorder": b"little"}
_SAMPLE_NAMES = ("torch._export.serde.serialize _reconstruct_fake_tensor",)
#: What is refused by its own name, beside what nobody knows.
_KNOWN = (
    ("data/aotinductor/", "holds compiled code, which is not imported"),
    ("data/constants/custom_obj_", "holds an object that is no tensor"),
    ("data/constants/opaque_obj_", "holds an object that is no tensor"),
    ("models/", "is one of several programs; save 'model' alone"),
    ("data/weights/model.pt", "is a pickle of an older torch; export the program again"),
    ("data/constants/model.pt", "is a pickle of an older torch; export the program again"),
)


def checked_copy(source: Path, folder: Path) -> Path:
    """An archive in ``folder`` with what ``source`` holds of a program of plain tensors.

    Raises:
        InputError: It holds something else; names the member and what is wrong with it.
    """
    root, sizes = _members(source)
    records = {
        _PROGRAM: _record(source, root, _PROGRAM, "ExportedProgram"),
        _WEIGHTS: _record(source, root, _WEIGHTS, "PayloadConfig"),
        _CONSTANTS: _record(source, root, _CONSTANTS, "PayloadConfig"),
    }
    _check_samples(source, root + _SAMPLES)
    for config, prefix in ((_WEIGHTS, "data/weights/weight_"), (_CONSTANTS, "data/constants/tensor_")):
        for name, payload in records[config]["config"].items():
            reason = _payload_is_wrong(payload, prefix, sizes)
            if reason:
                raise InputError(f"'{source}': member '{root}{config}': '{name[:80]}' {reason}")
    written = {root + name: json.dumps(record, allow_nan=False).encode() for name, record in records.items()}
    kept = [root + name for name in sizes if _TENSOR.fullmatch(name) or _NOTE.fullmatch(name)]
    target = folder / "checked.pt2"
    copy_archive(source, target, kept, {**written, root + _SAMPLES: b""})
    return target


def _members(source: Path) -> tuple[str, dict[str, int]]:
    """The archive's one folder and the sizes of the members in it, all of them known."""
    members = [member for member in check_archive(source) if not member.is_dir()]
    root = members[0].filename.partition("/")[0] + "/"
    sizes: dict[str, int] = {}
    for member in members:
        name = member.filename.removeprefix(root)
        reason = _member_is_wrong(name) if member.filename.startswith(root) else "is in a second folder"
        if reason:
            raise InputError(f"'{source}': member '{member.filename}' {reason}")
        sizes[name] = member.file_size
    if len({name.lower() for name in sizes}) < len(sizes):
        raise InputError(f"'{source}': two members differ by case only, which torch does not tell apart")
    for name, content in _NOTES.items():
        if name in sizes and read_member(source, root + name, PICKLE).strip() != content:
            raise InputError(f"'{source}': member '{root}{name}' does not say '{content.decode()}'")
    return root, sizes


def _member_is_wrong(name: str) -> str:
    if name in (_PROGRAM, _SAMPLES, _WEIGHTS, _CONSTANTS):
        return ""
    if any(pattern.fullmatch(name) for pattern in (_TENSOR, _NOTE, _NEEDLESS)):
        return ""
    known = next((why for prefix, why in _KNOWN if name.startswith(prefix)), "")
    return known or "is nothing that torch.export.save writes"


def _record(source: Path, root: str, name: str, kind: str) -> Any:
    """A JSON member, written anew."""
    try:
        return checked(kind, parse(read_member(source, root + name, PROGRAM_JSON)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{source}': member '{root}{name}': {first_line(error)}; it is refused") from error


def _payload_is_wrong(payload: dict[str, Any], prefix: str, sizes: dict[str, int]) -> str:
    """Why a tensor's record does not fit its bytes; torch checks no sizes where a member is empty."""
    if payload.get("use_pickle") is not False:
        return "is a pickle; only plain tensors are imported"
    folder = prefix.rpartition("/")[0]
    path = f"{folder}/{payload.get('path_name')}"
    meta: Any = payload.get("tensor_meta")
    if not path.startswith(prefix) or path not in sizes:
        return f"has no member '{path}'"
    try:
        axes = [[size["as_int"] for size in meta[key]] for key in ("sizes", "strides")]
        offset = meta["storage_offset"]["as_int"]
        item = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]].itemsize
    except (KeyError, TypeError):
        return "has no plain sizes"
    if len(axes[0]) != len(axes[1]) or any(number < 0 for number in (*axes[0], *axes[1], offset)):
        return "has no plain sizes"
    last = offset + sum((size - 1) * stride for size, stride in zip(*axes, strict=True))
    needed = 0 if 0 in axes[0] else (last + 1) * item
    return f"needs {needed:,} bytes and has {sizes[path]:,}" if needed > sizes[path] else ""


def _check_samples(source: Path, name: str) -> None:
    """Sample inputs are not read; a pickle in them that names code is still no model to import."""
    content = read_member(source, name, ARCHIVE_MEMBER)
    for pickle in _pickles(source, name, content):
        refuse_foreign(source, name, pickle, _SAMPLE_NAMES)


def _pickles(source: Path, name: str, content: bytes) -> Iterator[bytes]:
    if not content:
        return
    if content[:4] != b"PK\x03\x04":
        yield content  # of an older torch
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            for member in inner.infolist():
                if member.filename.lower().endswith(".pkl"):
                    if member.file_size > PICKLE:
                        raise InputError(f"'{source}': member '{name}' holds a pickle that is too large")
                    yield inner.read(member)
    except DAMAGE as error:
        raise InputError(f"'{source}': damaged member '{name}': {error}") from error
