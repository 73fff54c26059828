"""Recipes: what is read, and every way of getting one wrong has a place and the nearest right name."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from graphopt import recipe as recipes
from graphopt import registry
from graphopt.builtin import builtin_recipe
from graphopt.errors import InputError, RecipeError

FULL = """\
version: 1
model:
  inputs: {x: [batch, 3, 224, 224]}
data:
  calibration: calib.npz
  evaluation: {file: test.npz, labels: y, metric: top1}
verify: {samples: 4, seed: 0, rtol: 1.0e-4, atol: 1.0e-5, on_failure: undo}
passes:
  - fold-constants
  - fuse: {exclude: [gelu]}
  - quantize-weights: {bits: 8, granularity: per-channel, include: ".*"}
    gate: {min_sqnr_db: 30, max_metric_drop: 0.005, must_shrink: true}
outputs: [model.opt.onnx]
report: {json: report.json}
"""


@pytest.fixture
def read(tmp_path):
    def read_text(text: str, **keywords):
        file = tmp_path / "passes.yaml"
        file.write_text(text)
        return recipes.load(file, **keywords)

    return read_text


def test_the_contract_is_read(read, tmp_path):
    recipe = read(FULL)
    assert [s.name for s in recipe.passes] == ["fold-constants", "fuse", "quantize-weights"]
    assert recipe.model.inputs == {"x": ("batch", 3, 224, 224)}
    assert recipe.data.calibration == "calib.npz"
    assert recipe.data.evaluation == recipes.Evaluation("test.npz", "y", "top1")
    assert recipe.verify == recipes.Verify(4, 0, 1e-4, 1e-5, "undo")
    assert recipe.passes[1].pass_.exclude == ("gelu",)
    assert recipe.passes[2].gate == recipes.Gate(min_sqnr_db=30, max_metric_drop=0.005, must_shrink=True)
    assert recipe.outputs == ("model.opt.onnx",)
    assert recipe.report.json == "report.json"
    assert recipe.folder == tmp_path
    assert recipe.passes[2].location.line == 11


def test_plain_data_of_the_same_form_is_the_same_recipe(read):
    from_file, from_data = read(FULL), recipes.from_data(yaml.safe_load(FULL))
    assert from_data.passes[1].pass_.exclude == from_file.passes[1].pass_.exclude
    assert (from_data.verify, from_data.data) == (from_file.verify, from_file.data)


@pytest.mark.parametrize("name", ["optimize", "starter"])
def test_the_recipes_that_ship_are_valid(name):
    recipe = recipes.load(builtin_recipe(name))
    assert recipe.passes
    data = yaml.safe_load(builtin_recipe(name).read_text())
    jsonschema.Draft202012Validator(recipes.schema()).validate(data)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", ":1:10: version 2 is not known; this graphopt reads 1"),
        ("version: 1\n", "", "'version' is missing"),
        ("verify:", "verfy:", ":7:1: unknown key 'verfy'; did you mean 'verify'?"),
        ("samples: 4", "sample: 4", ":7:10: unknown key 'sample'; did you mean 'samples'?"),
        ("samples: 4", "samples: four", ":7:19: 'samples' must be int, not 'four'"),
        ("samples: 4", "samples: 0", ":7:19: 'samples' is 0, must be 1 to 1024"),
        ("on_failure: undo", "on_failure: stopp", "'stopp' is not one of undo | stop; did you mean 'stop'?"),
        (
            "- fold-constants",
            "- fold-constant",
            ":9:5: unknown pass 'fold-constant'; did you mean 'fold-constants'?",
        ),
        (
            "{exclude: [gelu]}",
            "{exclud: [gelu]}",
            ":10:12: pass 'fuse': unknown key 'exclud'; did you mean 'exclude'?",
        ),
        ("{exclude: [gelu]}", "{exclude: [gelo]}", "gelu"),
        ("{exclude: [gelu]}", "{exclude: gelu}", "'exclude' must be list of str, not 'gelu'"),
        ("bits: 8", "bits: 7", "pass 'quantize-weights': 7 is not one of"),
        ("per-channel", "per-chanel", "did you mean 'per-channel'?"),
        ('".*"', '"["', "pass 'quantize-weights': "),
        ("gate: {", "gates: {", "one pass (and its 'gate') per list item, found 'quantize-weights', 'gates'"),
        ("min_sqnr_db", "min_sqnr", ":12:12: unknown key 'min_sqnr'; did you mean 'min_sqnr_db'?"),
        ("min_sqnr_db: 30", "min_sqnr_db: high", "'min_sqnr_db' must be float, not 'high'"),
        (
            "  evaluation: {file: test.npz, labels: y, metric: top1}\n",
            "",
            "'max_metric_drop' cannot be evaluated",
        ),
        ("metric: top1", "metric: top5", "'top5' is not one of top1"),
        ("labels: y, ", "", "'labels' is missing (str)"),
        ("[model.opt.onnx]", "model.opt.onnx", "'outputs' must be list of str, not 'model.opt.onnx'"),
        (
            "calib.npz",
            "my.data:load",
            ":5:16: calibration 'my.data:load' would import code; add --allow-code",
        ),
        (
            "{file: test.npz, labels: y, metric: top1}",
            "my.task:score",
            "evaluation 'my.task:score' would import code",
        ),
        (
            "- fold-constants",
            "- my.passes:Mine",
            ":9:5: pass 'my.passes:Mine' would import code; add --allow-code",
        ),
        ("- fold-constants", "- 3", "a pass is a name, or a mapping"),
        ("- fold-constants", "- {}", "per list item, found none"),
        ("[batch, 3, 224, 224]", "[batch, 3.5]", "must be int | str, not 3.5"),
    ],
)
def test_every_mistake_has_a_place_and_a_way_out(read, old, new, message):
    assert old in FULL
    with pytest.raises(RecipeError) as caught:
        read(FULL.replace(old, new, 1))
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert "passes.yaml:" in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "3"])
def test_a_recipe_is_a_mapping(read, text):
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        read(text)


def test_passes_must_be_given(read):
    with pytest.raises(RecipeError, match="'passes' must be a list"):
        read("version: 1")


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match=r"cannot read recipe .*: No such file"):
        recipes.load(tmp_path / "none.yaml")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        recipes.load(tmp_path / "model.onnx")


def test_settings_override_options(read):
    recipe = read(
        FULL, settings=["fuse.exclude=[]", "verify.samples=9", "quantize-weights.granularity=per-tensor"]
    )
    assert recipe.passes[1].pass_.exclude == ()
    assert recipe.verify.samples == 9
    assert recipe.passes[2].pass_.granularity == "per-tensor"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fuse", "--set fuse: write it as pass.option=value"),
        ("fuze.exclude=[]", "--set fuze: the recipe has no such pass; did you mean 'fuse'?"),
        ("fuse.exclud=[]", "unknown key 'exclud'; did you mean 'exclude'?"),
        ("verify.samples=many", "'samples' must be int, not 'many'"),
        ("fuse.exclude=[", "--set fuse.exclude=[:1:2: not YAML"),
    ],
)
def test_wrong_settings(read, setting, message):
    with pytest.raises(RecipeError) as caught:
        read(FULL, settings=[setting])
    assert message in str(caught.value)


def test_verification_can_be_switched_off(read):
    assert read("version: 1\npasses: []\n").verified
    off = read("version: 1\nverify: false\npasses:\n  - fuse:\n    gate: {must_shrink: true}\n")
    assert not off.verified
    assert off.passes[0].gate.must_shrink
    for wrong in ("true", "no-thanks"):
        with pytest.raises(RecipeError, match="'verify' must be mapping"):
            read(f"version: 1\nverify: {wrong}\npasses: []\n")
    with pytest.raises(RecipeError, match="nothing to set"):
        read("version: 1\nverify: false\npasses: []\n", settings=["verify.samples=9"])


@pytest.mark.parametrize(
    "gate", ["min_sqnr_db: 30", "min_cosine: 0.9", "min_top1_agreement: 1.0", "max_metric_drop: 0.1"]
)
def test_gates_that_need_numbers_are_refused_without_verification(read, gate):
    data = "data: {evaluation: {file: e.npz, labels: y}}\n" if "metric" in gate else ""
    text = f"version: 1\n{data}verify: false\npasses:\n  - fuse:\n    gate: {{{gate}}}\n"
    name = gate.partition(":")[0]
    message = f"pass 'fuse': gate '{name}' needs verification, which is off; remove the gate or verify"
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert message in str(caught.value)
    assert f":{text.count(chr(10)) - 1}:5: " in str(caught.value)  # the line of the pass
    verified = read(text.replace("verify: false\n", ""))
    with pytest.raises(RecipeError, match="needs verification"):
        verified.without_verification()


def test_code_is_imported_only_when_allowed(read):
    text = "version: 1\npasses:\n  - onnx_ir.passes.common:RemoveUnusedNodesPass\n"
    with pytest.raises(RecipeError, match="--allow-code"):
        read(text)
    step = read(text, allow_code=True).passes[0]
    assert type(step.pass_).__name__ == "RemoveUnusedNodesPass"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package:Mine", "cannot import 'no_such_package:Mine'"),
        ("json:dumps", "is not an onnx_ir pass class"),
        ("json:missing", "cannot import 'json:missing'"),
    ],
)
def test_bad_import_paths(read, path, message):
    with pytest.raises(RecipeError) as caught:
        read(f"version: 1\npasses:\n  - {path}\n", allow_code=True)
    assert message in str(caught.value)


def test_a_foreign_pass_takes_its_constructor_options(read):
    text = "version: 1\npasses:\n  - onnx_ir.passes.common:DeduplicateInitializersPass: {size_limit: 7}\n"
    assert read(text, allow_code=True).passes[0].pass_.size_limit == 7
    with pytest.raises(RecipeError, match="did you mean 'size_limit'"):
        read(text.replace("size_limit", "size_limits"), allow_code=True)


def test_the_schema_is_valid_and_agrees_with_the_parser():
    schema = recipes.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(FULL)
    validator.validate(good)
    validator.validate({**good, "verify": False})
    for key, value in (
        ("passes", ["fold-constant"]),
        ("passes", [{"fuse": {"exclud": []}}]),
        ("verify", {"samples": "x"}),
        ("verify", True),
    ):
        assert not validator.is_valid({**good, key: value})


def test_the_schema_names_every_pass_with_its_options():
    text = json.dumps(recipes.schema())
    for name in registry.pass_classes():
        assert f'"{name}"' in text
    assert "granularity" in text
