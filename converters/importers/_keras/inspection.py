"""What a Keras file or a SavedModel holds, found out before its framework sees it.

Keras rebuilds a model from a configuration that names Python objects; its ``safe_mode`` has been bypassed by
way of ``.h5`` files, of ``TFSMLayer``, and of functions that read files or the network. So every object that
the configuration names must be of a module that only computes; anything else needs a flag.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt.converters.importers._archive import check_archive, read_member
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions
from graphopt.limits import ARCHIVE_MEMBER, MIB, NESTING_DEPTH, PROTOBUF_MAX

__all__ = ["inspect_file", "inspect_saved_model"]

_PACKAGES = "keras keras.src tensorflow.keras tf_keras tf_keras.src"
_KINDS = (
    "activations constraints dtype_policies initializers layers losses metrics mixed_precision models ops "
    "optimizers random regularizers quantizers engine"
)
#: Modules of Keras whose objects only compute.
_MODULES = tuple(f"{package}.{kind}." for package in _PACKAGES.split() for kind in _KINDS.split())
_MODULES_WITHOUT_KIND = ("keras", "keras.src.models", "keras.src.ops", "builtins", "", "None")
_PLAIN_DATA = frozenset(
    {"__tuple__", "__numpy__", "__tensor__", "__keras_tensor__", "__ellipsis__", "__slice__"}
)
_RUNS_CODE = (
    "Lambda __lambda__ TFSMLayer JaxLayer FlaxLayer TorchModuleWrapper TFOpLambda TensorFlowOpLayer "
    "SlicingOpLambda ClassMethod InstanceMethod InstanceProperty function"
)
_CODE = frozenset(_RUNS_CODE.split())
#: Parts of the names of operators that run Python or touch files.
_FILE_OPS = (
    "CSVDataset",
    "CacheDataset",
    "DebugIdentity",
    "FixedLengthRecord",
    "InitializeTableFromTextFile",
    "LMDB",
    "LoadDataset",
    "MatchingFiles",
    "PrintV2",
    "PyFunc",
    "ReadFile",
    "SaveDataset",
    "Snapshot",
    "SummaryWriter",
    "TFRecord",
    "TextLine",
    "WholeFileReader",
    "WriteFile",
)
_CONFIG_LIMIT = 64 * MIB
#: HDF5's own: deflate, shuffle, checksum, n-bit, scale and offset; and h5py's lzf.
_FILTERS = frozenset({1, 2, 3, 5, 6, 32000})


def inspect_file(source: Path, options: ImportOptions) -> None:
    """Look at a ``.keras`` or ``.h5`` file.

    Raises:
        InputError: It is damaged, holds no model, or could run code; one line says what allows it.
    """
    with source.open("rb") as file:
        start = file.read(4)
    # Keras goes by the suffix: what is both an archive and HDF5 must be looked at as what Keras will read.
    archive = source.suffix.lower() == ".keras"
    if start != (b"PK\x03\x04" if archive else b"\x89HDF"):
        raise InputError(
            f"'{source}': is no {'.keras archive' if archive else 'HDF5 file'}, or is damaged; the "
            "suffixes are .keras for archives, .h5 and .hdf5 for HDF5"
        )
    if archive:
        for member in check_archive(source):
            name = member.filename
            if name not in ("config.json", "metadata.json", "model.weights.h5") and not name.startswith(
                "assets/"
            ):
                raise InputError(f"'{source}': member '{name}' is none of a Keras file")
        config = read_member(source, "config.json", _CONFIG_LIMIT)
        _inspect_hdf5(source, io.BytesIO(read_member(source, "model.weights.h5", ARCHIVE_MEMBER)))
    else:
        config = _inspect_hdf5(source, source)
        if not config:
            raise InputError(
                f"'{source}': holds weights only; save the whole model (model.save), or rebuild it in "
                "Python and load the weights there"
            )
    try:
        parsed = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{source}': damaged configuration") from error
    if isinstance(parsed, dict):
        parsed.pop("compile_config", None)  # not read: models are loaded with compile=False
    _inspect_config(source, parsed, options)


def _inspect_hdf5(source: Path, file: Any) -> bytes:
    """No link out of the file, no dataset larger than the file could hold; the configuration, if any."""
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            left = 100 * opened.id.get_filesize() + MIB  # bytes that all datasets may have
            pending, seen = [opened], set()
            while pending:
                group = pending.pop()
                address = h5py.h5o.get_info(group.id).addr
                if address in seen:
                    raise InputError(f"'{source}': a group is in two places; it is refused")
                seen.add(address)
                for name in group:
                    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                        raise InputError(f"'{source}': '{name}' is a link to elsewhere; it is refused")
                    item = group[name]
                    if isinstance(item, h5py.Group):
                        pending.append(item)
                    elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                        raise InputError(f"'{source}': '{name}' lies in another file; it is refused")
                    elif isinstance(item, h5py.Dataset):
                        _check_filters(source, item)
                        left -= item.nbytes
                        if left < 0:
                            raise InputError(f"'{source}': '{name}' is much larger than the file")
            config = opened.attrs.get("model_config", b"")
    except (OSError, KeyError, ValueError, RuntimeError, RecursionError) as error:
        raise InputError(f"'{source}': damaged HDF5: {str(error).splitlines()[0]}") from error
    try:
        return config.encode() if isinstance(config, str) else bytes(config)
    except (TypeError, ValueError) as error:  # a number; text that is no UTF-8
        raise InputError(f"'{source}': damaged configuration") from error


def _check_filters(source: Path, dataset: Any) -> None:
    """HDF5 looks for a library on the disk where it does not know a filter."""
    plan = dataset.id.get_create_plist()
    found = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
    if not found <= _FILTERS:
        raise InputError(f"'{source}': '{dataset.name}' is packed by a filter of its own; it is refused")


def _inspect_config(source: Path, config: Any, options: ImportOptions) -> None:
    custom = [tuple(spec.split(":", 1)) for spec in options.custom_objects]
    for entry, layer in _objects(source, config):
        name = str(entry["class_name"])
        module = str(entry.get("module"))
        where = f"'{source}': layer '{layer}' ({name})"
        if name in _CODE:
            if not options.allow_code:
                raise InputError(f"{where} holds code; --allow-code lets it run")
            continue
        is_class = name[:1].isupper() or name in _PLAIN_DATA
        known = is_class and (module in _MODULES_WITHOUT_KIND or f"{module}.".startswith(_MODULES))
        registered = entry.get("registered_name")
        if any(_is_custom(entry, *spec) for spec in custom):
            continue
        if not known or (registered not in (None, name) and ">" in str(registered)):
            raise InputError(
                f"{where} is of {module}: say --custom-object package.module:{name} to import and run it"
            )
        _refuse_files(source, layer, entry.get("config"))


def _is_custom(entry: dict[str, Any], module: str, name: str) -> bool:
    """Whether a configuration names just the object that the user named."""
    registered = entry.get("registered_name")
    return (
        entry["class_name"] == name
        and entry.get("module") in (module, None, "__main__")
        and (registered is None or str(registered).rpartition(">")[2] == name)
    )


def _objects(source: Path, config: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Everything that names a class, with the layer that it is in."""
    pending: list[tuple[Any, str, int]] = [(config, "model", 0)]
    while pending:
        item, layer, depth = pending.pop()
        if depth > 4 * NESTING_DEPTH:
            raise InputError(f"'{source}': its configuration is nested too deeply")
        if isinstance(item, dict):
            if isinstance(item.get("config"), dict) and "name" in item["config"]:
                layer = str(item["config"]["name"])
            if "class_name" in item:
                yield item, layer
            pending += [(value, layer, depth + 1) for value in item.values()]
        elif isinstance(item, list):
            pending += [(value, layer, depth + 1) for value in item]


