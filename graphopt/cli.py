"""The command line. Exit codes: 0 done, 1 a gate or verification failed, 2 the user's input is at fault,
3 a defect of graphopt.

Everything but click is imported inside the commands: ``graphopt --help`` must stay instant.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from graphopt import __version__
from graphopt.errors import GraphoptError, OutputError

if TYPE_CHECKING:
    from rich.console import Console

    from graphopt.pipeline import Progress
    from graphopt.report import RunReport

_MODEL = click.argument("model", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
_EXPLAIN = click.option(
    "--explain", is_flag=True, help="Also say what was not rewritten, by which rule, and why."
)
_MATCH = click.option(
    "--explain-match",
    "match",
    metavar="TEXT",
    help="The same for nodes, rules and reasons with TEXT in them.",
)
_NO_VERIFY = click.option(
    "--no-verify", is_flag=True, help="Run no model: check interface and structure only."
)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="graphopt")
def cli() -> None:
    """Run a written recipe of graph passes over a trained network, and prove what each did to the numbers."""


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@_MODEL
@click.option(
    "-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="File to write."
)
@click.option("--set", "settings", multiple=True, metavar="PASS.OPTION=VALUE", help="Override an option.")
@click.option("--dry-run", is_flag=True, help="Check recipe, model and data; run no pass, write nothing.")
@click.option("--allow-code", is_flag=True, help="Let the recipe import Python code (package.module:name).")
@_NO_VERIFY
@_EXPLAIN
@_MATCH
@_JSON
@_QUIET
def run(
    recipe: Path,
    model: Path,
    outputs: tuple[Path, ...],
    settings: tuple[str, ...],
    dry_run: bool,
    allow_code: bool,
    no_verify: bool,
    explain: bool,
    match: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run RECIPE over MODEL, verify every pass, write the outputs."""
    from graphopt import api
    from graphopt import recipe as recipes

    parsed = recipes.load(recipe, settings=settings, allow_code=allow_code)
    parsed = parsed.without_verification() if no_verify else parsed
    if dry_run:
        _Show(as_json, quiet).report(api.plan(parsed, model))
        return
    _run(parsed, model, list(outputs) or None, _Show(as_json, quiet, explain, match))


