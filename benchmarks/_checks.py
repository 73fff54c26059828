"""Checks of a model against its original that share no code with graphopt.

onnxruntime runs both, its optimizer off, since it miscompiles some graphs with it on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

#: Metadata key of a model whose random weights were taken out; see :func:`refill`.
WEIGHTLESS = "weightless"
RTOL, ATOL = 1e-4, 1e-5
#: What onnxruntime raises for a model or inputs that it does not take.
ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

#: One input of a model: its name, dtype, base shape and the range [lo, hi) to draw from.
Recipe = Mapping[str, Any]
Axis = tuple[str, int]


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        yield from _subgraphs(node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            if inner.node or inner.output:
                yield from graphs(inner)


def node_count(model: onnx.ModelProto) -> int:
    """Nodes but Constants, those of subgraphs and of function bodies included."""
    nodes = [n for g in graphs(model.graph) for n in g.node]
    for function in model.functions:
        nodes += function.node
        nodes += [n for outer in function.node for g in _subgraphs(outer) for n in g.node]
    return sum(node.op_type != "Constant" for node in nodes)


def files_of(path: Path) -> list[Path]:
    """A model file and the external data files that its initializers name."""
    model = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for g in graphs(model.graph)
        for t in g.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
        for entry in t.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / name for name in sorted(names))]


def file_bytes(path: Path) -> int:
    """Bytes of a model on disk, external data included."""
    return sum(f.stat().st_size for f in files_of(path))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    attribute.t.name = attribute.t.name or f"{node.output[0]}__value"
                    yield attribute.t


def refill(model: onnx.ModelProto) -> bool:
    """Draw the weights of a stripped model again, in place; False if the model is not stripped.

    Metadata entry ``weightless`` maps a tensor's name to [mean, standard deviation, whether all of it was
    non-negative]. Each tensor is drawn from that normal distribution, seeded by the CRC-32 of its name, so
    that the weights are the same on every machine.
    """
    entry = next((p for p in model.metadata_props if p.key == WEIGHTLESS), None)
    if entry is None:
        return False
    statistics = json.loads(entry.value)
    model.metadata_props.remove(entry)
    for tensor in _tensors(model):
        if tensor.name in statistics:
            _draw_weights(tensor, *statistics[tensor.name])
    return True


def _draw_weights(tensor: onnx.TensorProto, mean: float, std: float, positive: bool) -> None:
    rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    array = mean + std * rng.standard_normal(tuple(tensor.dims), dtype=np.float32)
    dtype = np.float16 if tensor.data_type == onnx.TensorProto.FLOAT16 else np.float32
    values = np.ascontiguousarray(np.abs(array) if positive else array, dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _dims(value: onnx.ValueInfoProto) -> list[int | str] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]


def interface(model: onnx.ModelProto) -> list[tuple[str, str, int, list[int | str] | None]]:
    """Inputs and outputs in order: kind, name, element type, dims (a name or "" where dynamic)."""
    kinds = (("input", model.graph.input), ("output", model.graph.output))
    return [(k, v.name, v.type.tensor_type.elem_type, _dims(v)) for k, values in kinds for v in values]


def dynamic_axes(model: onnx.ModelProto, recipe: Sequence[Recipe]) -> list[set[Axis]]:
    """Groups of dynamic input axes that must have one size.

    Axes with the same name belong together. So do axes at the same place of different inputs with the same
    base size: exporters give the batch of two inputs two names.
    """
    base = {r["name"]: r["shape"] for r in recipe}
    groups: list[tuple[set[object], set[Axis]]] = []
    for value in model.graph.input:
        for place, dim in enumerate((_dims(value) if value.name in base else None) or []):
            if isinstance(dim, int) and dim > 0:
                continue
            labels: set[object] = {("place", place, base[value.name][place])}
            labels |= {("name", dim)} if isinstance(dim, str) and dim else set()
            members = {(value.name, place)}
            for old in [g for g in groups if g[0] & labels]:
                groups.remove(old)
                labels, members = labels | old[0], members | old[1]
            groups.append((labels, members))
    return [members for _, members in groups]


def other_sizes(base: int) -> list[int]:
    """Sizes to try for an axis that has size ``base`` in the recipe."""
    return [3, 2] if base == 1 else [max(base * 2 // 3, 1), max(base // 2, 1), base * 2]


def draw(recipe: Sequence[Recipe], sizes: Mapping[Axis, int], seed: int) -> dict[str, np.ndarray]:
    """One set of inputs, uniform in their ranges, with some axes resized."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for entry in recipe:
        shape = _resized(entry, sizes)
        is_float = np.issubdtype(np.dtype(entry["dtype"]), np.floating)
        sample = rng.uniform if is_float else rng.integers
        feeds[entry["name"]] = np.asarray(sample(entry["lo"], entry["hi"], shape)).astype(entry["dtype"])
    return feeds


