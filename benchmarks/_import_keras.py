"""Keras models in each of the three formats as cases."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from _import_case import Case

from graphopt.import_options import ImportOptions

#: Of the largest element of an output.
FLOAT, HALF = 1e-5, 1e-3
_FORMATS = (".keras", ".h5", "SavedModel")


def cases(folder: Path, names: Collection[str] = ()) -> Iterator[Case]:
    """Every model whose name contains one of ``names`` (all, if there are none), saved below ``folder``."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    from _keras_models import MODELS, build

    for name in MODELS:
        if names and not any(wanted in name for wanted in names):
            continue
        model = build(name)
        bound = HALF if "float16" in name else FLOAT
        for format in _FORMATS:
            target = folder / (f"{name}{format}" if format.startswith(".") else name)
            if format.startswith("."):
                model.save(target)
            else:
                model.export(target, verbose=False)
            yield Case(str(target), name, format, ImportOptions(), bound)
