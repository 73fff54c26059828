"""The importers of today on the same sources: ``python _import_peers.py FAMILY SOURCE TARGET``.

tf2onnx reads Keras models (``from_keras``; a SavedModel through its command line's loader) and TFLite files
(``from_tflite``), with its defaults at opset 18. Runs in a child of the benchmark.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

OPSET = 18


def keras(source: str, target: str) -> None:
    """What tf2onnx's README says for a Keras model."""
    import tensorflow as tf
    import tf2onnx

    if Path(source).is_dir():
        command = ["--saved-model", source, "--output", target, "--opset", str(OPSET)]
        sys.argv = ["tf2onnx.convert", *command]
        tf2onnx.convert.main()
        return
    model = tf.keras.models.load_model(source, compile=False)
    tf2onnx.convert.from_keras(model, opset=OPSET, output_path=target)


def tflite(source: str, target: str) -> None:
    """What tf2onnx's README says for a TFLite file."""
    import tf2onnx

    tf2onnx.convert.from_tflite(source, opset=OPSET, output_path=target)


if __name__ == "__main__":
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    {"keras": keras, "tflite": tflite}[sys.argv[1]](*sys.argv[2:])
