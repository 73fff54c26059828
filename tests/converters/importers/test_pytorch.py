"""PyTorch files: what is refused before torch sees it, and a factory through the child."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from graphopt import conversion, importing
from graphopt.converters.importers._pytorch import exported_program, inspection, torchscript
from graphopt.converters.importers._pytorch.pickles import foreign_names
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions, InputSpec

SOURCES = Path(__file__).parents[3] / "fixtures" / "sources"
CODE = b"cos\nsystem\n(S'true'\ntR."  # GLOBAL os.system, called
COMPUTED = b"\x80\x04\x8c\x02os\x94h\x00\x8c\x06system\x94\x93."  # the same by STACK_GLOBAL


def test_names_that_a_pickle_looks_up():
    assert foreign_names(CODE) == ["os.system"]
    assert foreign_names(COMPUTED) == ["os.system"]
    assert foreign_names(b"\x80\x04}.") == []


def test_ordinary_files_pass(tmp_path):
    assert inspection.kind(SOURCES / "digits.pt2") == "ExportedProgram"
    assert inspection.kind(SOURCES / "digits.pt") == "TorchScript"
    assert exported_program.checked_copy(SOURCES / "digits.pt2", tmp_path).is_file()
    assert torchscript.checked_copy(SOURCES / "digits.pt", tmp_path).is_file()
    assert torchscript.parameters(SOURCES / "digits.pt") == ["image"]


def test_what_is_no_model_says_what_to_do(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    assert inspection.kind(tmp_path / "weights.pt") == "weights"
    assert list(inspection.load_weights(tmp_path / "weights.pt")) == ["w"]
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert inspection.kind(tmp_path / "module.pt") == "module"
    assert "holds a pickled module (torch.nn.modules.linear.Linear)" in str(
        inspection.refusal(tmp_path / "module.pt", "module")
    )
    with pytest.raises(InputError, match="holds weights only; give the code as well"):
        importing.import_source(str(tmp_path / "weights.pt"))
    with pytest.raises(InputError, match="holds more than weights"):
        inspection.load_weights(tmp_path / "module.pt")


@pytest.mark.parametrize("name", ["digits.pt2", "digits.pt"])
def test_damage(tmp_path, name):
    whole = (SOURCES / name).read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"damaged"):
            inspection.kind(tmp_path / name)


def test_a_factory_with_its_axes(tmp_path, monkeypatch):
    body = "from torch import nn\ndef tagger():\n    return nn.Sequential(nn.Linear(3, 4), nn.GELU())\n"
    (tmp_path / "my_networks.py").write_text(body, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    options = ImportOptions(inputs=(InputSpec("x", "float32", ("batch", "length", 3)),))
    model, report = importing.import_source("my_networks:tagger", options)
    assert [str(v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        "[batch,length,3]",
        "[batch,length,4]",
    ]
    assert report.max_rel < 1e-5
    with pytest.raises(InputError, match="what does it take"):
        conversion.importer_for("my_networks:tagger").check("my_networks:tagger", ImportOptions())
    with pytest.raises(InputError, match="cannot be imported"):
        importing.import_source("my_networks:nothing", options)
