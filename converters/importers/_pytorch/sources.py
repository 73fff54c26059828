"""Load what the user names: an exported program, TorchScript, or code that makes a module."""

from __future__ import annotations

import importlib
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import load_pt2

from graphopt.converters.importers import _guard
from graphopt.converters.importers._pytorch import exported_program, inspection, torchscript
from graphopt.converters.importers._pytorch.subject import Subject, flatten, with_examples
from graphopt.errors import InputError, UnsupportedError
from graphopt.import_options import ImportOptions, InputSpec
from graphopt.limits import SAMPLE_ELEMENTS
from graphopt.runtime.evaluate import first_line

__all__ = ["load"]


def load(source: str, options: ImportOptions, folder: Path) -> Subject:
    """The module behind ``source``, ready to be exported.

    Raises:
        InputError, UnsupportedError: It cannot be loaded; one line says why and what to do.
    """
    path = Path(source)
    if not path.exists() and ":" in source:
        return _code(source, options)
    if not path.is_file():
        raise InputError(f"'{source}': no such file")
    kind = inspection.kind(path)
    if kind == "ExportedProgram":
        return _exported_program(path, folder)
    if kind == "TorchScript":
        return _torchscript(path, options, folder)
    raise inspection.refusal(path, kind)


def _exported_program(path: Path, folder: Path) -> Subject:
    checked = exported_program.checked_copy(path, folder)
    with _guard.loading(str(path), "torch.export"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch.export.load would try an older format where this fails, and not say why it does.
        program = load_pt2(str(checked)).exported_programs["model"]
        inputs, examples = _inputs_of(program)
        module = program.module()
        outputs = _outputs_of(module, examples)
    return Subject(module, inputs, examples, outputs, program=program)


def _outputs_of(module: torch.nn.Module, examples: tuple[torch.Tensor, ...]) -> tuple[str, ...]:
    try:
        with torch.no_grad():
            result = module(*examples)
    except Exception as error:
        raise UnsupportedError(f"it does not run on inputs of zeros: {first_line(error)}") from error
    return tuple(flatten(result))


def _inputs_of(
    program: torch.export.ExportedProgram,
) -> tuple[tuple[InputSpec, ...], tuple[torch.Tensor, ...]]:
    """Inputs of a program; a free axis is called ``batch`` if it is the first, else after its input."""
    given = program.call_spec.in_spec
    if given is not None and given.child(1).num_children:
        raise UnsupportedError("it takes keyword arguments; export it with positional ones")
    if given is not None and any(child.num_children for child in given.child(0).children()):
        raise UnsupportedError("it takes nested inputs; export it with tensors only")
    metas: dict[str, Any] = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    names: dict[str, str] = {}
    specs, examples = [], []
    for name in program.graph_signature.user_inputs:
        meta = metas.get(name) if isinstance(name, str) else name
        if not torch.is_tensor(meta):
            raise UnsupportedError(f"input '{name}' is no tensor but {type(meta).__name__}")
        shape: list[int | str] = []
        dims: list[Any] = list(meta.shape)  # integers and symbols
        for number, axis in enumerate(dims):
            if isinstance(axis, int):
                shape.append(axis)
            else:
                called = "batch" if number == 0 and "batch" not in names.values() else f"{name}_{number}"
                shape.append(names.setdefault(str(axis), called))
        specs.append(InputSpec(str(name), str(meta.dtype).removeprefix("torch."), tuple(shape)))
        sizes = [axis if isinstance(axis, int) else int(axis.node.hint or 2) for axis in dims]
        if not 0 <= math.prod(sizes) <= SAMPLE_ELEMENTS:
            raise UnsupportedError(
                f"input '{name}' has {math.prod(sizes):,} elements; {SAMPLE_ELEMENTS:,} is most"
            )
        examples.append(torch.zeros(sizes, dtype=meta.dtype))
    return tuple(specs), tuple(examples)


def _torchscript(path: Path, options: ImportOptions, folder: Path) -> Subject:
    checked = torchscript.checked_copy(path, folder)
    if not options.inputs:
        names = ", ".join(f"--input {name}=float32[batch,...]" for name in torchscript.parameters(path))
        raise InputError(f"'{path}': TorchScript does not say which shapes it takes; say it with {names}")
    with _guard.loading(str(path), "TorchScript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        module: Any = torch.jit.load(str(checked), map_location="cpu")  # type: ignore[no-untyped-call]
    return with_examples(module.eval(), options.inputs)


def _code(source: str, options: ImportOptions) -> Subject:
    torch.manual_seed(options.seed)  # weights that the code draws are the same every time
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as `python -m` does
    module: Any = _from_hub(source) if source.startswith("torchhub:") else _from_factory(source)
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"'{source}': made {type(module).__name__}, no torch.nn.Module")
    weights = options.weights_file()
    if weights is not None:
        _load_weights(module, weights)
    return with_examples(module.eval(), options.inputs)


def _from_factory(source: str) -> Any:
    name, _, attribute = source.partition(":")
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"'{source}': cannot be imported: {first_line(error)}") from error
    try:
        return factory()
    except Exception as error:
        raise InputError(f"'{source}': {attribute}() failed: {first_line(error)}") from error


def _from_hub(source: str) -> Any:
    folder, _, entry = source.removeprefix("torchhub:").rpartition(":")
    if not (Path(folder) / "hubconf.py").is_file():
        raise InputError(f"'{source}': '{folder}' has no hubconf.py")
    try:
        return torch.hub.load(folder, entry, source="local")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise InputError(f"'{source}': {entry}() failed: {first_line(error)}") from error


def _load_weights(module: torch.nn.Module, weights: Path) -> None:
    state = inspection.load_weights(weights)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the first line says that there are errors, the second which
        raise InputError(
            f"'{weights}': does not fit the module: {str(error).splitlines()[-1].strip()}"
        ) from error
    for what, names in (("has no", missing), ("has more than the module:", unexpected)):
        if names:
            raise InputError(f"'{weights}': {what} {', '.join(names[:3])} ({len(names)} in all)")
