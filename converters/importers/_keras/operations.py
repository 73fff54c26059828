"""Operators of Keras 3 (``x + y``, ``x != 0``) in ``.h5`` files, which Keras writes and cannot read.

In its configuration an operator is a layer of the operator's class, without the module. Keras looks for a
layer of that name: it finds none (``NotEqual``), or one that is called in another way (``Add``). So they are
named apart in a copy of the file, and Keras is told which class each name is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["readable"]

_MODULES = ("numpy", "nn", "math", "core", "image", "linalg", "einops")


@contextlib.contextmanager
def readable(source: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file that Keras can read, and the classes that it must be told; the source itself where it can."""
    if source.suffix.lower() == ".keras":
        yield source, {}
        return
    import h5py

    with h5py.File(source, "r") as file:
        config = json.loads(file.attrs["model_config"])
    known = _rename(config)
    if not known:
        yield source, {}
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.h5"
        shutil.copyfile(source, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config).encode()
        yield copy, known


def _rename(config: Any) -> dict[str, Any]:
    """Name the operators of a configuration apart, in place; their classes by the new names."""
    known: dict[str, Any] = {}
    pending = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
            found = _operation(item)
            if found is not None:
                item["class_name"] = f"operation>{item['class_name']}"
                known[item["class_name"]] = found
        elif isinstance(item, list):
            pending += item
    return known


def _operation(entry: dict[str, Any]) -> Any:
    """The class of an operator among the layers; None for anything else."""
    inner, name = entry.get("config"), entry.get("class_name")
    if "inbound_nodes" not in entry or not isinstance(inner, dict) or not isinstance(name, str):
        return None
    if "trainable" in inner or "batch_shape" in inner or "batch_input_shape" in inner:
        return None  # a layer
    from keras import Operation

    for part in _MODULES:
        found = getattr(importlib.import_module(f"keras.src.ops.{part}"), name, None)
        if isinstance(found, type) and issubclass(found, Operation):
            return found
    return None