def _refuse_files(source: Path, layer: str, config: Any) -> None:
    """Layers that read a vocabulary from a path, or anything from an address."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if isinstance(value, str) and ("://" in value or (key == "vocabulary" and value)):
            raise InputError(
                f"'{source}': layer '{layer}' reads '{value[:60]}'; a model file may read no other file"
            )


def inspect_saved_model(folder: Path, options: ImportOptions) -> None:
    """Look at the operators of a SavedModel.

    Raises:
        InputError: It is damaged, or holds operators that run Python or touch files.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    from graphopt.converters.importers._keras.checkpoints import misused

    for path in folder.rglob("*"):
        if path.is_symlink():
            raise InputError(f"'{folder}': '{path.name}' is a link; it is refused")
    model = saved_model_pb2.SavedModel()
    if (folder / "saved_model.pb").stat().st_size > PROTOBUF_MAX:
        raise InputError(f"'{folder}': saved_model.pb is too large")
    try:
        model.ParseFromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(f"'{folder}': saved_model.pb is damaged") from error
    for graph in model.meta_graphs:
        functions = graph.graph_def.library.function
        for node in [*graph.graph_def.node, *(node for f in functions for node in f.node_def)]:
            if any(name in node.op for name in _FILE_OPS) and not options.allow_code:
                raise InputError(
                    f"'{folder}': operator '{node.name}' ({node.op}) runs Python or touches files, "
                    "so it is refused"
                )
        for asset in graph.asset_file_def:
            if ".." in Path(asset.filename).parts or Path(asset.filename).is_absolute():
                raise InputError(f"'{folder}': asset '{asset.filename}' lies outside; it is refused")
        reason = "" if options.allow_code else misused(graph)
        if reason:
            raise InputError(f"'{folder}': {reason}, so it is refused")
