"""eliminate-dead-code: what goes, what the numbers say, and what must stay."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.eliminate_dead_code import EliminateDeadCode

X = np.array([[-1.0, 0.0, 2.0]], np.float32)


def apply(model: ir.Model):
    """Run the pass; it must be finished after one run."""
    result = EliminateDeadCode()(model)
    assert result.model is model
    assert not EliminateDeadCode()(model).modified
    return result


def test_chain_of_dead_nodes_and_their_initializers_go(parse, ops, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[N,3] x) => (float[N,3] y) <float[3] used = {1, 2, 3}, float[3] w = {4, 5, 6}> {
        a = Add(x, w)
        y = Mul(x, used)
        b = Neg(a)
        c, d = Split(b)
    }"""
    model = parse(text)
    result = apply(model)
    assert ops(model) == ["Mul"]
    assert list(model.graph.initializers) == ["used"]
    assert dict(model.opset_imports) == {"": 17}
    assert result.modified
    assert result.summary == "removed 3 nodes, 1 initializer, 1 opset import"
    assert_same(parse(text), model, {"x": np.vstack([X, X])})


def test_nothing_dead_is_reported_as_unmodified(parse, ops):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Relu(x) }"""
    )
    result = apply(model)
    assert not result.modified
    assert ops(model) == ["Relu"]


def test_inputs_outputs_and_defaults_of_inputs_stay(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[3] x, float[3] unused, float[3] with_default) => (float[3] y, float[1] constant)
    <float[3] with_default = {1, 2, 3}, float[1] constant = {7}> { y = Relu(x) }""")
    assert not apply(model).modified
    assert [v.name for v in model.graph.inputs] == ["x", "unused", "with_default"]
    assert set(model.graph.initializers) == {"with_default", "constant"}


CAPTURE = """<ir_version: 8, opset_import: ["" : 17]> g (float[3] x, bool c) => (float[3] y)
<float[3] outer = {1, 2, 3}, float[3] only_dead = {4, 5, 6}> {
    captured = Neg(x)
    y = If (c) <
        then_branch = t () => (float[3] p) <float[3] w = {1, 2, 3}, float[3] unused = {0, 0, 0}> {
            dead = Mul(x, only_dead)
            q = Add(captured, w)
            p = Mul(q, outer)
        },
        else_branch = e () => (float[3] r) { r = Identity(x) }
    >
}"""


def test_subgraphs_are_swept_and_what_they_capture_stays(parse, assert_same):
    model = parse(CAPTURE)
    result = apply(model)
    branch = model.graph.node(1).attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["Add", "Mul"]
    assert list(branch.initializers) == ["w"]
    assert list(model.graph.initializers) == ["outer"]
    assert result.summary == "removed 1 node, 2 initializers"
    for condition in (True, False):
        assert_same(parse(CAPTURE), model, {"x": X[0], "c": np.array(condition)})


def test_dead_node_with_subgraphs_frees_what_it_captured(parse, ops):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[3] x, bool c) => (float[3] y)
    <float[3] w = {1, 2, 3}> {
        captured = Neg(x)
        dead = If (c) <
            then_branch = t () => (float[3] p) { p = Add(captured, w) },
            else_branch = e () => (float[3] r) { r = Identity(x) }
        >
        y = Relu(x)
    }""")
    assert apply(model).summary == "removed 4 nodes, 1 initializer"
    assert ops(model) == ["Relu"]
    assert [use.node.op_type for use in model.graph.inputs[0].uses()] == ["Relu"]


FUNCTIONS = """<ir_version: 9, opset_import: ["" : 17, "local" : 1, "inner" : 1, "other" : 1]>
g (float[3] x) => (float[3] y) { y = local.outer(x) }
<domain: "local", opset_import: ["" : 17, "inner" : 1, "other" : 1]> outer (a) => (b) {
    unused = Neg(a)
    b = inner.twice(a)
}
<domain: "inner", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }
<domain: "other", opset_import: ["" : 17, "other" : 1]> lonely (a) => (b) { b = other.sibling(a) }
<domain: "other", opset_import: ["" : 17]> sibling (a) => (b) { b = Neg(a) }
"""


def test_uncalled_functions_go_and_called_ones_are_swept(parse, assert_same):
    model = parse(FUNCTIONS, check=False)
    result = apply(model)
    assert {name for _, name, _ in model.functions} == {"outer", "twice"}
    assert [n.op_type for n in model.functions["local", "outer", ""]] == ["twice"]
    assert dict(model.opset_imports) == {"": 17, "local": 1, "inner": 1}
    assert set(model.functions["local", "outer", ""].opset_imports) == {"", "inner"}
    assert result.summary == "removed 1 node, 2 functions, 2 opset imports"
    assert_same(parse(FUNCTIONS, check=False), model, {"x": X[0]})


def test_default_domain_stays_imported_where_only_others_are_used(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[3] x) => (float[3] y) { y = com.microsoft.Gelu(x) }""",
        check=False,
    )
    assert not apply(model).modified
    assert dict(model.opset_imports) == {"": 17, "com.microsoft": 1}