def _resized(entry: Recipe, sizes: Mapping[Axis, int]) -> list[int]:
    return [sizes.get((entry["name"], i), n) for i, n in enumerate(entry["shape"])]


def recipe_of(feeds: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A recipe that draws arrays like these, for models that come without one."""
    found = []
    for name, array in feeds.items():
        low, high = (array.min(), array.max()) if array.size else (0, 1)
        is_float = np.issubdtype(array.dtype, np.floating)
        bounds = {"lo": float(low), "hi": float(high)} if is_float else {"lo": int(low), "hi": int(high) + 1}
        found.append({"name": name, "dtype": str(array.dtype), "shape": list(array.shape), **bounds})
    return found


class Run(NamedTuple):
    """One set of inputs and what the model made of it."""

    label: str
    feeds: dict[str, np.ndarray]
    outputs: list[np.ndarray]


class Runner:
    """A model in onnxruntime with its optimizer off. Raises one of ORT_ERRORS if it does not load."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
        """The outputs, or None where the model does not take these sizes."""
        try:
            outputs: list[np.ndarray] = self._session.run(None, dict(feeds))
        except ORT_ERRORS:
            return None
        return outputs

    def reference(
        self, label: str, recipe: Sequence[Recipe], sizes: Mapping[Axis, int], seed: int
    ) -> Run | None:
        """Draw inputs and run them; None where the model does not take these sizes."""
        feeds = draw(recipe, sizes, seed)
        outputs = self(feeds)
        return None if outputs is None else Run(label, feeds, outputs)


def settle(model: Runner, recipe: Sequence[Recipe], groups: Sequence[set[Axis]]) -> Sequence[Recipe] | None:
    """The recipe if the model runs on it, or with other sizes that it runs on; None if there are none.

    Some exports declare an axis dynamic and run at one size only: every group is tried at 1 to 64.
    """
    if model(draw(recipe, {}, 0)) is not None:
        return recipe
    for group in groups:
        for size in range(1, 65):
            sizes = dict.fromkeys(group, size)
            if model(draw(recipe, sizes, 0)) is not None:
                return [{**r, "shape": _resized(r, sizes)} for r in recipe]
    return None


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference.

    Attributes:
        margin: Largest |a-b| in units of its tolerance, 1e-5 * max(1, rms(reference)) + 1e-4 * |reference|;
            at most 1 is equal, infinity is another dtype, shape or pattern of non-finite values.
        relative: Largest |a-b| over the largest |reference|.
    """

    margin: float
    relative: float


def difference(reference: np.ndarray, result: np.ndarray) -> Difference:
    """Compare one output; integers, booleans and text must be the same."""
    different = Difference(float("inf"), float("inf"))
    if reference.dtype != result.dtype or reference.shape != result.shape:
        return different
    if not np.issubdtype(reference.dtype, np.floating):
        return Difference(0.0, 0.0) if np.array_equal(reference, result) else different
    a, b = reference.astype(np.float64), result.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return different
    a, b = a[finite], b[finite]
    if not a.size:
        return Difference(0.0, 0.0)
    gap = np.abs(a - b)
    tolerance = ATOL * max(1.0, float(np.sqrt(np.mean(a * a)))) + RTOL * np.abs(a)
    scale = float(np.abs(a).max()) or 1.0
    return Difference(float((gap / tolerance).max()), float(gap.max()) / scale)
