"""The recipe's data: calibration arrays and the evaluation of a task metric."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import registry
from graphopt.errors import InputError
from graphopt.recipe import Evaluation, Recipe, is_code
from graphopt.runtime import evaluate

__all__ = ["Arrays", "calibration", "load_arrays", "metric", "metric_name", "rows"]

Arrays = dict[str, np.ndarray]

#: Rows that one evaluation batch holds where the batch axis is free.
_BATCH = 128


def load_arrays(path: Path) -> Arrays:
    """The arrays of an .npz file, or of all .npz and .npy files of a folder (rows joined, by name).

    Raises:
        InputError: missing, not numpy data, or holding pickled objects (which are never loaded).
    """
    if path.is_dir():
        return _load_folder(path)
    try:
        with path.open("rb") as file:  # numpy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {path.stem: loaded}
            return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InputError(f"cannot read data file '{path}': {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"'{path}' is not plain numpy data: {str(error).splitlines()[0]}") from error


def _load_folder(folder: Path) -> Arrays:
    files = sorted(p for p in folder.iterdir() if p.suffix in (".npz", ".npy"))
    if not files:
        raise InputError(f"folder '{folder}' holds no .npz or .npy files")
    parts: dict[str, list[np.ndarray]] = {}
    for file in files:
        for name, array in load_arrays(file).items():
            parts.setdefault(name, []).append(array)
    try:
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
    except ValueError as error:
        raise InputError(f"folder '{folder}': its arrays cannot be joined: {error}") from error


def calibration(recipe: Recipe, model: ir.Model) -> Arrays | None:
    """The recipe's calibration arrays, one per model input, checked against the model; None without any."""
    source = recipe.data.calibration
    if source is None:
        return None
    if is_code(source):
        made = _function(source)()
        if not isinstance(made, Mapping):
            raise InputError(f"calibration '{source}' must return a mapping of input name to array")
        arrays = {str(k): np.asarray(v) for k, v in made.items()}
    else:
        arrays = load_arrays(recipe.folder / source)
    return select_inputs(arrays, model, f"calibration '{source}'")


def select_inputs(arrays: Mapping[str, np.ndarray], model: ir.Model, what: str) -> Arrays:
    """The arrays that feed the model's inputs; a missing one, a wrong dtype or rank is an InputError."""
    chosen: Arrays = {}
    for value in _required_inputs(model):
        name = str(value.name)
        if name not in arrays:
            raise InputError(
                f"{what} has no array for input '{name}'; it has: {', '.join(sorted(arrays)) or 'none'}"
            )
        array = arrays[name]
        if value.dtype is not None and array.dtype != value.dtype.numpy():
            raise InputError(f"{what}: array '{name}' is {array.dtype}, the model's input is {value.dtype}")
        if value.shape is not None and array.ndim != len(value.shape):
            raise InputError(
                f"{what}: array '{name}' has {array.ndim} axes, the model's input has {len(value.shape)}"
            )
        chosen[name] = array
    if len({len(a) for a in chosen.values() if a.ndim}) > 1:
        raise InputError(f"{what}: the arrays differ in their number of samples (first axis)")
    return chosen


def _required_inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def rows(arrays: Arrays, start: int, count: int) -> Arrays:
    """``count`` samples from ``start`` on, going round at the end."""
    return {
        n: a.take(range(start, start + count), axis=0, mode="wrap") if a.ndim else a
        for n, a in arrays.items()
    }


def fixed_batch(model: ir.Model) -> int | None:
    """The size of the first axis of the first input where the model fixes it."""
    shape = next((v.shape for v in _required_inputs(model) if v.shape is not None and len(v.shape)), None)
    size = shape[0] if shape is not None else None
    return size if isinstance(size, int) else None


def metric_name(recipe: Recipe) -> str:
    """What the recipe's evaluation measures; empty where it has none."""
    evaluation = recipe.data.evaluation
    return evaluation.metric if isinstance(evaluation, Evaluation) else evaluation or ""


def metric(recipe: Recipe, model: ir.Model) -> float | None:
    """The recipe's evaluation metric of ``model`` (higher is better); None where the recipe has none."""
    evaluation = recipe.data.evaluation
    if evaluation is None:
        return None
    session = evaluate.Session(model)
    try:
        if isinstance(evaluation, str):
            return _evaluate_function(evaluation, session.run)
        return _evaluate_top1(recipe, evaluation, model, session)
    finally:
        session.close()


def _function(path: str) -> Callable[..., object]:
    found = registry.import_object(path)
    if not callable(found):
        raise InputError(f"'{path}' is not a function")
    return found


def _evaluate_function(path: str, predict: Callable[[Mapping[str, np.ndarray]], Arrays]) -> float:
    value = _function(path)(predict)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f"evaluation '{path}' must return a number, not {type(value).__name__}")
    return float(value)


def _evaluate_top1(
    recipe: Recipe, evaluation: Evaluation, model: ir.Model, session: evaluate.Session
) -> float:
    what = f"evaluation '{evaluation.file}'"
    arrays = load_arrays(recipe.folder / evaluation.file)
    if evaluation.labels not in arrays:
        raise InputError(f"{what} has no array '{evaluation.labels}'; it has: {', '.join(sorted(arrays))}")
    labels = arrays[evaluation.labels]
    inputs = select_inputs(arrays, model, what)
    samples = len(next(iter(inputs.values())))
    if labels.shape[:1] != (samples,) or samples == 0:
        raise InputError(
            f"{what}: {samples} samples, but '{evaluation.labels}' has shape {list(labels.shape)}"
        )
    predicted = _predict_classes(inputs, samples, fixed_batch(model), session)
    if predicted.shape != labels.shape:
        raise InputError(f"{what}: classes have shape {list(predicted.shape)}, labels {list(labels.shape)}")
    return float(np.mean(predicted == labels))


def _predict_classes(
    inputs: Arrays, samples: int, fixed: int | None, session: evaluate.Session
) -> np.ndarray:
    """Arg-max over the last axis of the first output; where the batch is fixed, the last one is filled up."""
    parts = []
    for start in range(0, samples, fixed or _BATCH):
        outputs = session.run(rows(inputs, start, fixed or min(_BATCH, samples - start)))
        parts.append(next(iter(outputs.values())).argmax(axis=-1))
    return np.concatenate(parts)[:samples]
