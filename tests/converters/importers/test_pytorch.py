"""PyTorch files: what is refused before torch sees it, and a factory through the child."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from graphopt import conversion, importing
from graphopt.converters.importers._pytorch import exported_program, inspection, sources, torchscript
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


class Buffers(nn.Module):
    """Parameters with odd names, buffers of both kinds, a constant, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a-b": nn.Linear(4, 4), "c d": nn.LSTM(4, 4, batch_first=True)})
        self.register_buffer("kept", torch.ones(4))
        self.register_buffer("unkept", torch.arange(4.0), persistent=False)
        self.constant = torch.tensor([0.5, 1.5, 2.5, 3.5])

    def forward(self, x):
        y = self.layers["c d"](self.layers["a-b"](x))[0]
        return {"y": y * self.kept + self.unkept, "z": [x.sum(1) * self.constant]}


class Attention(nn.Module):
    def forward(self, q, mask):
        return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)


class Sizes(nn.Module):
    """Sizes that are derived from sizes, through floats; a branch."""

    def forward(self, x, y):
        big = functional.interpolate(x, scale_factor=1.5, mode="nearest") * x.shape[2] ** 0.5
        both = torch.cat([y, y[: y.shape[0] // 2]])
        return big, torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v * 2, (both,))


class Pair(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, x]) + y


HALF = Dim("half", min=2, max=32)
PROGRAMS = {
    "buffers": (Buffers(), [(2, 3, 4)], ({0: Dim("batch")},)),
    "attention": (Attention(), [(2, 2, 5, 8), (2, 1, 5, 5)], ({0: Dim("batch")},) * 2),
    "sizes": (Sizes(), [(2, 3, 8, 9), (6, 3)], ({2: Dim("h", min=4, max=64)}, {0: 2 * HALF})),
    "derived": (Pair(), [(3, 4), (6, 4)], ({0: HALF}, {0: 2 * HALF})),
    "transformer": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1),
        [(2, 5, 8)],
        ({0: Dim("batch"), 1: Dim("length", min=2, max=64)},),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_torch_writes_are_loaded(tmp_path, name):
    module, shapes, dynamic = PROGRAMS[name]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic)
        torch.export.save(program, tmp_path / "a.pt2")
        subject = sources.load(str(tmp_path / "a.pt2"), ImportOptions(), tmp_path)
        torch.testing.assert_close(subject.module(*inputs), module(*inputs))
    assert any(isinstance(axis, str) for axis in subject.inputs[0].shape)


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


def test_a_local_hub_folder(tmp_path):
    text = "import torch\n\ndef small():\n    return torch.nn.Linear(4, 3)\n"
    (tmp_path / "hubconf.py").write_text(text)
    options = ImportOptions(inputs=(InputSpec.parse("x=float32[batch,4]"),))
    model, report = importing.import_source(f"torchhub:{tmp_path}:small", options)
    assert [str(axis) for axis in model.graph.inputs[0].shape] == ["batch", "4"]
    assert report.max_rel < 1e-5
    with pytest.raises(InputError, match=r"has no hubconf\.py"):
        importing.import_source(f"torchhub:{tmp_path / 'none'}:small", options)
