"""What a PyTorch file holds, found out before torch sees it.

``torch.load`` without ``weights_only``, ``torch.jit.load`` and ``torch.export.load`` read pickles, which run
code; the latter does so even for a program of plain tensors (its sample inputs). So every pickle in the
archive is searched for the names that it would look up, and only those that make tensors are let through.

That is no proof for exported programs: torch evaluates expressions and guards of their JSON as Python, so
that they are imported only where the user trusts them.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Literal

import torch

from graphopt.converters.importers._archive import check_archive, read_member
from graphopt.converters.importers._pytorch.pickles import foreign_names
from graphopt.errors import InputError
from graphopt.limits import ARCHIVE_MEMBER, PICKLE
from graphopt.runtime.evaluate import first_line

__all__ = [
    "Kind",
    "check_exported_program",
    "check_torchscript",
    "kind",
    "load_weights",
    "parameters",
    "refusal",
]

Kind = Literal["ExportedProgram", "TorchScript", "weights", "module", "pickle"]
#: Members of an exported program whose bytes are numbers, as their .json says.
_RAW = re.compile(r"/data/(weights/weight|constants/tensor)_\d+$")
_TEXT = re.compile(r"(/archive_format|/archive_version|/byteorder|/\.data/\w+|/version|\.json|\.txt)$")
#: Operators of TorchScript that read or write files.
_FILES = re.compile(r"\b(from_file|ops\.\w+\.(save|load|read_file|write_file)|torch\.save)\s*\(")


def kind(source: Path) -> Kind:
    """What the file is.

    Raises:
        InputError: It is none of what torch writes, or a damaged one.
    """
    with source.open("rb") as file:
        start = file.read(4)
    if start != b"PK\x03\x04":  # as torch tells them apart
        if start[:1] == b"\x80":  # PROTO, as torch wrote before 1.6
            return "pickle"
        raise InputError(f"'{source}': is nothing that torch writes, or is damaged")
    names = [member.filename for member in check_archive(source)]
    if any(name.endswith("/archive_format") for name in names):
        return "ExportedProgram"
    if any(name.endswith("/constants.pkl") for name in names):
        return "TorchScript"
    data = next((name for name in names if name.endswith("/data.pkl")), None)
    if data is None:
        raise InputError(f"'{source}': is an archive, but nothing that torch writes")
    return "module" if _foreign(source, data, read_member(source, data, PICKLE)) else "weights"


def refusal(source: Path, found: Kind) -> InputError:
    """Why a file that is no model on its own cannot be imported, and what can."""
    if found == "weights":
        return InputError(
            f"'{source}': holds weights only; give the code as well: graphopt convert package.module:factory "
            f"TARGET --weights {source} --input x=float32[batch,...]"
        )
    what = "a pickle of an old torch"
    if found == "module":
        data = next(m.filename for m in check_archive(source) if m.filename.endswith("/data.pkl"))
        what = f"a pickled module ({_foreign(source, data, read_member(source, data, PICKLE))[0]})"
    return InputError(
        f"'{source}': holds {what}, which runs code when it is loaded; save it with torch.export.save, or "
        "give package.module:factory and --weights"
    )


def check_exported_program(source: Path) -> None:
    """Let through an exported program that holds tensors only.

    Raises:
        InputError: It holds something else; names the member and what it would look up.
    """
    for member in check_archive(source):
        name = member.filename
        if _TEXT.search(name) or member.is_dir():
            continue
        content = read_member(source, name, ARCHIVE_MEMBER)
        if _RAW.search(name) and content[:4] != b"PK\x03\x04":
            if content[:1] == b"\x80" and _is_pickle(content):
                _refuse_foreign(source, name, content)
            continue
        _check_saved(source, name, content)


def _check_saved(source: Path, name: str, content: bytes) -> None:
    """A member that ``torch.save`` or ``pickle`` wrote."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        _refuse_foreign(source, name, content)
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            for member in inner.infolist():
                if member.filename.endswith(".pkl"):
                    if member.file_size > PICKLE:
                        raise InputError(f"'{source}': member '{name}' holds a pickle that is too large")
                    _refuse_foreign(source, name, inner.read(member))
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError) as error:
        raise InputError(f"'{source}': damaged member '{name}': {error}") from error


def check_torchscript(source: Path) -> None:
    """Let through TorchScript whose pickles hold tensors and its own classes only.

    Raises:
        InputError: It holds something else.
    """
    members = check_archive(source)
    if len({member.filename.lower() for member in members}) < len(members):
        raise InputError(f"'{source}': two members differ by case only, which torch does not tell apart")
    for member in members:
        name = member.filename
        if name.lower().endswith((".pkl", "_pkl")):  # torch finds members whatever their case
            _refuse_foreign(
                source, name, read_member(source, name, PICKLE), ("__torch__", "torch.jit._pickle")
            )
        elif name.lower().endswith(".py"):
            text = read_member(source, name, PICKLE).decode("utf-8", "replace")
            match = _FILES.search(text)
            if match:
                raise InputError(f"'{source}': its code reads or writes files ('{match[0]}…'); it is refused")


def parameters(source: Path) -> list[str]:
    """Parameters of a TorchScript file's ``forward``, as its code says; ``x`` where it does not."""
    for member in check_archive(source):
        if member.filename.endswith("/code/__torch__.py"):
            text = read_member(source, member.filename, PICKLE).decode("utf-8", "replace")
            match = re.search(r"def forward\(self: [^,)]*,(.*?)\) ->", text, re.DOTALL)
            if match:
                return [part.split(":")[0].strip() for part in match[1].split(",") if ":" in part] or ["x"]
    return ["x"]


def load_weights(source: Path) -> dict[str, torch.Tensor]:
    """A state dict from ``.safetensors``, or from ``.pt`` with ``weights_only``.

    Raises:
        InputError: The file holds something else.
    """
    if not source.is_file():
        raise InputError(f"'{source}': no such file")
    try:
        if source.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(source)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"'{source}': {_needed(source, error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise InputError(f"'{source}': holds no state dict (a dict of tensors)")
    return {str(name): value for name, value in state.items()}


def _needed(source: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", str(error))
    if found:
        name = found[1] or found[2]
        return f"holds more than weights: {name}; save a state dict of tensors, or .safetensors"
    return f"cannot be read as weights: {first_line(error)}"


def _refuse_foreign(source: Path, name: str, content: bytes, prefixes: tuple[str, ...] = ()) -> None:
    foreign = _foreign(source, name, content, prefixes)
    if foreign:
        raise InputError(
            f"'{source}': member '{name}' looks up {foreign[0]}, which is no tensor; loading it could run "
            "code, so it is refused"
        )


def _foreign(source: Path, name: str, content: bytes, prefixes: tuple[str, ...] = ()) -> list[str]:
    try:
        return foreign_names(content, prefixes)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(f"'{source}': damaged member '{name}': {first_line(error)}") from error


def _is_pickle(content: bytes) -> bool:
    try:
        foreign_names(content)
    except (ValueError, IndexError, KeyError, OverflowError):
        return False
    return True
