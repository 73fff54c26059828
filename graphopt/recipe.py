"""The recipe: what to do with a model, as typed data parsed from ``passes.yaml``.

The sections are dataclasses, so that one declaration serves the parser, the JSON Schema and the docs.
A recipe is data: whatever would import code is refused unless the caller allows it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from graphopt import options, registry, yaml_source
from graphopt.errors import InputError, Location, RecipeError
from graphopt.options import ConversionError, nearest, option

__all__ = [
    "Data",
    "Evaluation",
    "Gate",
    "ModelSection",
    "Recipe",
    "Report",
    "Step",
    "Verify",
    "from_data",
    "is_code",
    "load",
    "schema",
]

_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_code(text: str) -> bool:
    """Whether ``text`` names Python code (``package.module:name``) rather than a file."""
    return _CODE.fullmatch(text) is not None and not Path(text).exists()


@dataclass(frozen=True)
class ModelSection:
    """What the recipe knows of the model."""

    inputs: Mapping[str, tuple[int | str, ...]] = option(
        default_factory=dict,
        help="Shapes of inputs: a number pins an axis for samples and costs, a name ties equal axes.",
    )


@dataclass(frozen=True)
class Evaluation:
    """A labelled test set and the metric to compute on it."""

    file: str = option(help="An .npz file with one array per model input and one of labels.")
    labels: str = option(help="The array that holds the labels, int [samples].")
    metric: Literal["top1"] = option("top1", help="top1: share of samples whose largest output is the label.")


@dataclass(frozen=True)
class Data:
    """Real data, where there is some."""

    calibration: str | None = option(
        None,
        help="Arrays named like the inputs: an .npz, a folder of .npz or .npy, or package.module:function.",
    )
    evaluation: Evaluation | str | None = option(
        None,
        help="A labelled test set, or package.module:function(predict) returning a number (more is better).",
    )


@dataclass(frozen=True)
class Verify:
    """How every pass is checked."""

    samples: int = option(4, min=1, max=1024, help="Sample inputs to run before and after every pass.")
    seed: int = option(0, min=0, help="Seed of the drawn sample inputs.")
    rtol: float = option(1e-4, min=0, max=0.1, help="Relative tolerance of exact passes, per element.")
    atol: float = option(
        1e-5,
        min=0,
        max=0.1,
        help="Absolute tolerance of exact passes, in units of max(1, RMS of the output).",
    )
    on_failure: Literal["undo", "stop"] = option(
        "undo",
        help="undo: take the pass back and go on. stop: end the run with exit code 1, nothing written.",
    )
    each: bool = option(
        True,
        help="Verify after every pass; false verifies the whole chain once and only looks for the culprit on "
        "failure. Passes that are approximate or have a gate are always verified on their own.",
    )


@dataclass(frozen=True)
class Gate:
    """What a pass must keep; a pass that misses one is undone, or stops the run, as ``verify`` says.

    All are measured between the model before the pass and the model after it.
    """

    min_sqnr_db: float | None = option(
        None, help="Lowest signal-to-quantization-noise ratio of any output, in dB."
    )
    min_cosine: float | None = option(None, min=-1, max=1, help="Lowest cosine similarity of any output.")
    min_top1_agreement: float | None = option(
        None, min=0, max=1, help="Lowest share of rows whose largest element stays the same, in any output."
    )
    max_metric_drop: float | None = option(
        None,
        min=0,
        help="Largest fall of the evaluation metric, in its own unit (0.005 is half a point of top1).",
    )
    must_shrink: bool = option(False, help="The model's bytes must become fewer.")

    def on_numbers(self) -> list[str]:
        """The names of those that are set and need the model to run."""
        measured = [f.name for f in dataclasses.fields(self) if f.name != "must_shrink"]
        return [name for name in measured if getattr(self, name) is not None]


@dataclass(frozen=True)
class Report:
    """Where to write what happened."""

    json: str | None = option(None, help="Write the run's report to this file as JSON.")


@dataclass(frozen=True)
class Step:
    """One pass of the recipe, built with its options."""

    name: str
    pass_: ir.passes.PassBase
    gate: Gate | None = None
    location: Location | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        passes: What to run, in order.
        model: What it knows of the model.
        data: Real data, where there is some.
        verify: How every pass is checked.
        verified: Whether models are run at all; without (``verify: false``) only interface and structure
            are checked.
        outputs: Files to write.
        report: Where to write what happened.
        folder: Where its data files are looked for.
        allow_code: Whether it may import Python code.
    """

    passes: tuple[Step, ...]
    model: ModelSection = ModelSection()
    data: Data = Data()
    verify: Verify = Verify()
    verified: bool = True
    outputs: tuple[str, ...] = ()
    report: Report = Report()
    folder: Path = dataclasses.field(default_factory=Path)
    allow_code: bool = False

    def without_verification(self) -> Recipe:
        """The same recipe with ``verify: false``.

        Raises:
            RecipeError: A gate needs numbers, which only a model that runs has.
        """
        for step in self.passes:
            for name in step.gate.on_numbers() if step.gate else ():
                raise RecipeError(
                    f"pass '{step.name}': gate '{name}' needs verification, which is off; "
                    "remove the gate or verify",
                    step.location,
                )
        return dataclasses.replace(self, verified=False)


