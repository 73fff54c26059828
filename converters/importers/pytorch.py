"""PyTorch: exported programs, TorchScript, and code that makes a module."""

from __future__ import annotations

import re
from pathlib import Path

from graphopt.conversion import FrameworkImporter, register_importer
from graphopt.converters.importers._archive import member_names
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB = re.compile(r"torchhub:.+:[A-Za-z_]\w*")


class _PyTorchImporter(FrameworkImporter):
    framework = "PyTorch"
    extra = "torch"
    needs = ("torch", "onnxscript")
    exporter = "graphopt.converters.importers._pytorch.export"


@register_importer
class ExportedProgramImporter(_PyTorchImporter):
    """Reads what ``torch.export.save`` wrote."""

    format = "ExportedProgram"
    suffixes = (".pt2",)

    def recognizes(self, source: Path) -> bool:
        """An archive with a member ``archive_format``."""
        return any(name.endswith("/archive_format") for name in member_names(source))


@register_importer
class TorchScriptImporter(_PyTorchImporter):
    """Reads what ``torch.jit.save`` wrote; other ``.pt`` files are told apart and refused."""

    format = "TorchScript"
    suffixes = (".pt", ".pth", ".ts", ".torchscript")

    def recognizes(self, source: Path) -> bool:
        """An archive with ``constants.pkl`` and code."""
        names = member_names(source)
        return any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)


@register_importer
class PyTorchCodeImporter(_PyTorchImporter):
    """Runs code that the user names: ``package.module:factory``, ``torchhub:FOLDER:entry``."""

    format = "PyTorch"
    suffixes = ("package.module:factory", "torchhub:FOLDER:entry")

    def accepts(self, source: str) -> bool:
        """Whether the source is the name of code and not that of a file."""
        named = _FACTORY.fullmatch(source) or _HUB.fullmatch(source)
        return named is not None and not Path(source).exists()

    def check(self, source: str, options: ImportOptions) -> None:
        """Code does not say what it takes."""
        if not options.inputs:
            raise InputError(f"'{source}': what does it take? Say it with --input x=float32[batch,3,224,224]")
