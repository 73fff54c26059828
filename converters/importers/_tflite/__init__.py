"""The TFLite reader: flatbuffer to ONNX, one file for each family of operators."""
