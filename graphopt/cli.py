"""The command line. Exit codes: 0 done, 1 a gate or verification failed, 2 the user's input is at fault,
3 a defect of graphopt.

Everything but click is imported inside the commands: ``graphopt --help`` must stay instant.
"""

from __future__ import annotations

import functools
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

    from graphopt.import_options import ImportOptions
    from graphopt.pipeline import Progress
    from graphopt.report import RunReport

_MODEL = click.argument("model")
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
_ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Let the recipe or the source run Python code that it names or holds.",
)
_NO_VERIFY = click.option(
    "--no-verify", is_flag=True, help="Run no model: check interface and structure only."
)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
#: What may be said of a source of another framework; the names are those of ImportOptions.
_IMPORT = (
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=DTYPE[AXES]",
        help="An input of a source that does not describe it: image=float32[batch,3,224,224].",
    ),
    click.option("--weights", metavar="FILE", help="Weights for a source without: .safetensors or .pt."),
    click.option("--signature", metavar="NAME", help="Which signature of the source to import."),
    click.option(
        "--custom-object",
        "custom_objects",
        multiple=True,
        metavar="PACKAGE.MODULE:NAME",
        help="A class or function that the source names; it is imported and run.",
    ),
    click.option(
        "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Time for an import (1800)."
    ),
    click.option(
        "--memory", type=click.FloatRange(min=0), metavar="GIB", help="Memory for an import (80 %)."
    ),
)


def _import_options(command: Any) -> Any:
    """Decorator: the command takes what may be said of an import, as one argument ``importing``."""

    @functools.wraps(command)
    def wrapped(
        inputs: tuple[str, ...],
        weights: str | None,
        signature: str | None,
        custom_objects: tuple[str, ...],
        timeout: float | None,
        memory: float | None,
        allow_code: bool = False,
        no_verify: bool = False,
        **others: Any,
    ) -> None:
        from graphopt.import_options import ImportOptions, InputSpec
        from graphopt.limits import GIB, IMPORT_SECONDS

        importing = ImportOptions(
            inputs=tuple(InputSpec.parse(text) for text in inputs),
            weights=weights,
            allow_code=allow_code,
            custom_objects=custom_objects,
            signature=signature,
            verify=not no_verify,
            memory=None if memory is None else int(memory * GIB),
            seconds=IMPORT_SECONDS if timeout is None else timeout,
        )
        command(importing=importing, **others)

    for option in reversed(_IMPORT):
        wrapped = option(wrapped)
    return wrapped


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
@_ALLOW_CODE
@_NO_VERIFY
@_import_options
@_EXPLAIN
@_MATCH
@_JSON
@_QUIET
def run(
    recipe: Path,
    model: str,
    outputs: tuple[Path, ...],
    settings: tuple[str, ...],
    dry_run: bool,
    importing: ImportOptions,
    explain: bool,
    match: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run RECIPE over MODEL, verify every pass, write the outputs."""
    from graphopt import api
    from graphopt import recipe as recipes

    parsed = recipes.load(recipe, settings=settings, allow_code=importing.allow_code)
    parsed = parsed if importing.verify else parsed.without_verification()
    if dry_run:
        _Show(as_json, quiet).report(api.plan(parsed, model, importing))
        return
    _run(parsed, model, list(outputs) or None, _Show(as_json, quiet, explain, match), importing)


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
@_ALLOW_CODE
@_NO_VERIFY
@_import_options
@_EXPLAIN
@_MATCH
@_JSON
@_QUIET
def optimize(
    model: str,
    output: Path,
    target_opset: int | None,
    target: Literal["onnxruntime"] | None,
    importing: ImportOptions,
    explain: bool,
    match: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fold, fuse and clean MODEL: the same function in fewer nodes."""
    from graphopt import builtin

    show = _Show(as_json, quiet, explain, match)
    recipe = builtin.optimize_recipe(target_opset, target)
    recipe = recipe if importing.verify else recipe.without_verification()
    _run(recipe, model, [output], show, importing)


@cli.command()
@click.argument("target", type=click.Path(path_type=Path), default="passes.yaml")
def init(target: Path) -> None:
    """Write a commented starter recipe to TARGET (passes.yaml)."""
    from graphopt import builtin

    text = builtin.builtin_recipe("starter").read_text(encoding="utf-8")
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
def inspect(model: str, axes: tuple[str, ...], as_json: bool) -> None:
    """Show MODEL: nodes, parameters, MACs, bytes, opset, inputs and outputs, operators."""
    from graphopt import api, tables

    inspection = api.inspect(model, axes=dict(_axis(text) for text in axes))
    if as_json:
        _print_json(inspection.to_json())
    else:
        _print(tables.inspection(inspection, model))


def _axis(text: str) -> tuple[str, int]:
    name, equals, size = text.rpartition("=")
    if not equals or not size.isdigit() or not name:
        raise click.UsageError(f"--axis {text}: write it as name=size")
    return name, int(size)


@cli.command()
@click.argument("reference")
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
    reference: str,
    model: str,
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
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--opset", type=int, help="Convert an imported model to this opset.")
@_ALLOW_CODE
@_NO_VERIFY
@_import_options
@_JSON
@_QUIET
def convert(
    source: str, target: Path, opset: int | None, importing: ImportOptions, as_json: bool, quiet: bool
) -> None:
    """Import SOURCE, compare it with what its framework computes, write TARGET.

    SOURCE is a file or folder, found out by suffix and content, or the name of code that makes a model:
    package.module:factory. The suffix of TARGET says what is written.
    """
    from dataclasses import replace

    from graphopt import api
    from graphopt.report import human_bytes

    with _progress(quiet or as_json) as progress:
        done = api.convert(source, target, importing=replace(importing, opset=opset), progress=progress)
    if as_json:
        _print_json(done.to_json())
    elif not quiet:
        for line in done.imported.lines() if done.imported else []:
            click.echo(line)
        click.echo(f"wrote {target} ({human_bytes(done.written.bytes)})")


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


def _run(recipe: Any, model: str, outputs: list[Path] | None, show: _Show, importing: ImportOptions) -> None:
    """Run a parsed recipe with progress; show the report even when the run stops at a pass."""
    from graphopt import api

    try:
        with _progress(show.quiet or show.as_json) as progress:
            result = api.run(recipe, model, outputs=outputs, importing=importing, progress=progress)
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
