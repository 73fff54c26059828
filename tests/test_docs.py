"""What the documents show is what the program does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from graphopt import recipe as recipes
from graphopt import registry
from graphopt.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_page_of_passes_is_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert read("docs/passes.md") == generate.text(), "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_recipes_in_the_documents_are_valid(page):
    for block in re.findall(r"```yaml\n(.*?)```", read(page), re.S):
        recipes.from_data(yaml.safe_load(block))


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_documents_exist(page):
    for command in re.findall(r"(?:^|bin/|`)graphopt ([a-z]+)", read(page), re.M):
        assert command in cli.commands, f"{page} shows `graphopt {command}`"


@pytest.mark.parametrize("cls", registry.pass_classes().values(), ids=registry.pass_name)
def test_every_pass_and_option_is_documented(cls):
    from graphopt.options import options_of

    assert (cls.__doc__ or "").strip().splitlines()[0].endswith(".")
    for option in options_of(cls):
        assert option.help.endswith("."), f"{cls.name}.{option.name}"


def test_pass_files_are_named_as_their_pass():
    for name, cls in registry.pass_classes().items():
        if cls.__module__.startswith("graphopt."):
            assert cls.__module__.rpartition(".")[2] == name.replace("-", "_")
            mirrored = (
                "tests/" + "/".join(cls.__module__.split(".")[1:-1]) + f"/test_{name.replace('-', '_')}.py"
            )
            assert (ROOT / mirrored).exists(), f"{name} has no {mirrored}"
