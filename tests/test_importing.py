"""Importing with a framework that the tests make up: child, comparison, cleaning, provenance, refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import graphopt
from graphopt import api, cli, conversion, importing
from graphopt.conversion import FrameworkImporter
from graphopt.errors import InputError, MissingExtraError, UnsupportedError, VerificationError
from graphopt.import_options import ImportOptions

EXPORTER = '''
from pathlib import Path
import numpy as np
import onnx.parser, onnx_ir as ir
from graphopt import io
from graphopt.conversion import Exported, Tolerance
from graphopt.errors import InputError

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch,3] image) => (float[batch,3] logits) <float two = {2}> {
  a = Identity(image)
  b = Transpose <perm = [1, 0]> (a)
  c = Transpose <perm = [1, 0]> (b)
  logits = Mul(c, two)
}"""

def export(source, options, folder):
    told = Path(source).read_text()
    exec(told) if told.startswith("#") else None
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    io.save(model, folder / "raw.onnx")
    factor = 3 if told == "wrong" else 2
    return Exported(folder / "raw.onnx", lambda feed: {"logits": feed["image"] * factor}, {"toy": "1.2"},
                    notes=["a note"])
'''


class Toy(FrameworkImporter):
    """A framework of the tests: the text of the file says what goes wrong."""

    format = "Toy"
    suffixes = (".toy",)
    framework = "Toy"
    extra = "toy"
    needs = ("json",)
    exporter = "toy_exporter"

    def recognizes(self, source):
        return source.is_file() and source.read_bytes()[:3] == b"toy"


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    conversion.importer_for("x.onnx")  # the real ones are registered first
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_exporter.py").write_text(EXPORTER, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(conversion, "_importers", [*conversion._importers, Toy()])


@pytest.fixture
def source(tmp_path):
    def write(text: str = "right", name: str = "model.toy"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_what_is_imported_is_clean_proved_and_says_where_it_comes_from(source, ops, run):
    model, report = importing.import_source(source())
    assert ops(model) == ["Mul"]
    assert [(v.name, str(v.shape)) for v in model.graph.inputs] == [("image", "[batch,3]")]
    assert [(v.name, str(v.shape)) for v in model.graph.outputs] == [("logits", "[batch,3]")]
    np.testing.assert_array_equal(run(model, {"image": np.ones((2, 3), np.float32)})[0], np.full((2, 3), 2))
    assert (report.nodes_exported, report.nodes, report.transposes) == (4, 1, 0)
    assert report.samples == 3
    assert report.max_rel == 0
    assert report.notes == ["a note"]
    said = model.metadata_props
    assert said["graphopt.source"] == "model.toy"
    assert said["graphopt.format"] == "Toy"
    assert json.loads(said["graphopt.versions"])["toy"] == "1.2"
    assert "optimize" in json.loads(said["graphopt.recipe"])
    assert len(said["graphopt.source_sha256"]) == 64


def test_the_inputs_and_the_framework_s_outputs_are_in_the_report(source):
    _, report = importing.import_source(source())
    for feed, output in zip(report.references.feeds, report.references.outputs, strict=True):
        np.testing.assert_array_equal(output["logits"], feed["image"] * 2)
    assert "references" not in report.to_json()


def test_a_converter_that_is_wrong_imports_nothing(source, tmp_path):
    path = source("wrong")
    with pytest.raises(VerificationError, match=r"model.toy': the ONNX model does not compute.*'logits'"):
        api.convert(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    importing.import_source(path, ImportOptions(verify=False))


def test_a_pass_that_is_wrong_is_undone(source, monkeypatch, ops):
    from graphopt.passes.cleanup.eliminate_identity import EliminateIdentity

    def spoil(self, model):
        for node in model.graph:
            if node.op_type == "Mul":
                node.replace_input_with(1, node.inputs[0])
        return graphopt.PassResult(model, True, "spoiled")

    monkeypatch.setattr(EliminateIdentity, "call", spoil)
    model, report = importing.import_source(source())
    assert report.samples == 3
    assert any(note.startswith("pass eliminate-identity was undone: ") for note in report.notes)
    assert ops(model)[-1] == "Mul"
    assert model.graph[-1].inputs[1].const_value is not None


def test_the_opset_that_was_asked_for(source):
    model, _ = importing.import_source(source(), ImportOptions(opset=21))
    assert model.opset_imports[""] == 21


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ("#\nraise InputError(f\"'{source}': truncated\")", InputError, r"^'[^']*model\.toy': truncated$"),
        ("#\nraise ValueError('odd')", UnsupportedError, r"Toy cannot import it: ValueError: odd$"),
        ("#\nimport os; os.abort()", UnsupportedError, r"Toy crashed \(SIGABRT\)$"),
        (
            "#\nimport time; time.sleep(60)",
            UnsupportedError,
            r"did not end within 5 s; --timeout",
        ),
        ("#\nbytearray(8 << 30)", UnsupportedError, r"needs more than 1\.0 GiB; --memory allows more$"),
    ],
)
def test_every_failure_is_one_line(source, told, error, message, monkeypatch):
    monkeypatch.delenv("GRAPHOPT_TRACEBACK", raising=False)
    with pytest.raises(error, match=message) as caught:
        importing.import_source(source(told), ImportOptions(seconds=5, memory=1 << 30))
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(source, monkeypatch):
    monkeypatch.setattr(Toy, "needs", ("no_such_module_anywhere",))
    with pytest.raises(MissingExtraError, match=r"importing Toy files.*pip install 'graphopt\[toy\]'"):
        importing.import_source(source())


def test_the_content_finds_the_importer(source):
    assert isinstance(conversion.importer_for(source("toy", "model.bin")), Toy)
    with pytest.raises(InputError, match=r"its content is Toy, its name says ONNX; rename it to \*\.toy"):
        conversion.importer_for(source("toy", "model.onnx"))
    with pytest.raises(InputError, match=r"no importer reads '\.bin' files; known: .*\.onnx.*\.toy"):
        conversion.importer_for(source("else", "other.bin"))


def test_convert_and_run_on_the_command_line(source, tmp_path):
    out, runner = tmp_path / "out.onnx", CliRunner()
    done = runner.invoke(cli.cli, ["convert", source(), str(out)], catch_exceptions=False)
    assert "4 -> 1 nodes; agrees with the framework's own outputs on 3 samples" in done.output
    assert "note: a note" in done.output
    assert out.exists()
    done = runner.invoke(cli.cli, ["convert", source(), str(out), "--json"], catch_exceptions=False)
    assert json.loads(done.output)["import"]["versions"] == {"toy": "1.2"}
    recipe = tmp_path / "passes.yaml"
    recipe.write_text("version: 1\npasses: [fuse]\n", encoding="utf-8")
    done = runner.invoke(
        cli.cli, ["run", str(recipe), source(), "-o", str(tmp_path / "run.onnx")], catch_exceptions=False
    )
    assert "imported" in done.output
    assert (tmp_path / "run.onnx").exists()


def test_the_source_is_never_written_to(source, tmp_path):
    path = source(name="model.onnx.toy")
    with pytest.raises(Exception, match=r"no emitter writes '\.toy' files"):
        api.convert(path, path)
    assert (tmp_path / "model.onnx.toy").read_text() == "right"