@cli.command()
@_MODEL
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--target-opset", type=int, help="Convert to this opset first: newer ones have larger operators."
)
@click.option(
    "--target",
    type=click.Choice(["onnxruntime"]),
    help="Let this runtime's own optimizer run last, if the result is no slower: others may not run it.",
)
@_NO_VERIFY
@_EXPLAIN
@_MATCH
@_JSON
@_QUIET
def optimize(
    model: Path,
    output: Path,
    target_opset: int | None,
    target: Literal["onnxruntime"] | None,
    no_verify: bool,
    explain: bool,
    match: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fold, fuse and clean MODEL: the same function in fewer nodes."""
    from graphopt import api

    show = _Show(as_json, quiet, explain, match)
    recipe = api.optimize_recipe(target_opset, target)
    _run(recipe.without_verification() if no_verify else recipe, model, [output], show)


@cli.command()
@click.argument("target", type=click.Path(path_type=Path), default="passes.yaml")
def init(target: Path) -> None:
    """Write a commented starter recipe to TARGET (passes.yaml)."""
    from graphopt import api

    text = api.builtin_recipe("starter").read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputError(f"'{target}' exists; name another file") from None
    except OSError as error:
        raise OutputError(f"cannot write '{target}': {error.strerror}") from error
    click.echo(f"wrote {target}; run it with: graphopt run {target} model.onnx")


@cli.command()
@_MODEL
@click.option(
    "--axis", "axes", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic axis for the MACs."
)
@_JSON
def inspect(model: Path, axes: tuple[str, ...], as_json: bool) -> None:
    """Show MODEL: nodes, parameters, MACs, bytes, opset, inputs and outputs, operators."""
    from graphopt import api, tables

    inspection = api.inspect(model, axes=dict(_axis(text) for text in axes))
    if as_json:
        _print_json(inspection.to_json())
    else:
        _print(tables.inspection(inspection, str(model)))


def _axis(text: str) -> tuple[str, int]:
    name, equals, size = text.rpartition("=")
    if not equals or not size.isdigit() or not name:
        raise click.UsageError(f"--axis {text}: write it as name=size")
    return name, int(size)


@cli.command()
@click.argument("reference", type=click.Path(path_type=Path))
@_MODEL
@click.option(
    "--inputs", type=click.Path(path_type=Path), help="An .npz file of input arrays; drawn if not given."
)
@click.option("--samples", default=4, show_default=True, help="How many inputs to draw.")
@click.option("--seed", default=0, show_default=True, help="Their seed.")
@click.option("--rtol", default=1e-4, show_default=True, help="Relative tolerance, per element.")
@click.option(
    "--atol", default=1e-5, show_default=True, help="Absolute tolerance, in units of the output's RMS."
)
@_JSON
def verify(
    reference: Path,
    model: Path,
    inputs: Path | None,
    samples: int,
    seed: int,
    rtol: float,
    atol: float,
    as_json: bool,
) -> None:
    """Compare MODEL with REFERENCE on the same inputs. Exit code 1 if they differ beyond the tolerance."""
    from graphopt import api, tables

    comparison = api.verify(reference, model, inputs, count=samples, seed=seed)
    agrees = comparison.agrees(rtol, atol)
    if as_json:
        _print_json({"agrees": agrees, "outputs": comparison.to_json()})
    else:
        _print(tables.comparison(comparison))
        click.echo("the models agree" if agrees else f"the models differ (rtol {rtol:g}, atol {atol:g})")
    if not agrees:
        sys.exit(1)


@cli.command()
@click.argument("name", required=False)
@_JSON
def passes(name: str | None, as_json: bool) -> None:
    """List the passes, or show one with its options, effect and source."""
    from graphopt import registry, tables

    classes = registry.pass_classes() if name is None else {name: registry.resolve(name)}
    if as_json:
        _print_json([tables.pass_data(n, c) for n, c in classes.items()])
    elif name is None:
        _print(tables.passes(classes))
    else:
        _print(tables.one_pass(name, classes[name]))


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> None:
    """Read SOURCE and write TARGET; the file suffixes say the formats."""
    from graphopt import api
    from graphopt.report import human_bytes

    written = api.convert(source, target)
    click.echo(f"wrote {target} ({human_bytes(written)})")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from graphopt import recipe

    _print_json(recipe.schema())


class _Show(NamedTuple):
    """How a run is shown; with ``explain`` or ``match`` also what was left alone, and why."""

    as_json: bool
    quiet: bool
    explain: bool = False
    match: str | None = None

    def report(self, report: RunReport) -> None:
        """Print the report."""
        from graphopt import explain

        text = self.match or ("" if self.explain else None)
        groups = [] if text is None else report.left_alone(text)
        if self.as_json:
            found = {} if text is None else {"left_alone": [group.to_json() for group in groups]}
            _print_json({**report.to_json(), **found})
        elif not self.quiet:
            _print(report.table())
            if text is not None:
                _print(explain.table(groups, text))
            for line in [*filter(None, [explain.hint(groups)]), *report.closing_lines()]:
                click.echo(line)


def _run(recipe: Any, model: Path, outputs: list[Path] | None, show: _Show) -> None:
    """Run a parsed recipe with progress; show the report even when the run stops at a pass."""
    from graphopt import api

    try:
        with _progress(show.quiet or show.as_json) as progress:
            result = api.run(recipe, model, outputs=outputs, progress=progress)
    except GraphoptError as error:
        report = getattr(error, "report", None)
        if report is not None:
            show.report(report)
        raise
    show.report(result.report)


@contextmanager
def _progress(silent: bool) -> Iterator[Progress]:
    """A progress bar on stderr, one step a pass; none when stderr is not a terminal."""
    if silent or not sys.stderr.isatty():
        yield lambda number, total, name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda number, total, name: bar.update(task, description=name, completed=number, total=total)


def _print(renderable: Any) -> None:
    _console().print(renderable)


def _console() -> Console:
    from rich.console import Console

    # Piped output is for grep and logs: wide enough that no cell is cut.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def main() -> None:
    """The entry point: runs the command, turns every error into one line and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; nothing was written", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - Python flushes it once more at exit
        sys.exit(0)
    except GraphoptError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory; close other programs or use a larger machine", 2)
    except Exception as error:
        if os.environ.get("GRAPHOPT_TRACEBACK"):
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        _fail(
            f"defect: {type(error).__name__}: {text} (set GRAPHOPT_TRACEBACK=1 and report the traceback)", 3
        )


def _fail(message: str, code: int) -> None:
    click.echo(f"graphopt: {' '.join(message.split())}", err=True)
    sys.exit(code)
