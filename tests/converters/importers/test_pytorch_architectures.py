"""The networks of tests/architectures: each runs in torch, and some are imported with their axes."""

from __future__ import annotations

import pytest
import torch
from architectures.index import ARCHITECTURES

from graphopt import importing, io
from graphopt.converters.importers._pytorch.export import export_subject
from graphopt.converters.importers._pytorch.subject import flatten, with_examples
from graphopt.graph import all_nodes
from graphopt.import_options import ImportOptions, InputSpec


def inputs(name: str) -> tuple[InputSpec, ...]:
    return tuple(InputSpec.parse(text) for text in ARCHITECTURES[name].inputs)


def shapes(values) -> dict[str, str]:
    return {value.name: str(value.shape) for value in values}


def test_there_are_many():
    assert len(ARCHITECTURES) >= 24
    assert "ssdlite" in ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_depend_on_the_input(name):
    subject = with_examples(ARCHITECTURES[name].factory(), inputs(name))
    first = [~x if x.dtype == torch.bool else x for x in subject.examples]  # a mask that hides nothing
    second = [
        torch.roll(x, 1, -1) * 2 if x.is_floating_point() else x + 3 if x.dtype == torch.int64 else x
        for x in first
    ]
    before, after = flatten(subject.call(first)), flatten(subject.call(second))
    for output, value in before.items():
        assert value.isfinite().all()
        assert (value - after[output]).abs().max() > 0.01 * value.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_the_same_every_time_and_no_defaults(name):
    state, same = (ARCHITECTURES[name].factory().state_dict() for _ in range(2))
    for key, value in state.items():
        assert torch.equal(value, same[key])
        assert not key.endswith("running_mean") or value.abs().max() > 0
        assert not key.endswith("running_var") or (value - 1).abs().max() > 0


@pytest.mark.parametrize(
    ("name", "takes", "gives"),
    [
        (
            "ssdlite",
            {"image": "[batch,3,96,96]"},  # free ones take a minute
            {"boxes": "[batch,579,4]", "scores": "[batch,579,5]"},
        ),
        ("lstm_tagger", {"tokens": "[batch,length]"}, {"output": "[batch,length,10]"}),
        ("vit", {"image": "[batch,3,64,64]"}, {"output": "[batch,10]"}),
        ("shufflenet_v2", {"image": "[batch,3,64,64]"}, {"output": "[batch,10]"}),
    ],
)
def test_import_keeps_the_axes(name, takes, gives):
    described = tuple(InputSpec.parse(f"{spec.name}={spec.dtype}{takes[spec.name]}") for spec in inputs(name))
    model, report = importing.import_source(ARCHITECTURES[name].source, ImportOptions(inputs=described))
    assert shapes(model.graph.inputs) == takes
    assert shapes(model.graph.outputs) == gives
    kinds = [node.op_type for node in all_nodes(model)]
    assert not {"Loop", "If", "Scan"} & set(kinds)
    assert kinds.count("LSTM") == (name == "lstm_tagger")
    assert report.max_rel < 1e-5
    assert not report.notes


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # TorchScript itself
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["deit", "keyword_net"])
def test_torchscript(tmp_path, name):
    """Attention whose rank the exporter forgets, and sound that is longer than what is drawn at first."""
    made = with_examples(ARCHITECTURES[name].factory(), inputs(name))
    traced = torch.jit.trace(made.module, made.examples, check_trace=False)
    exported = export_subject(with_examples(traced, made.inputs), ImportOptions(), tmp_path)
    model = io.load(exported.model)
    assert shapes(model.graph.inputs) == {s.name: f"[{','.join(map(str, s.shape))}]" for s in made.inputs}
    assert shapes(model.graph.outputs) == {"output": "[batch,10]"}
    shapes_run = {str([x.shape for x in feed.values()]) for feed in exported.references.feeds}
    assert len(shapes_run) > 1
    assert not exported.notes


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # TorchScript itself
def test_torchscript_that_returns_a_dictionary(tmp_path):
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.body(x)
            return {"boxes": found * 2, "scores": found.sum(1)}

    path = tmp_path / "heads.pt"
    torch.jit.save(torch.jit.trace(Heads().eval(), torch.ones(2, 3, 8, 8), strict=False), path)
    described = (InputSpec.parse("x=float32[batch,3,height,width]"),)
    model, report = importing.import_source(str(path), ImportOptions(inputs=described))
    assert [value.name for value in model.graph.outputs] == ["boxes", "scores"]
    assert report.max_rel < 1e-5
