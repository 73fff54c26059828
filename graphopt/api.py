"""The Python API: the same steps as the command line, on paths, ModelProtos or onnx_ir models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import conversion, data, io
from graphopt import recipe as recipes
from graphopt.analyses import costs
from graphopt.builtin import Target, optimize_recipe
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions
from graphopt.importing import ImportReport, import_source
from graphopt.pipeline import Pipeline, Progress, _silent
from graphopt.recipe import Recipe
from graphopt.report import RunReport, Written
from graphopt.runtime import compare, evaluate, samples

__all__ = [
    "Converted",
    "ImportOptions",
    "Inspection",
    "RunResult",
    "convert",
    "inspect",
    "load",
    "optimize",
    "run",
    "save",
    "verify",
]

#: Whatever stands for a model: a path, an onnx.ModelProto, or an onnx_ir.Model.
ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model
#: Whatever stands for a recipe: a path, plain data of the same form, or a parsed recipe.
RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | Recipe


@dataclass
class RunResult:
    """What a run made: the report, and the model (a ModelProto if one came in, else an onnx_ir.Model)."""

    model: onnx.ModelProto | ir.Model
    report: RunReport


def load(model: ModelLike, importing: ImportOptions | None = None, progress: Progress = _silent) -> ir.Model:
    """Load a model from any source an importer reads; a ModelProto or onnx_ir.Model is taken as it is.

    Args:
        model: The model, or its source.
        importing: What is to be known of a source of another framework, beside itself.
        progress: Called before each part of an import.

    Raises:
        InputError: the source cannot be used; one line says why.
    """
    return _load(model, importing, progress)[0]


def _load(
    model: ModelLike, options: ImportOptions | None, progress: Progress = _silent
) -> tuple[ir.Model, ImportReport | None]:
    if isinstance(model, ir.Model):
        return model, None
    if isinstance(model, onnx.ModelProto):
        return io.from_proto(model), None
    return import_source(os.fspath(model), options, progress)


def save(model: ModelLike, target: str | os.PathLike[str]) -> int:
    """Write a model in the format of the target's suffix, whole or not at all; returns the bytes written."""
    path = Path(target)
    emitter = conversion.emitter_for(path)
    loaded = load(model)
    io.refuse_overwriting(_files_of(model, loaded), [path])
    return emitter.write(loaded, path)


@dataclass(frozen=True)
class Converted:
    """What a conversion did: the import (None where nothing had to be imported), and what was written."""

    imported: ImportReport | None
    written: Written

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"import": self.imported and self.imported.to_json(), "output": vars(self.written)}


def convert(
    source: ModelLike,
    target: str | os.PathLike[str],
    *,
    importing: ImportOptions | None = None,
    progress: Progress = _silent,
) -> Converted:
    """Read with the importer of the source, write with the emitter of the target's suffix.

    Args:
        source: A model, a file or folder that an importer reads, or the name of code that makes a model.
        target: The file to write.
        importing: What is to be known of a source of another framework, beside itself.
        progress: Called before each part of an import.
    """
    path = Path(target)
    emitter = conversion.emitter_for(path)
    io.refuse_overwriting(_files_of(source, None), [path])
    loaded, report = _load(source, importing, progress)
    io.refuse_overwriting(_files_of(source, loaded), [path])
    return Converted(report, Written(emitter.format, str(path), emitter.write(loaded, path)))


def run(
    recipe: RecipeLike,
    model: ModelLike,
    *,
    outputs: Sequence[str | os.PathLike[str]] | None = None,
    settings: Iterable[str] = (),
    allow_code: bool = False,
    verify: bool = True,
    importing: ImportOptions | None = None,
    progress: Progress = _silent,
) -> RunResult:
    """Run a recipe over a model, write its outputs and its report.

    Args:
        recipe: A path to ``passes.yaml``, plain data of the same form, or a parsed recipe.
        model: The model; it is not changed.
        outputs: Files to write, instead of the recipe's own.
        settings: Overrides such as ``quantize-weights.granularity=per-tensor``.
        allow_code: Whether the recipe may import Python code by path.
        verify: False runs no model, as the recipe's own ``verify: false``: only interface and structure are
            checked.
        importing: What is to be known of a source of another framework, beside itself.
        progress: Called before each pass with its number, the count of passes, and its name.

    Raises:
        RecipeError, InputError, OutputError: what was given is at fault; nothing was written.
        VerificationError, GateError: a pass was rejected and the recipe says ``on_failure: stop``.
    """
    parsed = _recipe(recipe, settings, allow_code)
    parsed = parsed if verify else parsed.without_verification()
    targets = [Path(o) for o in (parsed.outputs if outputs is None else outputs)]
    emitters = [conversion.emitter_for(target) for target in targets]
    loaded, imported = _load(model, importing, progress)
    report_file = [Path(parsed.report.json)] if parsed.report.json else []
    io.refuse_overwriting([*_files_of(model, loaded), *_files_of_recipe(recipe)], [*targets, *report_file])
    source = str(model) if isinstance(model, str | os.PathLike) else "<model>"
    pipeline = Pipeline(parsed, loaded, source, progress)
    report = pipeline.run()
    report.imported = imported.to_json() if imported else None
    report.notes[:0] = imported.lines() if imported else []
    for target, emitter in zip(targets, emitters, strict=True):
        report.outputs.append(Written(emitter.format, str(target), emitter.write(pipeline.model, target)))
    for file in report_file:
        io.write_json(report.to_json(), file)
    return RunResult(_in_kind(model, pipeline.model), report)


