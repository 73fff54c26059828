"""What verification is for: deliberately wrong passes, each of which must be caught and undone alone.

Every model is run as `graphopt optimize` runs it: the passes are exact, verified as one chain, on samples
drawn from the graph alone, with no sizes repeated that need not be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.pipeline import Pipeline
from graphopt.recipe import Recipe, Step, Verify
from graphopt.registry import Pass, PassResult

_HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

#: Convolutions over images, at a static or a free batch.
CNN = (
    _HEAD
    + """
cnn (float[{batch}, 3, 80, 80] x) => (float[{batch}, 5] y)
<int64[2] flat = {{0, -1}}, int64[1] start = {{3}}, int64[1] end = {{9}}, int64[1] axis = {{1}}> {{
  a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
  b = LeakyRelu <alpha = 0.1> (a)
  c = Conv <pads = [1, 1, 1, 1]> (b, w1, b1)
  d = Sub(b, c)
  e = Slice(d, start, end, axis)
  f = AveragePool <kernel_shape = [20, 20], strides = [20, 20]> (e)
  g = Reshape(f, flat)
  h = Gemm(g, w2, b2)
  y = Softmax <axis = 1> (h)
}}"""
)
CNN_WEIGHTS = {"w0": (12, 3, 3, 3), "b0": (12,), "w1": (12, 12, 3, 3), "b1": (12,), "w2": (24, 5), "b2": (5,)}

#: Attention over tokens, batch and length free, positions sliced to the length, padding masked.
TEXT = (
    _HEAD
    + """
