"""Random graphs of many operators, from a seed: the third variant of the node suite.

A graph grows operator by operator from a pool of values whose symbolic shapes are known. Constants come in
many forms (initializers, Constant nodes, computed ones), nodes are sometimes repeated, some inputs and
results stay unused, one axis ``N`` of the inputs is open. Operators that jump (Floor, comparisons, casts to
integers, QuantizeLinear) take only values that no rewrite may round differently, so that every difference in
a result is a defect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper  # noqa: TID251 (protos, nothing of graphopt)

__all__ = ["OPSETS", "SIZES", "Dim", "Grower", "RandomGraph", "Tensor", "random_graph"]

OPSETS = (11, 13, 15, 17, 18, 20, 21, 23, 24)
#: Sizes of the open axis that a graph is run at.
SIZES = (2, 1, 3)

#: A size: a factor and the power (0 or 1) of the open axis N.
Dim = tuple[int, int]
Shape = tuple[Dim, ...]
N: Dim = (1, 1)

_TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}
_DTYPES = {"f": np.float32, "i": np.int64, "b": np.bool_}


class Tensor(NamedTuple):
    """A value of the graph.

    Attributes:
        name: Its name.
        shape: Symbolic.
        kind: f(loat32), i(nt64) or b(ool).
        exact: Whether only copies, sign changes and comparisons lie between the inputs and it.
    """

    name: str
    shape: Shape
    kind: str = "f"
    exact: bool = False


class RandomGraph(NamedTuple):
    """A model and what makes inputs for it at a size of the open axis."""

    model: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    seed: tuple[int, ...]

    def feeds(self, size: int) -> dict[str, np.ndarray]:
        """Inputs with N = ``size``."""
        rng = np.random.default_rng((*self.seed, size))
        return {t.name: _draw(rng, t, size) for t in self.inputs}


def _draw(rng: np.random.Generator, tensor: Tensor, size: int) -> np.ndarray:
    shape = [k * size**p for k, p in tensor.shape]
    if tensor.kind == "f":
        return rng.standard_normal(shape).astype(np.float32)
    return rng.integers(0, 4 if tensor.kind == "i" else 2, shape).astype(_DTYPES[tensor.kind])


def static(*sizes: int) -> Shape:
    """A shape without the open axis."""
    return tuple((s, 0) for s in sizes)


@dataclass
class Grower:
    """A graph that grows. The operators are in :mod:`_random_ops`."""

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    pool: list[Tensor] = field(default_factory=list)
    constants: list[tuple[np.ndarray, str]] = field(default_factory=list)
    overridable: list[Tensor] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: int = 0

    # Chance.

    def flip(self, chance: float = 0.5) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < chance)

    def choose(self, options: Sequence[Any]) -> Any:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def number(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def pick(
        self, kind: str = "f", *, rank: int | None = None, exact: bool = False, least: int = 0
    ) -> Tensor | None:
        """A value of the pool, young ones more often."""
        fits = [
            t
            for t in self.pool
            if t.kind == kind
            and (rank is None or len(t.shape) == rank)
            and (t.exact or not exact)
            and len(t.shape) >= least
        ]
        if not fits:
            return None
        if self.flip(0.6):
            return fits[-1 - min(int(self.rng.exponential(1.0)), len(fits) - 1)]
        return self.choose(fits)

    # Building.

    def name(self, stem: str) -> str:
        """A fresh name."""
        self.count += 1
        return f"{stem}_{self.count}"

    def op(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of its output, or a list of names."""
        names = [self.name(op_type.lower()) for _ in range(outputs)]
        domain = attributes.pop("domain", "")
        node = helper.make_node(op_type, list(inputs), names, domain=domain, **attributes)
        node.name = self.name("n") if self.flip(0.8) else ""
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def add(
        self, op_type: str, sources: Sequence[Tensor | str], shape: Shape, *, exact: bool = False, **more: Any
    ) -> Tensor:
        """Add a node with one result, and that to the pool."""
        kind = more.pop("kind", "f")
        names = [s.name if isinstance(s, Tensor) else s for s in sources]
        made = Tensor(self.op(op_type, names, **more), shape, kind, exact)
        self.pool.append(made)
        return made

    def const(self, data: Any, dtype: Any = np.float32) -> str:
        """A constant in some form; its name."""
        array = np.asarray(data, dtype)
        for old, name in self.constants:
            same = old.dtype == array.dtype and old.shape == array.shape and np.array_equal(old, array)
            if same and self.flip(0.3):
                return name
        name = self._new_constant(array)
        self.constants.append((array, name))
        return name

    def fixed(self, data: Any) -> str:
        """Integers that no caller overrides and no node computes: axes and steps of a Slice.

        onnxruntime (1.31.1) takes axes that it does not know for the first ones, and steps for 1, infers a
        wrong shape, and refuses the model once starts and ends are constants.
        """
        array = np.asarray(data, np.int64)
        if self.flip(0.3):
            return self._constant_node(array)
        self.initializers.append(numpy_helper.from_array(array, self.name("w")))
        return self.initializers[-1].name

    def _new_constant(self, array: np.ndarray) -> str:
        form = self.rng.random()
        if form < 0.5:
            return self._initializer(array)
        if form < 0.75:
            return self._constant_node(array)
        if form < 0.8:
            return self.op("Identity", [self._initializer(array)])
        if form < 0.85 and array.size and (array == array.reshape(-1)[0]).all():
            value = helper.make_tensor("v", _onnx_type(array), [1], array.reshape(-1)[:1])
            return self.op(
                "ConstantOfShape", [self._initializer(np.array(array.shape, np.int64))], value=value
            )
        if form < 0.9 and array.dtype in (np.float32, np.int64):
            half = (array / 2).astype(array.dtype)
            return self.op("Add", [self._initializer(half), self._constant_node(array - half)])
        if form < 0.95 and array.dtype == np.int64 and (abs(array) < 2**31).all():
            return self.op("Cast", [self._initializer(array.astype(np.int32))], to=TensorProto.INT64)
        return self.op(
            "Reshape", [self._initializer(array.reshape(-1)), self._initializer(np.array(array.shape, "i8"))]
        )

    def _initializer(self, array: np.ndarray) -> str:
        name = self.name("w")
        self.initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        )
        kind = {np.dtype("f4"): "f", np.dtype("i8"): "i", np.dtype("?"): "b"}.get(array.dtype)
        if kind and self.flip(0.03):
            self.overridable.append(Tensor(name, static(*array.shape), kind))
        return name

    def _constant_node(self, array: np.ndarray) -> str:
        if array.dtype == np.int64 and array.ndim <= 1 and array.size and self.flip() and self.opset >= 12:
            key = "value_ints" if array.ndim else "value_int"
            return self.op("Constant", [], **{key: array.tolist()})
        if array.dtype == np.float32 and array.ndim == 0 and self.flip() and self.opset >= 12:
            return self.op("Constant", [], value_float=float(array))
        return self.op("Constant", [], value=numpy_helper.from_array(array, "value"))

    def weights(self, *shape: int, scale: float | None = None) -> str:
        """Random weights that keep magnitudes about as they are."""
        fan_in = math.prod(shape[1:]) or 1
        return self.const(self.rng.standard_normal(shape) * (scale or fan_in**-0.5))

    def repeat(self) -> None:
        """Add a node that is there already once more, for common subexpressions.

        Its operands are swapped at times, which gives the same only where the operator is commutative, and
        defaults of its attributes are written out or left out.
        """
        known = {t.name: t for t in self.pool}
        twins = [n for n in self.nodes if len(n.output) == 1 and n.output[0] in known]
        swappable = [n for n in twins if n.op_type in _SWAPPABLE and len(n.input) == 2]
        if not twins:
            return
        node = onnx.NodeProto()
        node.CopyFrom(self.choose(swappable if swappable and self.flip() else twins))
        if node.op_type in _SWAPPABLE and len(node.input) == 2 and self.flip():
            node.input[0], node.input[1] = node.input[1], node.input[0]
        self._write_default(node)
        old = known[node.output[0]]
        node.output[0] = self.name("again")
        node.name = ""
        self.nodes.append(node)
        self.pool.append(old._replace(name=node.output[0]))
        if self.flip(0.3) and old.kind == "f":
            self.add("Sub", [old, self.pool[-1]], old.shape)

    def _write_default(self, node: onnx.NodeProto) -> None:
        """Write a default that is left out, or leave out one that is written."""
        default = _DEFAULTS.get(node.op_type)
        if default is None or self.flip():
            return
        written = helper.make_attribute(*default)
        if not any(a.name == written.name for a in node.attribute):
            node.attribute.append(written)
        elif written in node.attribute:
            node.attribute.remove(written)


