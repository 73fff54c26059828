"""Load, check and save models: the one way in and out.

What comes in is hostile until it is checked (see :func:`load`); what goes out is whole or not there (see
:func:`save`). Weights stay where they are: external data is memory-mapped, never copied into the process,
and saving streams it from file to file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from graphopt import _formats
from graphopt._atomic import checked_target, output_errors, replace, replace_pair
from graphopt._checker import check_proto
from graphopt._collector import collector_held
from graphopt._external_data import attach, external_files, guard_external
from graphopt._interface import Interface, Port, interface
from graphopt._ir_version import raise_ir_version
from graphopt._proto import guard, root_cause, tensors_of
from graphopt._shadows import unshadow
from graphopt._structure import IN_MEMORY, structure_proto
from graphopt._tensors import keep_facts
from graphopt._writer import full_proto, plan, write
from graphopt.errors import InputError, OutputError, UserError
from graphopt.limits import MIB, PROTOBUF_MAX, TEXT_MODEL

__all__ = [
    "IN_MEMORY",
    "Interface",
    "Port",
    "check",
    "external_files",
    "from_proto",
    "interface",
    "load",
    "refuse_overwriting",
    "save",
    "serialized_size",
    "structure_proto",
    "write_json",
]

#: An old model file is searched for its data file up to this size: one with its weights outside is small.
_OLD_MODEL_BYTES = 256 * MIB


def load(source: str | os.PathLike[str]) -> ir.Model:
    """Load an ONNX model from a file; weights in external data are memory-mapped when they are used.

    The suffix tells a text form (``.onnxtxt``, ``.textproto``, ``.pbtxt``, ``.json``); anything else is read
    as binary protobuf. Before anything is allocated for it, every tensor's data has been found to be as long
    as its shape says, external data to lie in regular files of the model's folder (no links, no ``..``, no
    second hard link), nesting and function calls to be bounded; then the ONNX checker runs. Training
    information is dropped. Two forms that mean trouble are made regular: names in subgraphs that hide outer
    names (see :func:`unshadow`), and initializers that are inputs for the age of the model alone (see
    :func:`raise_ir_version`).

    Raises:
        InputError: The file is missing, damaged, or no valid ONNX model; one line says where and why.
        UnsupportedError: It holds what graphopt cannot represent (sparse tensors, map types).
    """
    path = Path(os.path.abspath(source))  # noqa: PTH100 (the model's folder is the one the user named)
    try:
        with collector_held():
            return _from_proto(_formats.read(path), path.parent)
    except UserError as error:
        raise type(error)(f"'{source}': {error}") from error


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model from a copy of ``proto``, with the checks of :func:`load`; it must have no external data.

    Raises:
        InputError, UnsupportedError: as :func:`load` does.
    """
    if not proto.opset_import or not proto.ir_version:
        raise InputError("the ModelProto has no opset import or no IR version")
    copy = onnx.ModelProto()
    try:
        copy.CopyFrom(proto)
        with collector_held():
            return _from_proto(copy, None)
    except (DecodeError, EncodeError) as error:
        raise InputError("the ModelProto is larger than 2 GiB or nested too deeply") from error
    except UserError as error:
        raise type(error)(f"the ModelProto: {error}") from error


def _from_proto(proto: onnx.ModelProto, folder: Path | None) -> ir.Model:
    places = guard(proto)
    external = guard_external(places, folder)
    check_proto(proto, places)
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"not a valid ONNX model: {root_cause(error)}") from error
    if external and folder is not None:
        attach(model, folder)
    keep_facts(model, in_attributes=any(place.node is not None for place in places))
    unshadow(model)
    raise_ir_version(model)
    return model


def check(model: ir.Model) -> onnx.ModelProto:
    """Run the ONNX checker on the structure of the model, which is left as it is.

    Returns:
        What was checked, as :func:`structure_proto` makes it.

    Raises:
        InputError: The model is not valid ONNX; one line says why.
    """
    try:
        proto = structure_proto(model)
    except ir.serde.SerdeError as error:
        raise InputError(f"the model cannot be serialized: {root_cause(error)}") from error
    if proto.functions:
        guard(proto)
    check_proto(proto)
    return proto


def serialized_size(model: ir.Model) -> int:
    """Bytes that :func:`save` would write to a ``.onnx`` file and its data file; no weight is read.

    Exact for one file; the length of the data file's name, which is in every entry, is assumed.
    """
    return plan(model, "model.onnx.data", None).total_bytes


