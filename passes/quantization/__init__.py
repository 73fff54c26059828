"""Quantization: fewer bits per number, with the error measured by the pipeline."""
