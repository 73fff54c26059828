"""The command line as a user meets it: what it prints, its exit codes, and that nothing is lost."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 64] x) => (float[batch, 32] y)
{ i = Identity(x)
  h = MatMul(i, w)
  y = Add(h, b) }
"""


@pytest.fixture
def folder(tmp_path):
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (64, 32)), ("b", (32,))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "model.onnx")
    (tmp_path / "passes.yaml").write_text(
        "version: 1\npasses: [eliminate-identity, fuse]\noutputs: [small.onnx]\nreport: {json: report.json}\n"
    )
    return tmp_path


@pytest.fixture
def cli(folder):
    def call(*arguments: str, limit: int | None = None, code: int | None = 0):
        def restrict():
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        done = subprocess.run(
            [sys.executable, "-m", "graphopt", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=restrict,
        )
        if code is not None:
            assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


def test_run_writes_prints_and_reports(cli, folder):
    done = cli("run", "passes.yaml", "model.onnx")
    assert "eliminate-identity" in done.stdout
    assert "applied" in done.stdout
    assert "wrote small.onnx" in done.stdout
    assert done.stderr == ""
    small = onnx.load(folder / "small.onnx")
    assert [n.op_type for n in small.graph.node] == ["Gemm"]
    assert [s["status"] for s in json.loads((folder / "report.json").read_text())["passes"]] == [
        "applied"
    ] * 2


def test_no_verify_says_so_in_plain_words(cli, folder):
    for command in ("optimize", "model.onnx", "-o", "small.onnx"), ("run", "passes.yaml", "model.onnx"):
        assert "against the input" in cli(*command).stdout
        done = cli(*command, "--no-verify")
        assert "not verified: no model was run" in done.stdout
        assert "against the input" not in done.stdout
        assert json.loads(cli(*command, "--no-verify", "--json").stdout)["verified"] is False
        assert [n.op_type for n in onnx.load(folder / "small.onnx").graph.node] == ["Gemm"]


def test_no_verify_refuses_gates_that_need_numbers(cli, folder):
    recipe = folder / "passes.yaml"
    recipe.write_text("version: 1\npasses:\n  - fuse:\n    gate: {min_cosine: 0.9}\n")
    done = cli("run", "passes.yaml", "model.onnx", "--no-verify", code=2)
    assert "passes.yaml:3:5: pass 'fuse': gate 'min_cosine' needs verification, which is off" in done.stderr


def test_run_as_json_is_one_document_with_the_contract_keys(cli):
    document = json.loads(cli("run", "passes.yaml", "model.onnx", "--json").stdout)
    assert {"input", "passes", "outputs"} <= set(document)
    step = document["passes"][0]
    sizes = {f"{what}_{when}" for what in ("nodes", "bytes", "macs") for when in ("before", "after")}
    assert {"name", "status", "reason", "seconds", "verify", *sizes} <= set(step)
    assert (step["nodes_before"], step["nodes_after"]) == (3, 2)
    assert document["input"]["macs"] == 64 * 32
    assert document["outputs"][0].keys() == {"format", "path", "bytes"}


def test_quiet_prints_nothing(cli):
    done = cli("run", "passes.yaml", "model.onnx", "--quiet")
    assert done.stdout == done.stderr == ""


def test_dry_run_writes_nothing(cli, folder):
    before = sorted(folder.iterdir())
    assert "planned" in cli("run", "passes.yaml", "model.onnx", "--dry-run").stdout
    assert sorted(folder.iterdir()) == before
    cli("run", "passes.yaml", "model.onnx", "--dry-run", "--set", "fuse.exclud=[]", code=2)


def test_output_option_replaces_the_recipes_outputs(cli, folder):
    cli("run", "passes.yaml", "model.onnx", "-o", "a.onnx", "-o", "b.onnx")
    assert (folder / "a.onnx").exists()
    assert (folder / "b.onnx").exists()
    assert not (folder / "small.onnx").exists()


def test_optimize_and_verify_agree(cli):
    cli("optimize", "model.onnx", "-o", "opt.onnx")
    assert "the models agree" in cli("verify", "model.onnx", "opt.onnx").stdout


def test_optimize_to_a_newer_opset(cli, folder):
    cli("optimize", "model.onnx", "-o", "opt.onnx", "--target-opset", "21")
    assert onnx.load(folder / "opt.onnx").opset_import[0].version == 21
    assert "must be" in cli("optimize", "model.onnx", "-o", "opt.onnx", "--target-opset", "99", code=2).stderr


def test_optimize_for_a_target(cli):
    done = cli("optimize", "model.onnx", "-o", "opt.onnx", "--target", "onnxruntime")
    assert "ort-optimize" in done.stdout
    assert "the models agree" in cli("verify", "model.onnx", "opt.onnx").stdout
    assert "onnxruntime" in cli("optimize", "model.onnx", "-o", "o.onnx", "--target", "tpu", code=2).stderr


GELU = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 8] x) => (float[batch, 8] y, float[batch, 8] z)
<float root = {1.4142135}, float one = {1}, float half = {0.5}>
{ d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)
  d2 = Div(y, root) e2 = Erf(d2) a2 = Add(e2, one) m2 = Mul(y, a2) z = Mul(m2, half) }
