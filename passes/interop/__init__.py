"""Passes that fit a model to other tools: opset conversion and foreign optimizers."""
