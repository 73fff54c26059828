"""Import a model that lives in this process: a ``torch.nn.Module``, a ``keras.Model``.

The same as for a file, but for the child process: the framework is loaded here already.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt import conversion
from graphopt.conversion import Exported, FrameworkImporter
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions, InputSpec
from graphopt.importing import import_exported

if TYPE_CHECKING:
    import keras
    import torch

__all__ = ["from_keras", "from_torch"]

#: Names for free axes, by input: by number of the axis, or numbers alone, which get names of their own.
DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]


def from_torch(
    module: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    dynamic_axes: DynamicAxes | None = None,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    options: ImportOptions | None = None,
) -> ir.Model:
    """Import a PyTorch module, as it computes in evaluation mode; it is left as it was.

    Args:
        module: The module; TorchScript as well.
        example_inputs: Tensors to call it on: one, several in order, or by the name of the parameter.
        dynamic_axes: Which axes are free: ``{"x": {0: "batch"}}``, or ``{"x": [0]}``. Axes of one name have
            one size.
        input_names: Names for the inputs; those of the parameters of ``forward`` where left out.
        output_names: Names for the outputs; keys of a dict, else ``output``, ``output_1`` where left out.
        options: Target opset, whether to verify, and on how many samples.

    Raises:
        InputError: The arguments do not fit each other or the module.
        UnsupportedError: No exporter writes it rightly.
        VerificationError: What was imported does not compute what the module computes.
        MissingExtraError: PyTorch or its exporter is not installed.
    """
    options = options or ImportOptions()
    _importer("PyTorch").check_extra()
    import torch

    from graphopt.converters.importers._pytorch import export, subject

    if torch.is_tensor(example_inputs):
        example_inputs = [example_inputs]
    if isinstance(example_inputs, Mapping):
        names, examples = list(example_inputs), list(example_inputs.values())
    else:
        examples = list(example_inputs)
        names = list(input_names) or _parameters(module, len(examples))
    if len(names) != len(examples):
        raise InputError(f"{len(names)} input names for {len(examples)} example inputs")
    if not all(torch.is_tensor(example) for example in examples):
        raise InputError("an example input is no tensor")
    inputs = _specs(names, examples, dynamic_axes or {})

    def make(folder: Path) -> Exported:
        made = subject.with_examples(module, inputs, output_names, examples)
        return export.export_subject(made, options, folder)

    with _evaluating(module):
        return _imported(make, type(module).__name__, "PyTorch", options)


def from_keras(model: keras.Model, *, options: ImportOptions | None = None) -> ir.Model:
    """Import a Keras model of the TensorFlow backend, Keras 3 or ``tf_keras``.

    Args:
        model: The model, built (it knows its inputs).
        options: Target opset, whether to verify, and on how many samples.

    Raises:
        UnsupportedError: It does not say what it takes, or holds what tf2onnx cannot translate.
        VerificationError: What was imported does not compute what the model computes.
        MissingExtraError: TensorFlow or tf2onnx is not installed.
    """
    options = options or ImportOptions()
    _importer("Keras").check_extra()
    from graphopt.converters.importers._keras import export, loading

    def make(folder: Path) -> Exported:
        return export.export_subject(loading.from_model(model), folder)

    return _imported(make, str(model.name), "Keras", options)


def _importer(format: str) -> FrameworkImporter:
    found = conversion.importer_of(format)
    assert isinstance(found, FrameworkImporter)
    return found


def _imported(make: Callable[[Path], Exported], name: str, format: str, options: ImportOptions) -> ir.Model:
    """Export into a folder that lives as long as the model, and finish the import."""
    folder = tempfile.TemporaryDirectory(prefix="graphopt-")
    try:
        exported = make(Path(folder.name))
        model, report = import_exported(exported, name, _importer(format).framework, format, options)
    except BaseException:
        folder.cleanup()
        raise
    weakref.finalize(model, folder.cleanup)  # large weights are read when they are needed
    for note in report.notes:
        warnings.warn(f"{name}: {note}", stacklevel=3)
    return model


def _parameters(module: torch.nn.Module, count: int) -> list[str]:
    """Names of the first parameters of ``forward``; ``input``, ``input_1`` where it does not say."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript has none
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(named) >= count:
        return named[:count]
    return [f"input_{i}" if i else "input" for i in range(count)]


def _specs(
    names: Sequence[str], examples: Sequence[torch.Tensor], axes: DynamicAxes
) -> tuple[InputSpec, ...]:
    """The inputs with the names of their free axes in place of sizes.

    Raises:
        InputError: An axis is free of an input that is none, or that does not have it.
    """
    unknown = [name for name in axes if name not in names]
    if unknown:
        raise InputError(f"dynamic_axes: there is no input '{unknown[0]}'; there are: {', '.join(names)}")
    specs = []
    for name, example in zip(names, examples, strict=True):
        shape: list[int | str] = list(example.shape)
        given = axes.get(name, {})
        free = given if isinstance(given, Mapping) else {axis: f"{name}_{axis}" for axis in given}
        for axis, called in free.items():
            if not -len(shape) <= axis < len(shape):
                raise InputError(f"dynamic_axes: input '{name}' has {len(shape)} axes, and no axis {axis}")
            shape[axis] = called
        specs.append(InputSpec(name, str(example.dtype).removeprefix("torch."), tuple(shape)))
    return tuple(specs)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, without the fused attention that has no ONNX form; all is as before afterwards."""
    import torch

    training = [part for part in module.modules() if part.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part in training:
            part.training = True
