"""What LiteRT and an import make of small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tflite_models import Graph, write

from graphopt import io
from graphopt.conversion import Exported
from graphopt.converters.importers._tflite.export import export
from graphopt.import_options import ImportOptions
from graphopt.runtime import evaluate


class Imported:
    """A small model, imported."""

    def __init__(self, exported: Exported, source: Path) -> None:
        self.exported, self.source = exported, source
        self.model: ir.Model = io.load(exported.model)

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.model.graph if node.op_type != "Identity"]

    def feed(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        return {str(v.name): a for v, a in zip(self.model.graph.inputs, arrays, strict=True)}

    def both(self, *arrays: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """What LiteRT and the ONNX model make of the arrays, output by output."""
        feed = self.feed(*arrays)
        want = self.exported.run(feed)
        got = evaluate.run(self.model, [feed]).outputs[0]
        return [(want[name], got[name]) for name in got]


@pytest.fixture
def imported(tmp_path: Path):
    """Import a flatbuffer, or subgraphs of which the first is the model."""

    def run(*graphs: Graph | bytes, **options: Any) -> Imported:
        content = graphs[0] if isinstance(graphs[0], bytes) else write(*graphs)  # type: ignore[arg-type]
        source = tmp_path / "model.tflite"
        source.write_bytes(content)
        return Imported(export(str(source), ImportOptions(**options), tmp_path), source)

    return run


@pytest.fixture
def agrees(imported):
    """Check a single-operator model: LiteRT and its import compute the same from the same arrays."""

    def check(
        graph: Graph,
        expected: list[str] | None = None,
        *,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        steps: int = 1,
    ) -> Imported:
        made = imported(graph)
        arrays = [graph.tensors[i].array for i in graph.given()]
        for want, got in made.both(*arrays):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            if want.dtype.kind == "f":
                np.testing.assert_allclose(got, want, rtol, atol)
            elif made.exported.tolerance.steps:
                assert np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0) <= steps
            else:
                np.testing.assert_array_equal(got, want)
        if expected is not None:
            assert made.ops == expected
        return made

    return check


@pytest.fixture
def draw():
    """Standard normal float32, always the same for a shape."""

    def draw_array(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)

    return draw_array