@pytest.mark.parametrize(
    ("node", "kept"),
    [
        ("y, i = MaxPool <kernel_shape = [2]> (x)", 1),
        ("y, m = Dropout (x)", 1),
        ("y, m, v = LayerNormalization (x, s)", 1),
        ("m, y, v = LayerNormalization (x, s)", 2),
    ],
)
def test_trailing_by_products_nobody_reads_go(parse, node, kept):
    output = "float[?,?,?] y"
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,2,4] x) => ({output})
        <float[4] s = {{1, 1, 1, 1}}> {{ {node} }}"""
    )
    result = apply(model)
    assert result.modified == (len(model.graph.node(0).outputs) != node.count(",") + 1)
    assert len(model.graph.node(0).outputs) == kept


def test_last_states_of_lstm_go_only_from_the_end(parse, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,1,2] x) => (float[1,1,1] h)
    <float[1,4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[1,4,1] r = {1, 2, 3, 4}> {
        all, h, c = LSTM <hidden_size = 1> (x, w, r)
    }"""
    model = parse(text)
    assert apply(model).summary == "removed 1 output"
    assert [v.name for v in model.graph.node(0).outputs] == ["all", "h"]
    assert_same(parse(text), model, {"x": np.ones((2, 1, 2), np.float32)})


@pytest.mark.parametrize(
    "node",
    [
        "y, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s)",  # the mode would change
        "y, other = Split <axis = 1> (x)",  # the sizes would change
        "y, i = TopK <axis = 1> (x, k)",  # not optional
        "y, i = MaxPool <kernel_shape = [1]> (x)  used = Neg(i)",
    ],
)
def test_outputs_that_matter_stay(parse, node):
    outputs = "float[?,?,?] y" + (", int64[?,?,?] used" if "used" in node else "")
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,2,4] x) => ({outputs})
        <float[2] s = {{1, 1}}, int64[1] k = {{1}}> {{ {node} }}"""
    )
    before = len(model.graph.node(0).outputs)
    apply(model)
    assert len(model.graph.node(0).outputs) == before


def test_batch_normalization_outputs_before_opset_14_choose_its_mode(parse):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 9]> g (float[1,2,4] x) => (float[1,2,4] y)
        <float[2] s = {1, 1}> { y, a, b, c, d = BatchNormalization (x, s, s, s, s) }"""
    )
    assert not apply(model).modified
    assert len(model.graph.node(0).outputs) == 5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exactly_the_nodes_that_outputs_depend_on_remain(data):
    count = data.draw(st.integers(1, 12))
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3]))
    values, parents, nodes = [value], [], []
    for _ in range(count):
        picked = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
        nodes.append(ir.node("Sum", [values[i] for i in picked]))
        parents.append(picked)
        values.append(nodes[-1].outputs[0])
    returned = data.draw(st.lists(st.integers(1, count), min_size=1, unique=True))
    graph = ir.Graph([value], [values[i] for i in returned], nodes=nodes, opset_imports={"": 17})
    needed, todo = set(), list(returned)
    while todo:
        index = todo.pop()
        if index and index not in needed:
            needed.add(index)
            todo += parents[index - 1]
    result = EliminateDeadCode()(ir.Model(graph, ir_version=8))
    assert list(graph) == [node for i, node in enumerate(nodes, 1) if i in needed]
    assert result.modified == (len(needed) < count)


def test_time_is_linear():
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3]))
    nodes, last = [], value
    for _ in range(20_000):
        nodes.append(ir.node("Neg", [last]))
        last = nodes[-1].outputs[0]
    model = ir.Model(
        ir.Graph([value], [nodes[0].outputs[0]], nodes=nodes, opset_imports={"": 17}), ir_version=8
    )
    start = time.process_time()
    assert EliminateDeadCode()(model).summary == "removed 19999 nodes"
    assert time.process_time() - start < 5
