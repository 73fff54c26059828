"""Run onnxruntime's offline optimizer on one file, as a process of its own.

``python -m graphopt.passes.interop._ort_optimize_child model.onnx optimized.onnx '{"level": "basic"}'``
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

#: Level 3 puts convolutions into layouts (NCHWc, NHWC) that fit the vector width of the machine it runs on.
#: The last ones make an operator of the default domain that ONNX does not have.
_NEVER = [
    "NchwcTransformer",
    "NhwcTransformer",
    *(f"SimplifiedLayerNormFusion{level}" for level in ("", "L1", "L2")),
]
#: Where ONNX has no LayerNormalization yet, onnxruntime writes its own into the default domain all the same.
_BEFORE_17 = [f"LayerNormFusion{level}" for level in ("", "L1", "L2")]
_LEVELS = {
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all-without-layout": "ORT_ENABLE_ALL",
}
_INLINE_BELOW = 1024


def main(source: str, target: str, arguments: str) -> int:
    """Optimize ``source`` into ``target`` and its data file; arguments as JSON."""
    given = json.loads(arguments)
    level, left_out = given["level"], [*_NEVER, *(_BEFORE_17 if given["opset"] < 17 else [])]
    try:
        _optimize(source, target, level, left_out)
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
        newest = re.search(r"max supported IR version: (\d+)", str(error))
        if newest is None:
            return _failed(error)
        _lower_ir_version(source, int(newest[1]))
        try:
            _optimize(source, target, level, left_out)
        except Exception as again:  # noqa: BLE001
            return _failed(again)
    return 0


def _optimize(source: str, target: str, level: str, left_out: list[str]) -> None:
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    options.optimized_model_filepath = target
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for key, value in {
        "session.optimized_model_external_initializers_file_name": f"{Path(target).name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_INLINE_BELOW),
        "session.qdq_matmulnbits_accuracy_level": "1",  # activations of int8 weights stay in float
        "session.disable_prepacking": "1",
    }.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(source, options, ["CPUExecutionProvider"], disabled_optimizers=left_out)


def _lower_ir_version(source: str, version: int) -> None:
    """A newer IR version than onnxruntime reads changes no number."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    model.ir_version = version
    Path(source).write_bytes(model.SerializeToString())


def _failed(error: Exception) -> int:
    print(" ".join(str(error).split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
