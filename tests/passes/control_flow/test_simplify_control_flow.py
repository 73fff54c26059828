"""simplify-control-flow: structure, numbers, refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io
from graphopt.passes.control_flow.simplify_control_flow import SimplifyControlFlow

X = np.array([-1.5, -0.0, 0.5, 3.0], np.float32)
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def _all_ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph.all_nodes() if n.op_type != "Constant"]


@pytest.fixture
def simplify(parse, assert_same):
    """Text -> the simplified model, proven on the feeds, and its result."""

    def run(text: str, *feeds, modified: bool = True, **options):
        before, model = parse(HEAD + text), parse(HEAD + text)
        result = SimplifyControlFlow(**options)(model)
        assert result.modified == modified
        io.check(model)
        assert_same(before, model, *(feeds or [{"x": X}]))
        assert not SimplifyControlFlow(**options)(model).modified
        return model, result

    return run


# If


@pytest.mark.parametrize(("flag", "op"), [(1, "Neg"), (0, "Abs")])
def test_constant_condition(simplify, ops, flag, op):
    model, result = simplify(
        f"""g (float[N] x) => (float[N] y) <bool c = {{{flag}}}> {{
        y = If (c) <then_branch = t () => (float[N] a) {{ a = Neg(x) }},
                    else_branch = e () => (float[N] b) {{ b = Abs(x) }}> }}"""
    )
    assert ops(model) == [op]
    assert result.summary == "inlined branches 1"


def test_interface_stays_and_copies_get_an_identity(simplify, ops):
    model, _ = simplify(
        """g (float[N] x) => (float[N] y, float[N] z, float[2] w) <bool c = {1}> {
        y, z, w = If (c) <
          then_branch = t () => (float[N] a, float[N] a2, float[2] k) <float[2] k = {1, 2}> {
            a = Neg(x) a2 = Identity(a) },
          else_branch = e () => (float[N] b, float[N] b2, float[2] l) <float[2] l = {3, 4}> {
            b = Neg(x) b2 = Neg(b) }> }"""
    )
    assert ops(model) == ["Neg", "Identity", "Identity"]
    assert [v.name for v in model.graph.outputs] == ["y", "z", "w"]
    assert list(model.graph.initializers) == ["c", "k"]


def test_names_of_sibling_branches_do_not_collide(simplify):
    model, _ = simplify(
        """g (float[N] x, bool d) => (float[N] y) <bool c = {1}> {
        p = If (c) <then_branch = t () => (float[N] a) { i = Neg(x) a = Abs(i) },
                    else_branch = e () => (float[N] b) { b = Abs(x) }>
        y = If (d) <then_branch = t2 () => (float[N] a) { i = Exp(p) a = Abs(i) },
                    else_branch = e2 () => (float[N] b) { b = Abs(p) }> }""",
        {"x": X, "d": np.array(True)},
        {"x": X, "d": np.array(False)},
    )
    outer = {o.name for n in model.graph for o in n.outputs}
    inner = {o.name for g in model.graph.subgraphs() for n in g for o in n.outputs}
    assert not outer & inner


def test_condition_known_from_the_outside(simplify):
    feeds = [{"x": X, "c": np.array(flag)} for flag in (True, False)]
    model, _ = simplify(
        """g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <
          then_branch = t () => (float[N] a) {
            a = If (c) <then_branch = tt () => (float[N] p) { p = Neg(x) },
                        else_branch = te () => (float[N] q) { q = Exp(x) }> },
          else_branch = e () => (float[N] b) {
            b = If (c) <then_branch = et () => (float[N] p) { p = Sin(x) },
                        else_branch = ee () => (float[N] q) { q = Abs(x) }> }> }""",
        *feeds,
    )
    assert _all_ops(model) == ["If", "Neg", "Abs"]


def test_equal_branches(simplify, ops):
    feeds = [{"x": X, "c": np.array(flag)} for flag in (True, False)]
    model, _ = simplify(
        """g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[N] a) <float k = {2}> { i = Mul(x, k) a = Abs(i) },
                    else_branch = e () => (float[N] b) <float l = {2}> { j = Mul(x, l) b = Abs(j) }> }""",
        *feeds,
    )
    assert ops(model) == ["Mul", "Abs"]


@pytest.mark.parametrize(
    "other",
    [
        "<float l = {3}> { j = Mul(x, l) b = Abs(j) }",
        "<float l = {2}> { j = Mul(l, x) b = Abs(j) }",
        "<float[1] l = {2}> { j = Mul(x, l) b = Abs(j) }",
        "<float l = {2}> { j = Mul(x, l) b = Neg(j) }",
        "<float l = {2}> { j = Mul(x, l) b = Abs(x) }",
    ],
)
def test_branches_that_differ_stay(simplify, ops, other):
    model, _ = simplify(
        f"""g (float[N] x, bool c) => (float[N] y) {{
        y = If (c) <then_branch = t () => (float[N] a) <float k = {{2}}> {{ i = Mul(x, k) a = Abs(i) }},
                    else_branch = e () => (float[N] b) {other}> }}""",
        {"x": X, "c": np.array(False)},
        modified=False,
    )
    assert ops(model) == ["If"]


def test_unused_outputs_of_an_if(simplify):
    feeds = [{"x": X, "c": np.array(flag)} for flag in (True, False)]
    model, _ = simplify(
        """g (float[N] x, bool c) => (float[N] y) {
        u, y = If (c) <then_branch = t () => (float[N] a, float[N] b) { a = Neg(x) b = Exp(x) },
                       else_branch = e () => (float[N] p, float[N] q) { p = Sin(x) q = Abs(x) }> }""",
        *feeds,
    )
    (node,) = model.graph
    assert [v.name for v in node.outputs] == ["y"]
    assert [v.name for v in node.attributes["else_branch"].as_graph().outputs] == ["q"]


def test_condition_that_a_caller_may_override_stays(simplify, ops):
    model, _ = simplify(
        """g (float[N] x, bool c = {1}) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[N] a) { a = Neg(x) },
                    else_branch = e () => (float[N] b) { b = Abs(x) }> }""",
        {"x": X, "c": np.array(False)},
        modified=False,
    )
    assert ops(model) == ["If"]


def test_branch_in_a_function_gets_constant_nodes(parse, assert_same):
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N] x) => (float[N] y) { y = f.F(x) }
    <domain: "f", opset_import: ["" : 17]>
    F (a) => (b) {
      c = Constant <value = bool {1}> ()
      b = If (c) <then_branch = t () => (float[N] p) <float k = {2}> { p = Mul(a, k) },
                  else_branch = e () => (float[N] q) { q = Abs(a) }> }"""
    before, model = parse(text), parse(text)
    assert SimplifyControlFlow()(model).modified
    (function,) = model.functions.values()
    assert [n.op_type for n in function if n.op_type != "Constant"] == ["Mul"]
    assert_same(before, model, {"x": X})


