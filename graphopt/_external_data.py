"""External data of a model: where it may lie, and what is checked before it is mapped.

A model names its data files, so a crafted one could name any file of this machine. A data file must be a
regular file below the model's folder, reached without links and with no second name, and hold the bytes
that the tensors say.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, MutableMapping
from pathlib import Path, PurePath

import onnx
import onnx_ir as ir

from graphopt._proto import Place, nbytes_of, quoted
from graphopt._structure import initializers
from graphopt.errors import InputError
from graphopt.graph import all_nodes

__all__ = ["attach", "external_files", "guard_external"]

#: The keys of the ONNX specification. Any other is dropped, since onnx would warn for each of them.
_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
#: Where a loaded model keeps the data files it came from; passes replace the tensors that knew them.
_FILES = "graphopt.external_files"


def guard_external(places: Iterable[Place], folder: Path | None) -> bool:
    """Check the external data of all tensors; drop unknown keys of their entries.

    Returns:
        Whether any tensor has its data outside.

    Args:
        places: All tensors of a model.
        folder: The absolute folder of the model file; None if it did not come from a file.

    Raises:
        InputError: The tensor, its data file and what to do.
    """
    sizes: dict[str, int] = {}
    for place in places:
        tensor = place.tensor
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if folder is None:
            raise InputError(
                f"{place} is in an external file; load the model from its file, not as a ModelProto"
            )
        known = [entry for entry in tensor.external_data if entry.key in _KEYS]
        if len(known) < len(tensor.external_data):
            known = [onnx.StringStringEntryProto(key=e.key, value=e.value) for e in known]
            del tensor.external_data[:]
            tensor.external_data.extend(known)
        entries = {entry.key: entry.value for entry in known}
        location = entries.get("location", "")
        if location not in sizes:
            sizes[location] = _file_size(place, location, folder)
        _guard_range(place, entries, sizes[location])
    return bool(sizes)


def _file_size(place: Place, location: str, folder: Path) -> int:
    """Size of the data file at ``location``, once it is known to be one that the model may name."""
    parts = PurePath(location).parts
    where = f"{place}: its data file {quoted(location)}"
    if not parts or "\0" in location:
        raise InputError(f"{place} is external but names no data file: the model is damaged")
    if PurePath(location).anchor or ".." in parts:
        raise InputError(
            f"{where} is outside the model's folder; put it beside the model and name it relative to it"
        )
    path = folder
    status = None
    for part in parts:
        path = path / part
        try:
            status = path.lstat()
        except OSError as error:
            reason = (
                "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used ({error.strerror})"
            )
            raise InputError(f"{where} {reason}; put it beside the model") from None
        if stat.S_ISLNK(status.st_mode):
            raise InputError(
                f"{where} is reached through the symbolic link '{path}'; put the real file there"
            )
    assert status is not None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{where} is not a regular file; put the real data file there")
    if status.st_nlink != 1:
        raise InputError(f"{where} has {status.st_nlink} hard links; put a copy of its own there")
    return status.st_size


def _guard_range(place: Place, entries: dict[str, str], file_size: int) -> None:
    """The tensor's bytes lie inside its data file."""
    if place.tensor.data_type == onnx.TensorProto.STRING:
        raise InputError(f"{place} holds strings, which cannot be external: the model is damaged")
    where = f"{place}: its data file {quoted(entries['location'])}"
    offset = _number(place, entries, "offset", 0)
    needed = nbytes_of(place.tensor)
    length = _number(place, entries, "length", needed)
    if length != needed:
        shape = list(place.tensor.dims)
        raise InputError(f"{place} has {length} bytes in its data file, its shape {shape} needs {needed}")
    if offset + length > file_size:
        raise InputError(
            f"{where} has {file_size} bytes, the tensor needs {offset} to {offset + length}: "
            "the file is truncated or belongs to another model"
        )


def _number(place: Place, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"{place}: the {key} of its external data is {quoted(text)}, not a number of bytes")
    return int(text)


def attach(model: ir.Model, folder: Path) -> None:
    """Tell every external tensor its folder; make those of attributes ordinary tensors over a memory map.

    onnx_ir forgets the folder of tensors in functions, and saves external attributes with a location that
    is wrong in another folder.
    """
    files: set[Path] = set()
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = folder
            files.add(Path(value.const_value.path))
    for node in all_nodes(model):
        _map_attributes(node.attributes, folder, files)
    for function in model.functions.values():
        _map_attributes(function.attributes, folder, files)
    model.meta[_FILES] = frozenset(files)


def _map_attributes(attributes: MutableMapping[str, ir.Attr], folder: Path, files: set[Path]) -> None:
    for name, attribute in list(attributes.items()):
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                attributes[name] = ir.AttrTensor(name, _mapped(tensor, folder, files))
        elif attribute.type == ir.AttributeType.TENSORS:
            tensors = attribute.as_tensors()
            if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
                attributes[name] = ir.AttrTensors(
                    name, [_mapped(tensor, folder, files) for tensor in tensors]
                )


def _mapped(tensor: ir.TensorProtocol, folder: Path, files: set[Path]) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    tensor.base_dir = folder
    files.add(Path(tensor.path))
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def external_files(model: ir.Model) -> list[Path]:
    """The data files that the model was loaded from or still reads, sorted: no output may replace one."""
    files: set[Path] = set(model.meta.get(_FILES, ()))
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            files.add(Path(os.path.abspath(value.const_value.path)))  # noqa: PTH100 (keeps links)
    return sorted(files)
