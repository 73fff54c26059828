"""The child process of an import: ``python -m graphopt.converters.importers._worker FOLDER``.

Reads ``FOLDER/request.json``; writes ``FOLDER/exported.json``, the ONNX file that it names, and
``FOLDER/references.npz``. A failure is an ``"error"`` in the former.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphopt import references
from graphopt.conversion import Exported
from graphopt.errors import GraphoptError
from graphopt.import_options import ImportOptions
from graphopt.runtime.child import limit_memory
from graphopt.runtime.evaluate import first_line


def main(folder: Path) -> int:
    """Do what the request says."""
    limit_memory()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        answer = _answer(request, folder)
    except GraphoptError as error:
        answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
    except MemoryError:
        print("MemoryError", file=sys.stderr)
        return 1
    except Exception as error:
        if request["traceback"]:
            raise
        message = f"{request['framework']} cannot import it: {type(error).__name__}: {first_line(error)}"
        answer = {"error": {"kind": "UnsupportedError", "message": message}}
    (folder / "exported.json").write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _answer(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    options = ImportOptions.from_json(request["options"])
    exported: Exported = importlib.import_module(request["exporter"]).export(
        request["source"], options, folder
    )
    notes = list(exported.notes)
    if options.verify:
        made = exported.references or references.make(exported, request["framework"], options)
        references.save(made, folder / "references.npz")
    return {
        "model": exported.model.name,
        "versions": dict(exported.versions),
        "tolerance": asdict(exported.tolerance),
        "notes": notes,
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
