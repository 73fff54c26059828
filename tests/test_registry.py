"""The registry of passes: names, entry points, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import ClassVar

import onnx_ir.passes.common
import pytest

from graphopt import registry
from graphopt.errors import InputError
from graphopt.registry import Pass, PassResult, register


@dataclasses.dataclass(eq=False)
class Nothing(Pass):
    """Do nothing."""

    name: ClassVar[str] = "nothing"

    def call(self, model):
        return PassResult(model, False)


@pytest.fixture
def own(monkeypatch):
    """Registrations of a test do not outlive it."""
    registry.pass_classes()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def entry(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, "graphopt.passes")


@pytest.fixture
def installed(monkeypatch):
    def install(*entries: importlib.metadata.EntryPoint) -> None:
        monkeypatch.setattr(registry, "_entry_points", lambda: {e.name: e for e in entries})

    return install


def test_a_registered_pass_is_found_by_name(own):
    assert register(Nothing) is Nothing
    assert registry.resolve("nothing") is Nothing


@pytest.mark.parametrize("name", ["Nothing", "no_thing", "-nothing", "no--thing", "nothing-", "1nothing", ""])
def test_names_are_kebab_case(own, name):
    with pytest.raises(ValueError, match="not kebab-case"):
        register(dataclasses.dataclass(eq=False)(type("X", (Nothing,), {"__doc__": "X.", "name": name})))


def test_two_passes_cannot_share_a_name(own):
    register(Nothing)
    with pytest.raises(ValueError, match="two passes are named 'nothing': Nothing and Other"):
        register(type("Other", (Nothing,), {"__doc__": "Other."}))


def test_a_pass_without_a_docstring_is_refused(own):
    with pytest.raises(ValueError, match="'mute' has no docstring"):
        register(type("Mute", (Nothing,), {"__doc__": None, "name": "mute"}))


def test_installed_entry_points_need_no_flag(installed):
    installed(entry("tidy", "onnx_ir.passes.common:RemoveUnusedNodesPass"))
    assert registry.resolve("tidy") is onnx_ir.passes.common.RemoveUnusedNodesPass
    assert registry.is_exact(registry.resolve("tidy"))


def test_an_entry_point_never_replaces_a_pass_of_ours(installed):
    installed(entry("fuse", "onnx_ir.passes.common:RemoveUnusedNodesPass"))
    assert registry.resolve("fuse").__module__ == "graphopt.passes.fusion.fuse"


def test_an_entry_point_that_is_no_pass_is_named(installed):
    installed(entry("odd", "json:dumps"))
    with pytest.raises(InputError, match="entry point 'odd' is not an onnx_ir pass class"):
        registry.pass_classes()


def test_unknown_names_and_import_paths():
    with pytest.raises(InputError, match="unknown pass 'fuze'; did you mean 'fuse'"):
        registry.resolve("fuze")
    with pytest.raises(InputError, match="--allow-code"):
        registry.resolve("onnx_ir.passes.common:RemoveUnusedNodesPass")
    found = registry.resolve("onnx_ir.passes.common:RemoveUnusedNodesPass", allow_code=True)
    assert registry.pass_name(found).endswith(":RemoveUnusedNodesPass")