# Loop


def _loop(trips: str, condition: str, body: str, after: str = "", outputs: str = "y, s") -> str:
    names = [f"float[{'N' if n == 'y' else 'M, N'}] {n}" for n in outputs.split(", ")]
    return f"""g (float[N] x, bool d) => ({", ".join(names)})
    <int64 zero = {{0}}, int64 one = {{1}}, int64 three = {{3}}, bool yes = {{1}}, bool no = {{0}}> {{
    y, s = Loop ({trips}, {condition}, x) <body = b (int64 i, bool c, float[N] v) =>
      (bool c2, float[N] w, float[N] t) {{ {body} }}> {after} }}"""


BODY = "c2 = Identity(c) f = Cast<to = 1>(i) u = Add(v, f) w = Exp(u) t = Neg(v)"
FEED = {"x": X, "d": np.array(True)}


def test_one_iteration(simplify, ops):
    model, result = simplify(_loop("one", "yes", BODY), FEED)
    assert "Loop" not in ops(model)
    assert ops(model).count("Unsqueeze") == 1
    assert result.summary == "unrolled loops 1"


def test_one_iteration_without_a_condition(simplify, ops):
    model, _ = simplify(_loop("one", "", BODY), FEED)
    assert "Loop" not in ops(model)


def test_three_iterations_only_where_asked_for(simplify, ops):
    model, _ = simplify(_loop("three", "yes", BODY), FEED, modified=False)
    assert ops(model) == ["Loop"]
    model, _ = simplify(_loop("three", "yes", BODY), FEED, max_iterations=3)
    assert ops(model).count("Exp") == 3
    assert ops(model).count("Concat") == 1
    names = [o.name for n in model.graph for o in n.outputs]
    assert len(names) == len(set(names))


