"""Run onnxsim on one file, as a process of its own: ``python -m graphopt.passes.interop._onnxsim_child``.

onnxsim is native code that folds constants by running them. In a process of its own a crash or a hang is
an error message, and its memory goes back when it is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(source: str, target: str, arguments: str) -> int:
    """Simplify ``source`` into ``target``, arguments as JSON; 3 where onnxsim finds its result invalid."""
    import onnxsim

    model, valid = onnxsim.simplify(source, **json.loads(arguments))
    Path(target).write_bytes(model.SerializeToString())
    return 0 if valid else 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