_SECTIONS: dict[str, type] = {"model": ModelSection, "data": Data, "verify": Verify, "report": Report}
_KEYS = ("version", *_SECTIONS, "passes", "outputs")


def load(path: str | Path, *, settings: Iterable[str] = (), allow_code: bool = False) -> Recipe:
    """Read a recipe file.

    Args:
        path: The YAML file.
        settings: Overrides such as ``fuse.exclude=[gelu]`` or ``verify.samples=8``.
        allow_code: Whether the recipe may import Python code by path.

    Raises:
        RecipeError: one line with file, line, column and the nearest right name.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read recipe '{file}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text; is this a recipe?") from error
    document = yaml_source.parse(text, str(file))
    return _Builder(document, file.absolute().parent, allow_code).build(settings)


def from_data(
    data: Mapping[str, Any],
    *,
    folder: Path | None = None,
    settings: Iterable[str] = (),
    allow_code: bool = False,
) -> Recipe:
    """A recipe from plain data of the same form as the YAML file."""
    document = yaml_source.Document("<recipe>")
    document.data = data
    return _Builder(document, folder or Path.cwd(), allow_code).build(settings)


class _Builder:
    """Turns a document into a recipe; every complaint gets its place."""

    def __init__(self, document: yaml_source.Document, folder: Path, allow_code: bool) -> None:
        self.document, self.folder, self.allow_code = document, folder, allow_code

    def build(self, settings: Iterable[str]) -> Recipe:
        data = self.document.data
        if not isinstance(data, Mapping):
            raise self.error("a recipe is a mapping with 'version' and 'passes'")
        for key in data:
            if key not in _KEYS:
                raise self.error(f"unknown key '{key}'{nearest(str(key), _KEYS)}", (key,), at_key=True)
        self.check_version(data)
        overrides = _Settings(settings)
        verified = data.get("verify") is not False
        if not verified and "verify" in overrides.values:
            raise RecipeError(
                "--set verify: the recipe says 'verify: false', so that there is nothing to set"
            )
        given = data if verified else {**data, "verify": {}}
        sections: dict[str, Any] = {
            name: self.convert(overrides.merged(name, _or_empty(given.get(name))), kind, (name,))
            for name, kind in _SECTIONS.items()
        }
        steps = self.steps(data.get("passes"), overrides)
        overrides.refuse_unused({*_SECTIONS, *(s.name for s in steps)})
        recipe = Recipe(
            passes=steps,
            outputs=self.convert(data.get("outputs", ()), tuple[str, ...], ("outputs",)),
            folder=self.folder,
            allow_code=self.allow_code,
            **sections,
        )
        self.check_code(recipe)
        self.check_gates(recipe)
        return recipe if verified else recipe.without_verification()

    def error(self, message: str, path: options.Path = (), *, at_key: bool = False) -> RecipeError:
        return RecipeError(message, self.document.locate(path, at_key=at_key))

    def convert(self, value: Any, kind: Any, path: options.Path) -> Any:
        try:
            return options.convert(value, kind, path)
        except ConversionError as error:
            raise self.error(str(error), error.path, at_key=error.at_key) from error

    def check_version(self, data: Mapping[str, Any]) -> None:
        if "version" not in data:
            raise self.error("'version' is missing; write 'version: 1' first")
        if data["version"] != 1 or isinstance(data["version"], bool):
            raise self.error(f"version {data['version']!r} is not known; this graphopt reads 1", ("version",))

    def steps(self, passes: Any, overrides: _Settings) -> tuple[Step, ...]:
        if not isinstance(passes, list | tuple):
            raise self.error("'passes' must be a list of passes", ("passes",))
        return tuple(self.step(item, ("passes", i), overrides) for i, item in enumerate(passes))

    def step(self, item: Any, path: options.Path, overrides: _Settings) -> Step:
        if isinstance(item, str):
            item = {item: None}
        if not isinstance(item, Mapping):
            raise self.error("a pass is a name, or a mapping of its name to its options", path)
        names = [key for key in item if key != "gate"]
        if len(names) != 1:
            found = "none" if not names else ", ".join(f"'{n}'" for n in names)
            raise self.error(f"one pass (and its 'gate') per list item, found {found}", path)
        name = names[0]
        gate = item.get("gate")
        return Step(
            name,
            self.build_pass(name, overrides.merged(name, _or_empty(item[name])), path),
            None if gate is None else self.convert(gate, Gate, (*path, "gate")),
            self.document.locate(path),
        )

    def build_pass(self, name: str, values: Any, path: options.Path) -> ir.passes.PassBase:
        try:
            cls = registry.resolve(name, allow_code=self.allow_code)
        except InputError as error:
            raise self.error(str(error), (*path, name), at_key=True) from error
        try:
            return options.build(cls, values, (*path, name))
        except ConversionError as error:
            raise self.error(f"pass '{name}': {error}", error.path, at_key=error.at_key) from error

    def check_code(self, recipe: Recipe) -> None:
        for key in ("calibration", "evaluation"):
            value = getattr(recipe.data, key)
            if isinstance(value, str) and is_code(value) and not self.allow_code:
                message = f"{key} '{value}' would import code; add --allow-code if you trust it"
                raise self.error(message, ("data", key))

    def check_gates(self, recipe: Recipe) -> None:
        for i, step in enumerate(recipe.passes):
            if step.gate and step.gate.max_metric_drop is not None and recipe.data.evaluation is None:
                path = ("passes", i, "gate", "max_metric_drop")
                message = "gate 'max_metric_drop' cannot be evaluated: the recipe has no data.evaluation"
                raise self.error(message, path, at_key=True)


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


class _Settings:
    """Overrides from ``--set name.option=value``; the value is YAML."""

    def __init__(self, settings: Iterable[str]) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        for text in settings:
            target, equals, value = text.partition("=")
            name, dot, key = target.rpartition(".")
            if not (equals and dot and name and key):
                raise RecipeError(f"--set {text}: write it as pass.option=value")
            self.values.setdefault(name, {})[key] = (
                yaml_source.parse(value, f"--set {text}").data if value else ""
            )

    def merged(self, name: str, given: Any) -> Any:
        """The options given in the recipe, with the overrides for ``name`` on top."""
        if name not in self.values or not isinstance(given, Mapping):
            return given
        return {**given, **self.values[name]}

    def refuse_unused(self, known: set[str]) -> None:
        """An override for something that the recipe does not have is a mistake."""
        for name in self.values:
            if name not in known:
                raise RecipeError(f"--set {name}: the recipe has no such pass{nearest(name, known)}")


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of recipes, made from the pass classes, for editors."""
    properties: dict[str, Any] = {"version": {"const": 1}}
    properties |= {name: options.json_schema(kind) for name, kind in _SECTIONS.items()}
    off = {"const": False, "description": "Run no model: check interface and structure only."}
    properties["verify"] = {"anyOf": [properties["verify"], off]}
    properties["passes"] = {"type": "array", "items": _step_schema()}
    properties["outputs"] = {"type": "array", "items": {"type": "string"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "graphopt recipe",
        "type": "object",
        "properties": properties,
        "required": ["version", "passes"],
        "additionalProperties": False,
    }


def _step_schema() -> dict[str, Any]:
    gate = options.json_schema(Gate)
    choices: list[dict[str, Any]] = [{"type": "string", "enum": sorted(registry.pass_classes())}]
    for name, cls in registry.pass_classes().items():
        pass_options = {**options.json_schema(cls), "description": _first_line(cls)}
        entry = (
            {"anyOf": [pass_options, {"type": "null"}]} if "required" not in pass_options else pass_options
        )
        choices.append(
            {
                "type": "object",
                "properties": {name: entry, "gate": gate},
                "required": [name],
                "additionalProperties": False,
            }
        )
    return {"anyOf": choices}


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