def test_unrolling_is_bounded(parse, monkeypatch):
    monkeypatch.setattr("graphopt.limits.UNROLL_NODES", 14)
    model = parse(HEAD + _loop("three", "yes", BODY))
    result = SimplifyControlFlow(max_iterations=3)(model)
    assert not result.modified
    assert "limit of 14" in result.refusals[0].reason


def test_body_that_stops_after_one_iteration(simplify, ops):
    body = "c2 = Constant<value = bool {0}>() w = Exp(v) t = Neg(v)"
    model, _ = simplify(_loop("", "yes", body), FEED)
    assert ops(model) == ["Exp", "Neg", "Unsqueeze"]


@pytest.mark.parametrize(("trips", "condition"), [("zero", "yes"), ("zero", "d"), ("three", "no")])
def test_loop_that_never_runs(simplify, ops, trips, condition):
    model, _ = simplify(_loop(trips, condition, BODY, outputs="y"), FEED)
    assert ops(model) == ["Identity"]


def test_stacked_output_of_a_loop_that_never_runs_stays(simplify):
    _, result = simplify(_loop("zero", "yes", BODY), FEED, modified=False)
    assert "not known" in result.refusals[0].reason


@pytest.mark.parametrize(("trips", "condition"), [("one", "d"), ("", "d")])
def test_unknown_condition_stays(simplify, ops, trips, condition):
    body = "c2 = Constant<value = bool {0}>() w = Exp(v) t = Neg(v)"
    model, _ = simplify(_loop(trips, condition, body), FEED, {"x": X, "d": np.array(False)}, modified=False)
    assert ops(model) == ["Loop"]


def test_computed_condition_is_not_unrolled_beyond_one(simplify, ops):
    body = """z = ReduceSum<keepdims = 0>(v) k = Constant<value = float {9}>() c2 = Less(z, k)
        w = Exp(v) t = Neg(v)"""
    model, _ = simplify(_loop("three", "yes", body), FEED, modified=False, max_iterations=16)
    assert ops(model) == ["Loop"]
    model, _ = simplify(_loop("one", "yes", body), FEED)
    assert "Loop" not in ops(model)


def test_iteration_number_of_declared_rank_one(simplify):
    simplify(
        """g (float[N] x) => (float[N] y) <int64[1] one = {1}, bool[1] yes = {1}> {
        y = Loop (one, yes, x) <body = b (int64[1] i, bool[1] c, float[N] v) => (bool[1] c2, float[N] w) {
          c2 = Identity(c) r = Shape(i) f = Cast<to = 1>(r) w = Add(v, f) }> }"""
    )


def test_invariant_is_captured(simplify):
    model, result = simplify(
        """g (float[N] x, int64 m) => (float[N] y, float[N] z, float[K, N] s) <bool yes = {1}> {
        h = Exp(x)
        y, z, s = Loop (m, yes, x, h) <body = b (int64 i, bool c, float[N] v, float[N] k) =>
          (bool c2, float[N] w, float[N] k2, float[N] t) {
            c2 = Identity(c) w = Add(v, k) k1 = Identity(k) k2 = Identity(k1) t = Identity(k) }> }""",
        {"x": X, "m": np.array(3)},
        {"x": X, "m": np.array(0)},
    )
    loop = next(n for n in model.graph if n.op_type == "Loop")
    assert len(loop.inputs) == 3
    assert [v.name for v in model.graph.outputs] == ["y", "z", "s"]
    assert "captured values 1" in result.summary


