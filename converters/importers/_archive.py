"""Zip archives from strangers: looked at before anything reads them.

A ``.keras``, ``.pt`` or ``.pt2`` file is a zip archive. What is refused here: a damaged or encrypted archive,
members that are too many, that grow too much when they are unpacked (zip bombs), that share bytes, whose
names leave the archive or come twice.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from graphopt.errors import InputError
from graphopt.limits import ARCHIVE_EXPANSION, ARCHIVE_MEMBERS, MIB

__all__ = ["DAMAGE", "check_archive", "copy_archive", "member_names", "read_member"]

_ENCRYPTED = 0x1
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: What zipfile raises where a file is no archive, or a damaged one.
DAMAGE = (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError, RuntimeError, zlib.error)


def member_names(source: Path) -> list[str]:
    """What an archive holds, to recognize it by; nothing where the file is no archive."""
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.namelist()
    except DAMAGE:
        return []


def check_archive(source: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive that is safe to unpack.

    Raises:
        InputError: It is not; one line says why.
    """
    try:
        size = source.stat().st_size
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except DAMAGE as error:
        raise InputError(f"'{source}': damaged archive: {error}") from error
    if len(members) > ARCHIVE_MEMBERS:
        raise InputError(f"'{source}': has {len(members):,} members; {ARCHIVE_MEMBERS:,} are the limit")
    reason = next((why for why in map(_refusal, members) if why), "") or _overlap(members)
    if not reason and members and min(member.header_offset for member in members):
        reason = "damaged archive: it is cut, or has something before it"  # an archive within was found
    if not reason and len({member.filename for member in members}) < len(members):
        reason = "two members have one name"
    if not reason and sum(member.file_size for member in members) > max(ARCHIVE_EXPANSION * size, MIB):
        reason = f"unpacks to more than {ARCHIVE_EXPANSION} times its size"
    if reason:
        raise InputError(f"'{source}': {reason}")
    return members


def read_member(source: Path, name: str, limit: int) -> bytes:
    """One member of a checked archive, at most ``limit`` bytes of it.

    Raises:
        InputError: It is missing, damaged, or larger than the limit.
    """
    try:
        with zipfile.ZipFile(source) as archive, archive.open(name) as member:
            content = member.read(limit + 1)
    except DAMAGE as error:
        raise InputError(f"'{source}': damaged member '{name}': {error}") from error
    if len(content) > limit:
        raise InputError(f"'{source}': member '{name}' has more than {limit:,} bytes")
    return content


def copy_archive(source: Path, target: Path, kept: Iterable[str], written: Mapping[str, bytes]) -> None:
    """An archive with some members of a checked one, and others.

    Nothing is packed in it, and nothing of the source's own headers is in it: two readers of it agree.

    Raises:
        InputError: A member is damaged.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in kept:
            try:
                with old.open(name) as member, new.open(name, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(member, copy, MIB)
            except DAMAGE as error:
                raise InputError(f"'{source}': damaged member '{name}': {error}") from error
        for name, content in written.items():
            new.writestr(name, content)


def _refusal(member: zipfile.ZipInfo) -> str:
    name = member.filename
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        return f"member '{name}' would leave the archive"
    if not name.isprintable():
        return f"member {name[:80]!r} has a name that is no text"
    if member.flag_bits & _ENCRYPTED:
        return f"member '{name}' is encrypted"
    if member.compress_type not in _PACKINGS:
        return f"member '{name}' is packed as {member.compress_type}, which is not read"
    return ""


def _overlap(members: list[zipfile.ZipInfo]) -> str:
    """Members that share bytes unpack to any size from a small file."""
    end, before = 0, ""
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < end:
            return f"members '{before}' and '{member.filename}' share bytes"
        end, before = member.header_offset + member.compress_size, member.filename
    return ""