#: Elementwise operators whose operands may be swapped; of Sub another result comes, which must not be merged.
_SWAPPABLE = ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "And", "Or", "Equal")
#: One attribute of an operator with its default, the same in all opsets of the graphs.
_DEFAULTS: dict[str, tuple[str, Any]] = {
    "LeakyRelu": ("alpha", 0.01),
    "Elu": ("alpha", 1.0),
    "HardSigmoid": ("beta", 0.5),
    "Flatten": ("axis", 1),
    "Gemm": ("alpha", 1.0),
    "Gather": ("axis", 0),
    "BatchNormalization": ("momentum", 0.9),
    "AveragePool": ("auto_pad", "NOTSET"),
    "MaxPool": ("auto_pad", "NOTSET"),
    "Conv": ("group", 1),
    "ReduceMean": ("keepdims", 1),
    "Pad": ("mode", "constant"),
}


def _onnx_type(array: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    dims = [k if p == 0 else ("N" if k == 1 else None) for k, p in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.kind], dims)


_STARTS: tuple[tuple[Shape, ...], ...] = (
    ((N, (8, 0)),),
    ((N, (4, 0), (6, 0), (6, 0)),),
    ((N, (5, 0), (8, 0)), (N, (5, 0), (8, 0))),
    ((N, (6, 0)), (N, (6, 0))),
    (((2, 0), (3, 0), (4, 0)), (N, (4, 0))),
    ((N, (4, 0), (8, 0)), ((8, 0),)),
    ((N, (2, 0), (4, 0), (4, 0)), (N, (3, 0), (4, 0), (4, 0))),
    ((N, (4, 0), (9, 0)), (N, (3, 0))),
    ((N, (3, 0), (8, 0)), (N, (3, 0), (8, 0))),
)