"""


@pytest.fixture
def gelu(folder):
    onnx.save(onnx.parser.parse_model(GELU), folder / "gelu.onnx")


def test_explain_says_what_was_not_fused_and_why(cli, gelu):
    text = cli("optimize", "gelu.onnx", "-o", "opt.onnx", "--explain").stdout
    lines = text[text.index("gelu (fuse)") :].splitlines()
    assert " ".join(lines[1].split()) == "Gelu needs opset 20, the model has 17 2 Erf (output 'e')"
    assert lines[2].strip() == "Erf (output 'e2')"
    assert "2 of these places need a newer opset: graphopt optimize --target-opset 20" in text
    assert "gelu (fuse)" not in cli("optimize", "gelu.onnx", "-o", "opt.onnx").stdout
    assert (
        "(output 'e')" not in cli("optimize", "gelu.onnx", "-o", "o.onnx", "--explain-match", "'e2'").stdout
    )
    newer = cli("optimize", "gelu.onnx", "-o", "opt.onnx", "--target-opset", "20", "--explain").stdout
    assert "gelu (fuse)" not in newer


def test_explain_as_json_names_every_place(cli, gelu):
    arguments = ("optimize", "gelu.onnx", "-o", "opt.onnx", "--json")
    (group,) = json.loads(cli(*arguments, "--explain-match", "GELU needs").stdout)["left_alone"]
    assert group == {
        "pass": "fuse",
        "rule": "gelu",
        "reason": "Gelu needs opset 20, the model has 17",
        "count": 2,
        "places": [
            {"where": f"Erf (output '{e}')", "reason": "Gelu needs opset 20, the model has 17"}
            for e in ("e", "e2")
        ],
    }
    assert "left_alone" not in json.loads(cli(*arguments).stdout)


def test_explain_with_a_recipe_and_a_text_that_nothing_matches(cli, gelu):
    assert "gelu (fuse)" in cli("run", "passes.yaml", "gelu.onnx", "--explain").stdout
    done = cli("run", "passes.yaml", "gelu.onnx", "--explain-match", "nowhere")
    assert "nothing was left alone that matches 'nowhere'" in done.stdout
    assert cli("run", "passes.yaml", "gelu.onnx", "--explain", "--quiet").stdout == ""


def test_verify_tells_different_models_apart(cli, folder):
    proto = onnx.load(folder / "model.onnx")
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1.1)
    proto.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(weights, proto.graph.initializer[0].name)
    )
    onnx.save(proto, folder / "other.onnx")
    document = json.loads(cli("verify", "model.onnx", "other.onnx", "--json", code=1).stdout)
    assert document["agrees"] is False
    assert 15 < document["outputs"][0]["sqnr_db"] < 25
    np.savez(folder / "zeros.npz", x=np.zeros((1, 64), np.float32))
    cli("verify", "model.onnx", "other.onnx", "--inputs", "zeros.npz", code=0)


def test_inspect(cli):
    text = cli("inspect", "model.onnx").stdout
    assert "MatMul" in text
    assert "batch" in text
    document = json.loads(cli("inspect", "model.onnx", "--json", "--axis", "batch=3").stdout)
    assert document["nodes"] == 3
    assert document["parameters"] == 64 * 32 + 32
    assert document["macs"] == 3 * 64 * 32
    assert document["opset"] == 17
    assert document["inputs"][0]["shape"] == ["batch", 64]


def test_passes_lists_and_shows(cli):
    assert "quantize-weights" in cli("passes").stdout
    one = cli("passes", "quantize-weights").stdout
    assert "granularity" in one
    assert "per-tensor | per-channel" in one
    assert "did you mean 'fuse'" in cli("passes", "fus", code=2).stderr
    assert {p["name"] for p in json.loads(cli("passes", "--json").stdout)} >= {"fuse", "onnxsim"}


def test_init_writes_a_recipe_that_runs_and_never_overwrites(cli, folder):
    cli("init", "mine.yaml")
    cli("run", "mine.yaml", "model.onnx")
    text = (folder / "mine.yaml").read_text()
    assert "exists; name another file" in cli("init", "mine.yaml", code=2).stderr
    assert (folder / "mine.yaml").read_text() == text


def test_convert_and_schema(cli, folder):
    cli("convert", "model.onnx", "model.onnxtxt")
    assert "MatMul" in (folder / "model.onnxtxt").read_text()
    assert json.loads(cli("schema").stdout)["title"] == "graphopt recipe"


def damage_model(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])


def break_recipe(folder: Path) -> None:
    (folder / "passes.yaml").write_text("version: 1\npasses: [fusse]\noutputs: [small.onnx]\n")


def remove_model(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def output_is_input(folder: Path) -> None:
    (folder / "passes.yaml").write_text("version: 1\npasses: [fuse]\noutputs: [model.onnx]\n")


def output_nowhere(folder: Path) -> None:
    (folder / "passes.yaml").write_text("version: 1\npasses: [fuse]\noutputs: [no/such/folder.onnx]\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage_model, "model.onnx"),
        (break_recipe, "passes.yaml:2:10: unknown pass 'fusse'; did you mean 'fuse'?"),
        (remove_model, "model.onnx"),
        (output_is_input, "overwrite"),
        (output_nowhere, "no/such"),
    ],
)
def test_what_is_at_fault_is_one_line_with_exit_code_2(cli, folder, spoil, message):
    spoil(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = cli("run", "passes.yaml", "model.onnx", code=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_full_disk_leaves_the_old_output_whole(cli, folder):
    (folder / "small.onnx").write_bytes(b"old")
    done = cli("run", "passes.yaml", "model.onnx", limit=64, code=2)
    assert "small.onnx" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (folder / "small.onnx").read_bytes() == b"old"
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "passes.yaml", "small.onnx"}


def test_a_missed_gate_is_exit_code_1_and_writes_nothing(cli, folder):
    (folder / "passes.yaml").write_text(
        "version: 1\nverify: {on_failure: stop}\noutputs: [small.onnx]\npasses:\n"
        "  - quantize-weights: {min_elements: 1}\n    gate: {min_sqnr_db: 500}\n"
    )
    done = cli("run", "passes.yaml", "model.onnx", code=1)
    assert "failed" in done.stdout
    assert "passes.yaml:5:5: pass 'quantize-weights' gate min_sqnr_db: 500, measured" in done.stderr
    assert not (folder / "small.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("run", "a"), ("nothing",), ("run", "a", "b", "--what"), ("inspect", "m", "--axis", "n")],
)
def test_wrong_usage_is_exit_code_2(cli, arguments):
    assert cli(*arguments, code=2).stderr


def test_help_imports_no_framework():
    code = (
        "import sys; sys.argv = ['graphopt', '--help']\n"
        "from graphopt.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'rich', 'yaml', 'sympy', 'torch'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.rstrip().endswith("LOADED []")