def plan(recipe: Recipe, model: ModelLike, importing: ImportOptions | None = None) -> RunReport:
    """What a run would do: everything is checked, no pass is run, nothing is written."""
    for target in recipe.outputs:
        conversion.emitter_for(Path(target))
    source = str(model) if isinstance(model, str | os.PathLike) else "<model>"
    return Pipeline(recipe, load(model, importing), source).plan()


@overload
def optimize(
    model: onnx.ModelProto,
    *,
    target_opset: int | None = ...,
    target: Target | None = ...,
    verify: bool = ...,
    progress: Progress = ...,
) -> onnx.ModelProto: ...
@overload
def optimize(
    model: str | os.PathLike[str] | ir.Model,
    *,
    target_opset: int | None = ...,
    target: Target | None = ...,
    verify: bool = ...,
    progress: Progress = ...,
) -> ir.Model: ...
def optimize(
    model: ModelLike,
    *,
    target_opset: int | None = None,
    target: Target | None = None,
    verify: bool = True,
    progress: Progress = _silent,
) -> onnx.ModelProto | ir.Model:
    """The built-in exact recipe: the same function in fewer nodes; a ModelProto gives a ModelProto back.

    Args:
        model: The model; it is not changed.
        target_opset: Convert to this opset first, so that its operators may be used (Attention has 23).
        target: ``"onnxruntime"``: let its own optimizer run last, whose operators other runtimes lack.
        verify: Whether the result is run beside the model and taken back where it differs; without, only
            interface and structure are checked.
        progress: Called before each pass.
    """
    recipe = optimize_recipe(target_opset, target)
    recipe = recipe if verify else recipe.without_verification()
    pipeline = Pipeline(recipe, load(model), progress=progress, reported=False)
    pipeline.run()
    return _in_kind(model, pipeline.model)


def verify(
    reference: ModelLike,
    model: ModelLike,
    inputs: Mapping[str, np.ndarray] | str | os.PathLike[str] | None = None,
    *,
    count: int = 4,
    seed: int = 0,
) -> compare.Comparison:
    """Compare two models on the same inputs, with onnxruntime's optimizer off.

    Args:
        reference: The model that is right.
        model: The model to judge.
        inputs: One set of input arrays, or an .npz file of them; drawn from the reference if not given.
        count: How many sets to draw.
        seed: Their seed.
    """
    first, second = load(reference), load(model)
    if inputs is None:
        feeds = samples.draw(first, count, seed).feeds
    else:
        arrays = inputs if isinstance(inputs, Mapping) else data.load_arrays(Path(inputs))
        feeds = [data.select_inputs(arrays, first, "inputs")]
    missing = {v.name for v in second.graph.inputs if v.name not in second.graph.initializers} - set(feeds[0])
    if missing:
        raise InputError(
            f"the second model has inputs the first has not: {', '.join(sorted(map(str, missing)))}"
        )
    wanted, got = evaluate.run(first, feeds).outputs, evaluate.run(second, feeds).outputs
    return compare.merge([compare.compare(w, g) for w, g in zip(wanted, got, strict=True)])


@dataclass(frozen=True)
class Inspection:
    """What a model is: its costs, and its inputs and outputs with symbolic axes."""

    costs: costs.Costs
    interface: io.Interface

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self.costs), **asdict(self.interface)}


def inspect(model: ModelLike, *, axes: Mapping[str, int] | None = None) -> Inspection:
    """Nodes, parameters, MACs, bytes, opset, operators, inputs and outputs.

    Args:
        model: The model.
        axes: Sizes of symbolic axes, by name, for the MACs; all others count as 1.
    """
    loaded = load(model)
    return Inspection(costs.measure(loaded, axes or {}), io.interface(loaded))


def _recipe(recipe: RecipeLike, settings: Iterable[str], allow_code: bool) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return recipes.from_data(recipe, settings=settings, allow_code=allow_code)
    return recipes.load(Path(recipe), settings=settings, allow_code=allow_code)


def _files_of(model: ModelLike, loaded: ir.Model | None) -> list[Path]:
    """The files that must not be written to: the model's own and its external data."""
    own = [Path(model)] if isinstance(model, str | os.PathLike) else []
    return [*own, *(io.external_files(loaded) if loaded else [])]


def _files_of_recipe(recipe: RecipeLike) -> list[Path]:
    return [Path(recipe)] if isinstance(recipe, str | os.PathLike) else []


def _in_kind(given: ModelLike, made: ir.Model) -> onnx.ModelProto | ir.Model:
    return ir.to_proto(made) if isinstance(given, onnx.ModelProto) else made