def test_invariant_that_is_also_stacked(simplify):
    simplify(
        """g (float[N] x, int64 m) => (float[N] y, float[K, N] s) <bool yes = {1}> {
        y, s = Loop (m, yes, x) <body = b (int64 i, bool c, float[N] v) => (bool c2, float[N] v, float[N] v) {
            c2 = Identity(c) }> }""",
        {"x": X, "m": np.array(3)},
        {"x": X, "m": np.array(0)},
    )


def test_unused_outputs_and_what_is_carried_for_them(simplify):
    model, result = simplify(
        """g (float[N] x, int64 m) => (float[N] y) <bool yes = {1}> {
        y, p, q, s = Loop (m, yes, x, x, x) <
          body = b (int64 i, bool c, float[N] v, float[N] pv, float[N] qv) =>
          (bool c2, float[N] w, float[N] pw, float[N] qw, float[N] t) {
            c2 = Identity(c) w = Add(v, qv) pw = Neg(pv) qw = Abs(qv) t = Exp(pv) }> }""",
        {"x": X, "m": np.array(3)},
    )
    (loop,) = model.graph
    assert len(loop.outputs) == 2  # q is carried, since y needs it
    assert [n.op_type for n in loop.attributes["body"].as_graph()] == ["Identity", "Add", "Abs"]
    assert result.summary == "dropped outputs 2"


def test_carried_value_that_only_a_nested_branch_reads_stays(simplify):
    simplify(
        """g (float[N] x, int64 m) => (float[N] y) <bool yes = {1}> {
        y, p = Loop (m, yes, x, x) <body = b (int64 i, bool c, float[N] v, float[N] pv) =>
          (bool c2, float[N] w, float[N] pw) {
            c2 = Identity(c) pw = Neg(pv)
            w = If (c) <then_branch = t () => (float[N] a) { a = Add(v, pv) },
                        else_branch = e () => (float[N] q) { q = Neg(v) }> }> }""",
        {"x": X, "m": np.array(3)},
        modified=False,
    )


def test_swapped_values_are_no_invariants(simplify):
    simplify(
        """g (float[N] x, int64 m) => (float[N] y, float[N] z) <bool yes = {1}> {
        h = Exp(x)
        y, z = Loop (m, yes, x, h) <body = b (int64 i, bool c, float[N] v, float[N] k) =>
          (bool c2, float[N] k, float[N] v) { c2 = Identity(c) }> }""",
        {"x": X, "m": np.array(3)},
        modified=False,
    )


# Scan


def test_scan_outputs_and_states(simplify):
    model, _ = simplify(
        """g (float[T, N] x, float[N] h) => (float[N] y, float[T, N] s, float[N] k) {
        y, k, u, s = Scan <num_scan_inputs = 1, scan_output_axes = [1, 0], scan_output_directions = [0, 1],
          body = b (float[N] v, float[N] kv, float[N] e) =>
          (float[N] w, float[N] kw, float[N] t, float[N] r) {
            w = Add(v, e) kw = Identity(kv) t = Neg(e) r = Mul(e, kv) }> (h, h, x) }""",
        {"x": np.stack([X, X + 1, X - 2]), "h": X},
    )
    node = next(n for n in model.graph if n.op_type == "Scan")
    assert len(node.inputs) == len(node.outputs) == 2
    assert node.attributes["scan_output_directions"].as_ints() == (1,)
    assert node.attributes["scan_output_axes"].as_ints() == (0,)


def test_deep_nesting_in_one_run(simplify, ops):
    model, _ = simplify(
        """g (float[N] x) => (float[N] y) <int64 one = {1}, bool yes = {1}, bool no = {0}> {
        o = Exp(x)
        y = If (no) <then_branch = t () => (float[N] a) { a = Neg(x) },
          else_branch = e () => (float[N] q) {
            q = Loop (one, yes, o) <body = b (int64 i, bool c, float[N] v) => (bool c2, float[N] w) {
              c2 = Identity(c)
              w = If (c) <then_branch = tt () => (float[N] r) { r = Add(v, o) },
                          else_branch = ee () => (float[N] r) { r = Sub(v, x) }> }> }> }"""
    )
    assert ops(model) == ["Exp", "Identity", "Add"]
