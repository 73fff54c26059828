"""Import a source of any framework: export in a child, clean by the exact passes, compare with the framework.

1. The child (:mod:`graphopt.converters.importers._worker`) lets the framework's exporter write an ONNX file,
   draws inputs for it and runs the framework itself on them.
2. The exact passes of :func:`graphopt.builtin.optimize_recipe` take out what the converter left behind.
3. What is left must agree with the framework's own outputs. Where it does not, the passes run again, each
   verified, so that one of them at fault is undone; if it still does not, the converter is wrong and nothing
   is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import onnx_ir as ir

from graphopt import builtin, conversion, errors, io, references
from graphopt.conversion import Exported, FileImporter, FrameworkImporter, Tolerance
from graphopt.errors import InputError, UnsupportedError, VerificationError
from graphopt.graph import all_nodes
from graphopt.import_options import ImportOptions
from graphopt.limits import GIB, IMPORT_MEMORY_SHARE
from graphopt.pipeline import Pipeline, Progress, _silent
from graphopt.references import References
from graphopt.runtime import child, compare, evaluate

__all__ = ["ImportReport", "import_exported", "import_source"]

_WORKER = "graphopt.converters.importers._worker"


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        source: What was imported.
        format: Its format.
        versions: Of the packages that took part.
        nodes_exported: Nodes as the framework's converter left them.
        nodes: Nodes of the result.
        transposes: Transpose nodes among these.
        seconds: Wall-clock time of the whole import.
        samples: How many samples were compared with the framework's own outputs; 0 if not verified.
        max_rel: Largest difference to these, relative to the largest element of the output.
        notes: What the user should know.
        references: The inputs, and what the framework made of them; None if not verified.
    """

    source: str
    format: str
    versions: Mapping[str, str]
    nodes_exported: int
    nodes: int
    transposes: int
    seconds: float
    samples: int
    max_rel: float
    notes: list[str] = field(default_factory=list)
    references: References | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the arrays."""
        data = asdict(replace(self, references=None))
        del data["references"]
        return data

    def lines(self) -> list[str]:
        """The import in words, a line each."""
        by = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        proof = (
            f"agrees with the framework's own outputs on {self.samples} samples, max rel {self.max_rel:.1g}"
            if self.samples
            else "not verified"
        )
        first = f"imported {self.source} ({self.format}; {by}): {self.nodes_exported} -> {self.nodes} nodes"
        return [f"{first}; {proof}; {self.seconds:.1f} s", *(f"note: {note}" for note in self.notes)]


def import_source(
    source: str, options: ImportOptions | None = None, progress: Progress = _silent
) -> tuple[ir.Model, ImportReport | None]:
    """Import a source of any kind; the report is None where nothing had to be converted.

    Raises:
        InputError, UnsupportedError, MissingExtraError: It cannot be imported; one line says why.
        VerificationError: What was imported does not compute what the framework computes.
    """
    options = options or ImportOptions()
    importer = conversion.importer_for(source)
    if isinstance(importer, FileImporter):
        return importer.load(Path(source)), None
    assert isinstance(importer, FrameworkImporter)
    started = perf_counter()
    importer.check(source, options)
    importer.check_extra()
    progress(0, 0, f"importing with {importer.framework}")
    folder = tempfile.TemporaryDirectory(prefix="graphopt-")
    try:
        answer = _export(importer, source, options, Path(folder.name))
        raw = io.load(Path(folder.name) / answer["model"])
        made = references.load(Path(folder.name) / "references.npz") if options.verify else None
        if not io.external_files(raw):
            folder.cleanup()
    except BaseException:
        folder.cleanup()
        raise
    tolerance = Tolerance(**answer["tolerance"])
    facts = _Facts(source, importer.format, answer["versions"], answer["notes"], started)
    model, report = _finish(raw, made, tolerance, facts, options, progress)
    weakref.finalize(model, folder.cleanup)  # weights in data files are read when they are needed
    return model, report


def import_exported(
    exported: Exported, source: str, framework: str, format: str, options: ImportOptions
) -> tuple[ir.Model, ImportReport]:
    """The same for what a framework's exporter made in this process, of an object that lives here."""
    started = perf_counter()
    raw = io.load(exported.model)
    made = None
    if options.verify:
        made = exported.references or references.make(exported, framework, options)
    facts = _Facts(source, format, exported.versions, list(exported.notes), started)
    return _finish(raw, made, exported.tolerance, facts, options, _silent)


