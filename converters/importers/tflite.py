"""TFLite files, through a reader of our own: no TensorFlow is needed, LiteRT runs them for comparison."""

from __future__ import annotations

from pathlib import Path

from graphopt.conversion import FrameworkImporter, register_importer
from graphopt.errors import InputError
from graphopt.import_options import ImportOptions

__all__ = ["TfliteImporter"]

_IDENTIFIER = b"TFL3"


@register_importer
class TfliteImporter(FrameworkImporter):
    """Reads TFLite flatbuffers of schema version 3."""

    format = "TFLite"
    framework = "LiteRT"
    suffixes = (".tflite", ".lite")
    extra = "tflite"
    needs = ("ai_edge_litert", "flatbuffers")
    exporter = "graphopt.converters.importers._tflite.export"

    def recognizes(self, source: Path) -> bool:
        """Whether the file has the identifier of TFLite's flatbuffers."""
        if not source.is_file():
            return False
        with source.open("rb") as file:
            return file.read(8)[4:] == _IDENTIFIER

    def check(self, source: str, options: ImportOptions) -> None:
        """Refuse what is no TFLite file, and options that mean nothing here."""
        path = Path(source)
        if not path.is_file():
            raise InputError(f"'{source}': no such file")
        if not self.recognizes(path):
            raise InputError(f"'{source}': no TFLite file, bytes 4 to 8 are not 'TFL3'")
        for given, flag in ((options.weights, "--weights"), (options.custom_objects, "--custom-object")):
            if given:
                raise InputError(f"'{source}': {flag} means nothing for a TFLite file; leave it out")
