"""Keras: whole models in ``.keras`` and ``.h5`` files, and TensorFlow's SavedModel folders."""

from __future__ import annotations

from pathlib import Path

from graphopt.conversion import FrameworkImporter, register_importer
from graphopt.converters.importers._archive import member_names

_HDF5 = b"\x89HDF\r\n\x1a\n"


class _TensorFlowImporter(FrameworkImporter):
    extra = "keras"
    needs = ("tensorflow", "tf2onnx")
    exporter = "graphopt.converters.importers._keras.export"


@register_importer
class KerasImporter(_TensorFlowImporter):
    """Reads what ``model.save`` wrote, by Keras 3 or Keras 2."""

    format = framework = "Keras"
    suffixes = (".keras", ".h5", ".hdf5")

    def recognizes(self, source: Path) -> bool:
        """HDF5, or an archive with a configuration and weights."""
        if not source.is_file():
            return False
        with source.open("rb") as file:
            if file.read(len(_HDF5)) == _HDF5:
                return True
        return {"config.json", "model.weights.h5"} <= set(member_names(source))


@register_importer
class SavedModelImporter(_TensorFlowImporter):
    """Reads a signature of a SavedModel."""

    format = "SavedModel"
    framework = "TensorFlow"
    suffixes = ("a folder with saved_model.pb",)

    def accepts(self, source: str) -> bool:
        """A folder that holds ``saved_model.pb``."""
        return (Path(source) / "saved_model.pb").is_file()

    def recognizes(self, source: Path) -> bool:
        """The same."""
        return self.accepts(str(source))