def random_graph(seed: Sequence[int], operators: Mapping[Callable[[Grower], None], float]) -> RandomGraph:
    """The graph of a seed, grown from ``operators`` with their weights. It may turn out not to run."""
    rng = np.random.default_rng(tuple(seed))
    grower = Grower(rng, int(rng.choice(OPSETS)))
    for shape in grower.choose(_STARTS):
        grower.inputs.append(Tensor(grower.name("x"), shape, "f", True))
    if grower.flip(0.3):
        grower.inputs.append(Tensor(grower.name("ids"), (N, (3, 0)), "i", True))
    grower.pool += grower.inputs
    if grower.flip(0.2):
        grower.inputs.append(Tensor(grower.name("unused"), (N, (2, 0)), "f", True))
    chances = np.array(list(operators.values()))
    steps = list(operators)
    for index in rng.choice(len(steps), size=grower.number(4, 22), p=chances / chances.sum()):
        steps[int(index)](grower)
        if grower.flip(0.06):
            grower.repeat()
    return RandomGraph(_model(grower), tuple(grower.inputs), tuple(seed))


def _outputs(grower: Grower) -> list[Tensor]:
    made = grower.pool[sum(t in grower.pool for t in grower.inputs) :]
    used = {name for node in grower.nodes for name in node.input}
    ends = [t for t in made if t.name not in used and grower.flip(0.85)]
    inner = [t for t in made if t.name in used and grower.flip(0.06)]
    return list(dict.fromkeys([*ends, *inner])) or made[-1:]


def _model(grower: Grower) -> onnx.ModelProto:
    outputs = _outputs(grower)
    informed = [t for t in grower.pool if t not in outputs and t not in grower.inputs and grower.flip(0.3)]
    graph = helper.make_graph(
        grower.nodes,
        "random",
        [_value_info(t) for t in (*grower.inputs, *grower.overridable)],
        [_value_info(t) for t in outputs],
        grower.initializers,
        value_info=[_value_info(t) for t in informed],
    )
    opsets = [helper.make_opsetid("", grower.opset)]
    if grower.functions:
        opsets.append(helper.make_opsetid("local", 1))
    ir_version = 8 if grower.opset < 19 else 10
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=grower.functions)