def save(model: ir.Model, target: str | os.PathLike[str], *, external_data: bool | None = None) -> int:
    """Write a model to a file, whole or not at all.

    Everything is written beside the target, synced, and renamed into place: whatever happens, the target is
    the old file or the new one. Weights are streamed. A data file is called ``<model file>.data``, or
    ``<model file>.<n>.data`` while that name is taken, so that an old model never points at new weights; the
    data file of the model that was replaced is then removed, unless ``model`` still reads it.

    Args:
        model: The model; it is not changed.
        target: The file. Its suffix tells the form: ``.onnx`` and ``.pb`` are binary; ``.onnxtxt``,
            ``.textproto``, ``.pbtxt`` and ``.json`` are text, with all weights in it.
        external_data: Whether initializers of 1 KiB and more go to a data file. None: if the model is larger
            than ``limits.EXTERNAL_DATA_ABOVE``, or its weights than ``limits.EXTERNAL_DATA_KEPT_ABOVE`` and
            some of them still lie in a data file.

    Returns:
        The bytes written, the data file included.

    Raises:
        OutputError: It cannot be written there; nothing was changed.
        InputError: Weights of the model lie in a file that cannot be read any more.
    """
    path = checked_target(target)
    refuse_overwriting(external_files(model), [path])
    suffix = path.suffix.lower()
    with output_errors(target):
        if suffix in _formats.TEXT_SUFFIXES:
            return _save_text(model, path, external_data)
        if suffix in _formats.BINARY_SUFFIXES:
            return _save_binary(model, path, external_data)
        known = ", ".join((*_formats.BINARY_SUFFIXES, *_formats.TEXT_SUFFIXES))
        raise OutputError(f"{suffix or 'no suffix'} is no ONNX format; known: {known}")


def _save_binary(model: ir.Model, path: Path, external_data: bool | None) -> int:
    data_path = _free_data_path(path)
    planned = plan(model, data_path.name, external_data)
    if planned.model_bytes > PROTOBUF_MAX:
        raise OutputError("the file would pass the 2 GiB of protobuf; write its weights as external data")
    stale = _data_files_of(path) - {file.resolve() for file in external_files(model)}
    if planned.data:
        size = replace_pair(path, partial(write, planned.model), data_path, partial(write, planned.data))
    else:
        size = replace(path, partial(write, planned.model))
    for file in stale:
        with contextlib.suppress(OSError):  # the model is saved; what is left over harms nobody
            file.unlink()
    return size


def _save_text(model: ir.Model, path: Path, external_data: bool | None) -> int:
    suffix = path.suffix.lower()
    if external_data:
        raise OutputError(f"{suffix} files hold all weights; write .onnx to have external data")
    small = serialized_size(model) <= TEXT_MODEL
    content = _formats.to_text(full_proto(model), suffix) if small else b""
    if not small or len(content) > TEXT_MODEL:
        raise OutputError(f"it would be larger than {TEXT_MODEL // MIB} MiB, too large for text; write .onnx")
    return replace(path, partial(write, [content]))


def _free_data_path(path: Path) -> Path:
    """A name for the data file of ``path`` that nothing has yet."""
    names = itertools.chain([f"{path.name}.data"], (f"{path.name}.{n}.data" for n in itertools.count(1)))
    return next(free for name in names if not os.path.lexists(free := path.with_name(name)))


def _data_files_of(path: Path) -> set[Path]:
    """The data files, named by :func:`save`, that the model file at ``path`` refers to."""
    ours = re.compile(re.escape(path.name) + r"(\.\d+)?\.data")
    present = {file.name for file in path.parent.iterdir() if ours.fullmatch(file.name)}
    if not present or not path.exists() or path.stat().st_size > _OLD_MODEL_BYTES:
        return set()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        return set()
    entries = (entry for place in tensors_of(proto) for entry in place.tensor.external_data)
    return {path.with_name(e.value) for e in entries if e.key == "location" and e.value in present}


def write_json(document: object, target: str | os.PathLike[str]) -> int:
    """Write a JSON document, whole or not at all; returns the bytes written.

    Raises:
        OutputError: It cannot be written there; nothing was changed.
    """
    content = json.dumps(document, indent=2).encode() + b"\n"
    with output_errors(target):
        return replace(checked_target(target), partial(write, [content]))


def refuse_overwriting(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse outputs that are inputs by whatever name: links and other spellings of a path are seen through.

    The data files of a loaded model are inputs too: see :func:`external_files`.

    Raises:
        OutputError: the first such output.
    """
    sources = list(inputs)
    for output in outputs:
        for source in sources:
            if _is_same_file(source, output):
                raise OutputError(f"'{output}' would overwrite the input '{source}'; choose another name")


def _is_same_file(a: Path, b: Path) -> bool:
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    try:
        return a.samefile(b)
    except OSError:  # one of them does not exist
        return False