@dataclass(frozen=True)
class _Facts:
    source: str
    format: str
    versions: Mapping[str, str]
    notes: list[str]
    started: float


def _export(importer: FrameworkImporter, source: str, options: ImportOptions, folder: Path) -> dict[str, Any]:
    """Let a child export ``source`` into ``folder``; what it answers."""
    request = {
        "source": source,
        "exporter": importer.exporter,
        "framework": importer.framework,
        "options": options.to_json(),
        "traceback": bool(os.environ.get("GRAPHOPT_TRACEBACK")),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    memory = options.memory or int(IMPORT_MEMORY_SHARE * child.physical_memory())
    ended = child.run_module(_WORKER, [str(folder)], child.Limits(options.seconds, memory))
    name = f"'{source}'"
    if ended.timed_out:
        raise UnsupportedError(
            f"{name}: {importer.framework} did not end within {options.seconds:g} s; --timeout allows more"
        )
    if ended.out_of_memory:
        raise UnsupportedError(
            f"{name}: {importer.framework} needs more than {memory / GIB:.1f} GiB; --memory allows more"
        )
    if ended.code:
        raise UnsupportedError(f"{name}: {importer.framework} {ended.reason()}")
    answer: dict[str, Any] = json.loads((folder / "exported.json").read_text(encoding="utf-8"))
    if "error" in answer:
        message = str(answer["error"]["message"]).removeprefix(f"{name}: ")
        message = message.replace(str(folder), "the export")
        raise getattr(errors, answer["error"]["kind"], InputError)(f"{name}: {message}")
    return answer


def _finish(
    raw: ir.Model,
    made: References | None,
    tolerance: Tolerance,
    facts: _Facts,
    options: ImportOptions,
    progress: Progress,
) -> tuple[ir.Model, ImportReport]:
    """Clean, compare, and say where the model comes from."""
    model, max_rel, undone = _cleaned(raw, made, tolerance, facts.source, options, progress)
    notes = [*facts.notes, *(made.notes if made else []), *undone]
    nodes = list(all_nodes(model))
    model.metadata_props.update(_provenance(facts, options))
    report = ImportReport(
        facts.source,
        facts.format,
        facts.versions,
        sum(1 for _ in all_nodes(raw)),
        len(nodes),
        sum(node.op_type == "Transpose" for node in nodes),
        perf_counter() - facts.started,
        len(made.feeds) if made else 0,
        max_rel,
        notes,
        made,
    )
    return model, report


def _cleaned(
    raw: ir.Model,
    made: References | None,
    tolerance: Tolerance,
    source: str,
    options: ImportOptions,
    progress: Progress,
) -> tuple[ir.Model, float, list[str]]:
    """The model after the exact passes, how far it is from the framework, and which passes were undone."""
    recipe = builtin.optimize_recipe(options.opset)
    reason = ""
    for attempt in (recipe.without_verification(), recipe):
        pipeline = Pipeline(attempt, raw, source, progress, reported=False)
        undone = [
            f"pass {step.name} was undone: {step.reason}"
            for step in pipeline.run().passes
            if step.status in ("undone", "failed")
        ]
        if made is None:
            return pipeline.model, 0.0, undone
        outputs = evaluate.run(pipeline.model, made.feeds).outputs
        reason = references.differs(made.outputs, outputs, tolerance)
        if not reason:
            return pipeline.model, _distance(made, outputs), undone
    raise VerificationError(
        f"'{source}': the ONNX model does not compute what the framework computes: {reason}; nothing is "
        "imported (--no-verify imports it all the same)"
    )


def _distance(made: References, outputs: list[dict[str, Any]]) -> float:
    compared = [compare.compare(a, b) for a, b in zip(made.outputs, outputs, strict=True)]
    return max((o.max_rel for o in compare.merge(compared).outputs), default=0.0)


def _provenance(facts: _Facts, options: ImportOptions) -> dict[str, str]:
    """What ``metadata_props`` says of the source."""
    path = Path(facts.source)
    entries = {
        "graphopt.source": path.name if path.exists() else facts.source,
        "graphopt.format": facts.format,
        "graphopt.versions": json.dumps({"graphopt": metadata.version("graphopt"), **facts.versions}),
        "graphopt.recipe": json.dumps({"optimize": {"target_opset": options.opset}}),
    }
    if path.is_file():
        with path.open("rb") as file:
            entries["graphopt.source_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entries
