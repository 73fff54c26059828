"""The floors of docs/design.md: imports go down, and passes never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    **dict.fromkeys(("errors", "limits", "options", "import_options", "yaml_source"), 1),
    **dict.fromkeys(("graph", "io", "analyses", "rewrite"), 2),
    "runtime": 3,
    **dict.fromkeys(("registry", "conversion", "references"), 4),
    **dict.fromkeys(("passes", "converters"), 5),
    **dict.fromkeys(
        ("recipe", "data", "verification", "explain", "report", "pipeline", "builtin", "importing", "live"), 6
    ),
    **dict.fromkeys(("api", "tables", "cli", "__main__"), 7),
}
TREES = {"graphopt": "graphopt", "passes": "graphopt.passes", "converters": "graphopt.converters"}


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in TREES.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder)
            if folder == "graphopt" and inside.parts[0] in ("passes", "converters"):
                continue  # the symlinks
            parts = [package, *inside.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def floor(module: str) -> int:
    parts = module.split(".")
    if len(parts) == 1:
        return 7  # the package itself imports nothing when it is imported
    return FLOORS.get(parts[1], 2)  # private modules belong to the IR floor


def imports(path: Path) -> set[str]:
    """Modules of ours that are imported when this one is: not inside functions, not for type checkers."""
    found: set[str] = set()
    pending: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else str(node.module) for n in names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += [*node.body, *node.orelse]
    return {name for name in found if name.split(".")[0] == "graphopt"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    for imported in imports(MODULES[module]):
        assert floor(imported) <= floor(module), f"{module} imports {imported}, which is above it"


def test_there_are_no_cycles():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    done: set[str] = set()
    while graph.keys() - done:
        ready = {m for m in graph.keys() - done if not (graph[m] & graph.keys()) - done}
        assert ready, f"a cycle among {sorted(graph.keys() - done)}"
        done |= ready


def test_passes_do_not_import_passes():
    passes = {m for m in MODULES if m.startswith("graphopt.passes.")}
    named = {m for m in passes if "@register\n" in MODULES[m].read_text(encoding="utf-8")}
    assert len(named) >= 16
    for module in passes:
        assert not imports(MODULES[module]) & (named - {module}), f"{module} imports a pass"
