"""``from_torch``: modules that live in this process (``from_keras``: tests/converters/importers)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graphopt
from graphopt.api import ImportOptions
from graphopt.errors import InputError


class Joined(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, a, b, scale: float = 1.0):
        return {"sum": self.dropout(self.left(a) + self.right(b)) * scale, "first": a}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Joined()


def shapes(values):
    return {value.name: [str(axis) for axis in value.shape] for value in values}


def test_names_and_axes_are_the_users(module):
    axes = {"a": {0: "batch"}, "b": {0: "batch"}}
    model = graphopt.from_torch(module, (torch.ones(2, 4), torch.ones(2, 2)), axes)
    assert shapes(model.graph.inputs) == {"a": ["batch", "4"], "b": ["batch", "2"]}
    assert shapes(model.graph.outputs) == {"sum": ["batch", "3"], "first": ["batch", "4"]}


def test_it_computes_what_the_module_computes_without_dropout(module, run):
    model = graphopt.from_torch(module, {"b": torch.ones(3, 2), "a": torch.ones(3, 4)}, {"a": [0], "b": [0]})
    a, b = torch.randn(3, 4), torch.randn(3, 2)
    with torch.no_grad():
        wanted = module.eval()(a, b)
    found = dict(zip(shapes(model.graph.outputs), run(model, {"a": a.numpy(), "b": b.numpy()}), strict=True))
    np.testing.assert_allclose(found["sum"], wanted["sum"].numpy(), rtol=1e-5, atol=1e-6)


def test_the_module_is_left_as_it_was(module):
    module.left.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    graphopt.from_torch(module, [torch.ones(2, 4), torch.ones(2, 2)])
    assert [part.training for part in module.modules()] == [True, False, True, True]
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_one_tensor_and_names(run):
    model = graphopt.from_torch(
        torch.nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8), {"x": {0: "n", 2: "h", 3: "w"}},
        input_names=["x"], output_names=["y"], options=ImportOptions(opset=22),
    )  # fmt: skip
    assert shapes(model.graph.inputs) == {"x": ["n", "3", "h", "w"]}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert model.opset_imports[""] == 22
    assert model.metadata_props["graphopt.source"] == "Conv2d"
    assert run(model, {"x": np.ones((2, 3, 5, 7), np.float32)})[0].shape == (2, 4, 3, 5)


def test_attention_has_no_fused_operator():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = graphopt.from_torch(layer, torch.randn(2, 5, 8), {"src": {0: "batch", 1: "length"}})
    assert shapes(model.graph.inputs)["src"] == ["batch", "length", "8"]
    assert {node.domain for node in model.graph} == {""}


def test_what_cannot_stay_free_is_said():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x.reshape(2, 4) * torch.arange(4.0)

    with pytest.warns(UserWarning, match="batch|free|size"):
        model = graphopt.from_torch(Fixed(), torch.ones(2, 4), {"x": {0: "batch"}})
    assert shapes(model.graph.inputs) == {"x": ["2", "4"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dynamic_axes": {"c": {0: "n"}}}, "there is no input 'c'; there are: a, b"),
        ({"dynamic_axes": {"a": {2: "n"}}}, "input 'a' has 2 axes, and no axis 2"),
        ({"input_names": ["only"]}, "1 input names for 2 example inputs"),
        ({"output_names": ["only"]}, "1 output names for 2 outputs"),
    ],
)
def test_arguments_that_do_not_fit(module, arguments, message):
    with pytest.raises(InputError, match=message):
        graphopt.from_torch(module, (torch.ones(2, 4), torch.ones(2, 2)), **arguments)


def test_example_that_is_no_tensor(module):
    with pytest.raises(InputError, match="no tensor"):
        graphopt.from_torch(module, (torch.ones(2, 4), 3))


def test_a_module_whose_numbers_change_is_not_imported():
    class Noise(torch.nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(graphopt.GraphoptError, match=r"differs|rightly"):
        graphopt.from_torch(Noise(), torch.ones(2, 4))