text (int64[batch, seq] ids, bool[batch, seq] attention_mask) => (float[batch, seq, 16] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64 axis = {1}, float low = {-10000},
 int64[3] same = {0, 0, 16}> {
  e = Gather(table, ids)
  s = Shape(ids)
  n = Slice(s, one, two)
  p = Slice(positions, zero, n, zero)
  h = Add(e, p)
  q = MatMul(h, wq)
  k = MatMul(h, wk)
  t = Transpose <perm = [0, 2, 1]> (k)
  raw = MatMul(q, t)
  m = Unsqueeze(attention_mask, one)
  scores = Where(m, raw, low)
  prob = Softmax <axis = -1> (scores)
  v = MatMul(h, wv)
  z = MatMul(prob, v)
  r = Reshape(z, same)
  y = Sub(r, h)
}"""
)
TEXT_WEIGHTS = {"table": (30, 16), "positions": (64, 16), "wq": (16, 16), "wk": (16, 16), "wv": (16, 16)}

#: Features in, a branch taken by what they are.
BRANCH = (
    _HEAD
    + """
branch (float[1, 12] x) => (float[1, 4] y) <float zero = {0}> {
  a = Gemm(x, w0, b0)
  b = Relu(a)
  c = ReduceSum <keepdims = 0> (x)
  up = Greater(c, zero)
  y = If (up) <
    then_branch = t () => (float[1, 4] p) { p = MatMul(b, w1) },
    else_branch = e () => (float[1, 4] q) { n = Neg(b) q = MatMul(n, w1) }
  >
}"""
)
BRANCH_WEIGHTS = {"w0": (12, 32), "b0": (32,), "w1": (32, 4)}


def build(text: str, weights: dict[str, tuple[int, ...]]) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        array = random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


MODELS: dict[str, Callable[[], ir.Model]] = {
    "images": lambda: build(CNN.format(batch=1), CNN_WEIGHTS),
    "batches": lambda: build(CNN.format(batch="batch"), CNN_WEIGHTS),
    "text": lambda: build(TEXT, TEXT_WEIGHTS),
    "branch": lambda: build(BRANCH, BRANCH_WEIGHTS),
}


def node_of(model: ir.Model, output: str) -> ir.Node:
    nodes = [*model.graph, *(n for g in model.graph.subgraphs() for n in g)]
    return next(node for node in nodes if node.outputs[0].name == output)


def swap(output: str) -> Callable[[ir.Model], None]:
    """Exchange the first two inputs of a node."""

    def wrong(model: ir.Model) -> None:
        node = node_of(model, output)
        first, second = node.inputs[:2]
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)

    return wrong


def drop_input(output: str, index: int) -> Callable[[ir.Model], None]:
    return lambda model: node_of(model, output).resize_inputs(index)


def attribute(output: str, **values: object) -> Callable[[ir.Model], None]:
    def wrong(model: ir.Model) -> None:
        for name, value in values.items():
            node_of(model, output).attributes[name] = ir.convenience.convert_attribute(name, value)

    return wrong


def constant(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ir.Model], None]:
    """Give an initializer other values."""

    def wrong(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        array = change(np.array(value.const_value.numpy()))
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)

    return wrong


def instead(output: str, index: int, array: np.ndarray) -> Callable[[ir.Model], None]:
    """Give one node a constant for one of its inputs."""

    def wrong(model: ir.Model) -> None:
        value = ir.Value(name="wrong", const_value=ir.tensor(array, name="wrong"))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        model.graph.register_initializer(value)
        node_of(model, output).replace_input_with(index, value)

    return wrong


def operator(output: str, op_type: str) -> Callable[[ir.Model], None]:
    def wrong(model: ir.Model) -> None:
        node = node_of(model, output)
        node.op_type = op_type
        node.attributes.clear()

    return wrong


def scaled(*index: int | slice, by: float = 1.001) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] *= np.float32(by)
        return array

    return change


WRONG: dict[str, dict[str, Callable[[ir.Model], None]]] = {
    "images": {
        "swapped operands": swap("d"),
        "dropped bias": drop_input("c", 2),
        "dropped bias of a Gemm": drop_input("h", 2),
        "one wrong channel": constant("w1", scaled(5)),
        "one wrong input channel": constant("w1", scaled(slice(None), 5, by=1.01)),
        "one wrong tap": constant("w0", scaled(7, 1, 2, 0, by=1.01)),
        "one wrong bias": constant("b0", scaled(3, by=1.01)),
        "wrong for negative numbers": operator("b", "Relu"),
        "nearly right for negative numbers": attribute("b", alpha=0.105),
        "wrong at the border": attribute("c", pads=[0, 1, 2, 1]),
        "a slice off by one": constant("start", lambda a: a - 1),
        "a slice shifted by one": lambda model: (
            constant("start", lambda a: a + 1)(model),
            constant("end", lambda a: a + 1)(model),
        ),
        "wrong order of rows": constant("w2", lambda a: a.reshape(6, 2, 2, 5).swapaxes(1, 2).reshape(24, 5)),
    },
    "batches": {
        "batch pinned": constant("flat", lambda a: np.int64([1, -1])),
        "batch and features taken for each other": constant(
            "flat", lambda a: np.int64([-1, 24])[::-1].copy()
        ),
        "wrong axis": attribute("y", axis=0),
        "one wrong channel": constant("w1", scaled(5)),
        "wrong for negative numbers": operator("b", "Relu"),
    },
    "text": {
        "swapped operands": swap("y"),
        "wrong axis": attribute("prob", axis=-2),
        "batch pinned": constant("same", lambda a: np.int64([1, -1, 16])),
        "sequence pinned": constant("same", lambda a: np.int64([-1, 8, 16])),
        "positions of one length": instead("p", 2, np.int64([8])),
        "positions off by one": instead("p", 1, np.int64([1])),
        "mask dropped": instead("scores", 0, np.array([True])),
        "mask applied to the rows": instead("m", 1, np.int64([2])),
        "heads' operands swapped": swap("raw"),
        "one wrong column": constant("wv", scaled(slice(None), 3)),
    },
    "branch": {
        "wrong in one branch": operator("n", "Abs"),
        "the other branch": operator("up", "Less"),
        "dropped bias": drop_input("a", 2),
        "one wrong unit": constant("w0", scaled(slice(None), 9, by=1.01)),
        "wrong for negative numbers": operator("b", "Abs"),
    },
}
CASES = [(model, name) for model, wrong in WRONG.items() for name in wrong]


@dataclasses.dataclass(eq=False)
class Act(Pass):
    """Change a model as a test says, and claim that it is the same function."""

    name: ClassVar[str] = "act"
    action: Callable[[ir.Model], object] = lambda model: None

    def call(self, model: ir.Model) -> PassResult:
        self.action(model)
        return PassResult(model, True)


def content(model: ir.Model) -> tuple[list[str], dict[str, bytes]]:
    """Nodes and initializers as they can be compared; the names of nodes do not matter."""
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        node.name = ""
    return [str(node) for node in proto.graph.node], {t.name: t.raw_data for t in proto.graph.initializer}


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{m}: {n}" for m, n in CASES])
def test_a_wrong_pass_is_caught_and_undone_alone(kind, name):
    model = MODELS[kind]()
    passes = Act(), Act(WRONG[kind][name]), Act()
    recipe = Recipe(tuple(Step("act", p) for p in passes), verify=Verify(samples=3, each=False))
    pipeline = Pipeline(recipe, model)
    report = pipeline.run()
    assert [entry.status for entry in report.passes] == ["applied", "undone", "applied"], name
    assert report.overall.agrees
    assert content(pipeline.model) == content(model)


@pytest.mark.parametrize("kind", MODELS)
def test_a_right_pass_is_kept(kind):
    recipe = Recipe((Step("act", Act()),) * 2, verify=Verify(samples=3, each=False))
    report = Pipeline(recipe, MODELS[kind]()).run()
    assert [entry.status for entry in report.passes] == ["applied", "applied"]
    assert report.passes[-1].verdict.samples == {"images": 2, "batches": 2, "text": 3, "branch": 3}[kind]
