"""Run models and judge results: draw sample inputs, evaluate a model on them, compare two results."""
