"""TorchScript (``.pt``): source and pickles that C++ reads, which can still open files and start processes.

What torch loads is a copy with members that are known. Its source may name PyTorch's own operators, and none
that takes the name of a file; its pickles make tensors and the classes of that source.

The source is searched as text, strings and comments with it: whatever torch takes for code is in there, and
no second parser has to agree with torch's.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from graphopt.converters.importers._archive import check_archive, copy_archive, read_member
from graphopt.converters.importers._pytorch.operators import does_more_than_compute
from graphopt.converters.importers._pytorch.pickles import refuse_foreign
from graphopt.errors import InputError
from graphopt.limits import PICKLE

__all__ = ["checked_copy", "parameters"]

_SOURCE = re.compile(r"code/.+\.py", re.DOTALL)
_PICKLE = re.compile(r"(data|constants|attributes)\.pkl")
_TENSOR = re.compile(r"(data|constants)/\d+")
_NOTE = re.compile(r"version|byteorder|\.data/(version|serialization_id)")
#: Members that torch reads only if it is asked to, and which the copy does not have.
_NEEDLESS = re.compile(
    r"extra/.*|code/.+\.debug_pkl|traced_inputs(\.pkl|/\d+)|(bytecode|mobile_debug_handles)\.pkl", re.DOTALL
)
#: Classes of the source, and of torch's packed weights; other C++ classes are of processes and networks.
_CLASSES = re.compile(
    r"__torch__(?!\.torch\.classes\b)(\.\w+)* \w+|__torch__\.torch\.classes\.quantized \w+", re.ASCII
)
_BUILDERS = (
    "torch._utils _rebuild_qtensor",
    "torch.jit._pickle build_boollist",
    "torch.jit._pickle build_doublelist",
    "torch.jit._pickle build_intlist",
    "torch.jit._pickle build_tensor_from_id",
    "torch.jit._pickle build_tensorlist",
    "torch.jit._pickle restore_type_tag",
    "torch per_channel_affine",
    "torch per_tensor_affine",
)
#: What names things in a way that the other patterns do not see; ``getattr(self, "0")`` is torch's own.
_HIDING = re.compile(
    r"\brpc_(async|remote|sync)\b|(?<![\w.])(setattr|delattr)\b"
    r"|\bgetattr\b(?!\((?!torch\b|__torch__)[A-Za-z_][\w.]*, \"[\w. -]*\"\))"
    r"|\b__torch__(?!\.\w)|\b__torch__\.torch\b(?!\.\w)|\btorch\s*\.\s*classes\b(?!\.quantized\b)",
    re.ASCII,
)
_PRIMITIVES = (
    "AutogradZero|ConstantChunk|EnumName|EnumValue|NumToTensor|Print|RaiseException|StringIndex|TupleIndex|"
    "TupleUnpack|Uninitialized|abs|data|device|dtype|grad|id|index|is_\\w+|itemsize|layout|max|min|name|nbytes|"
    "rangelist|requires_grad|tolist|type|unchecked_cast|unchecked_unwrap_optional"
)
_SPACE = re.compile(
    rf"(?<![\w.])ops\b(?!\.(?:(?:aten|quantized)\.[A-Za-z_]\w*|prim\.(?:{_PRIMITIVES}))\()", re.ASCII
)
#: Names after a dot, whatever stands between, and those that ``getattr`` is given.
_MEMBER = re.compile(r"\.(?:\s|\\|#[^\n]*\n)*([A-Za-z_]\w*)|\bgetattr\([\w.]+, \"([^\"]*)", re.ASCII)


def checked_copy(source: Path, folder: Path) -> Path:
    """An archive in ``folder`` with what ``source`` holds of a program that only computes.

    Raises:
        InputError: It holds something else; names the member and what is wrong with it.
    """
    members = [member for member in check_archive(source) if not member.is_dir()]
    root = members[0].filename.partition("/")[0] + "/"
    if len({member.filename.lower() for member in members}) < len(members):
        raise InputError(f"'{source}': two members differ by case only, which torch does not tell apart")
    for member in members:
        _check_member(source, root, member)
    names = [member.filename for member in members]
    target = folder / "checked.pt"
    copy_archive(source, target, [n for n in names if not _NEEDLESS.fullmatch(n.removeprefix(root))], {})
    return target


def _check_member(source: Path, root: str, member: zipfile.ZipInfo) -> None:
    path = member.filename
    name = path.removeprefix(root) if path.startswith(root) else ""
    if _SOURCE.fullmatch(name):
        reason = _forbidden(read_member(source, path, PICKLE))
        if reason:
            raise InputError(f"'{source}': member '{path}' {reason}; it is refused")
    elif _PICKLE.fullmatch(name):
        refuse_foreign(source, path, read_member(source, path, PICKLE), _BUILDERS, _CLASSES)
    elif not any(pattern.fullmatch(name) for pattern in (_TENSOR, _NOTE, _NEEDLESS)):
        raise InputError(f"'{source}': member '{path}' is nothing that torch.jit.save writes today")


def _forbidden(content: bytes) -> str:
    """What source does that is more than to compute; empty where it is nothing."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return "is no text"
    hidden = _HIDING.search(text)
    if hidden:
        return f"uses '{_shown(text, hidden.start())}', which may run anything"
    space = _SPACE.search(text)
    if space:
        return f"uses '{_shown(text, space.start())}', which is not of PyTorch itself"
    for match in _MEMBER.finditer(text):
        if (match[1] or match[2]) in does_more_than_compute():
            return f"uses '{_shown(text, match.start())}', which reads or writes files"
    return ""


def _shown(text: str, start: int) -> str:
    return " ".join(text[start : start + 40].split())


def parameters(source: Path) -> list[str]:
    """Parameters of a TorchScript file's ``forward``, as its code says; ``x`` where it does not."""
    for member in check_archive(source):
        if member.filename.endswith("/code/__torch__.py"):
            text = read_member(source, member.filename, PICKLE).decode("utf-8", "replace")
            match = re.search(r"def forward\(self: [^,)]*,(.*?)\) ->", text, re.DOTALL)
            if match:
                return [part.split(":")[0].strip() for part in match[1].split(",") if ":" in part] or ["x"]
    return ["x"]
