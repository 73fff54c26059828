"""Every exact pass on models with subgraphs and functions, one by one and without verification."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

import graphopt
from graphopt import io, registry

RECIPE = Path(graphopt.__file__).parent / "recipes" / "optimize.yaml"


def _passes() -> list:
    """The passes of the built-in recipe, then all other exact passes, then the recipe again."""
    steps = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["passes"]
    pairs = [(s, {}) if isinstance(s, str) else _named(dict(s)) for s in steps]
    names = {name for name, _ in pairs}
    others = [
        (name, {}) for name, cls in registry.pass_classes().items() if name not in names and _is_own(cls)
    ]
    return [registry.resolve(name)(**options) for name, options in (*pairs, *others, *pairs)]


def _is_own(cls: type) -> bool:
    """Whether a pass is ours, exact, and works on the graph itself."""
    own = cls.__module__.startswith("graphopt.passes.") and ".interop." not in cls.__module__
    return own and registry.is_exact(cls)


def _named(step: dict) -> tuple[str, dict]:
    """The name and options of a step that is written as a mapping."""
    name = step.pop("pass", None) or step.pop("name", None)
    if name is None:
        ((name, options),) = step.items()
        return name, dict(options or {})
    return name, {k: v for k, v in step.items() if k not in ("gate", "gates", "verify")}


X = np.array([-1.5, -0.0, 0.5, 3.0], np.float32)
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
BOTH = [{"x": X, "c": np.array(flag)} for flag in (True, False)]

MODELS = {
    "if in loop in if, captures from every depth": (
        HEAD
        + """g (float[N] x, bool c, int64 m) => (float[N] y, float[K, N] s)
        <float[1] k = {2}, bool yes = {1}> {
        a = Mul(x, k)
        only_inside = Exp(a)
        y, s = If (c) <
          then_branch = t () => (float[N] ty, float[K, N] ts) <float[1] k1 = {2}> {
            b = Mul(x, k1)
            ty, ts = Loop (m, yes, a) <body = l (int64 i, bool lc, float[N] v) =>
              (bool lc2, float[N] w, float[N] u) <float[1] k2 = {2}, float[1] half = {0.5}> {
                lc2 = Identity(lc)
                d = Mul(x, k2)
                e = Mul(d, half)
                even = Constant<value = int64 {2}>()
                rest = Mod(i, even)
                zero = Constant<value = int64 {0}>()
                is_even = Equal(rest, zero)
                u = If (is_even) <
                  then_branch = tt () => (float[N] p) {
                    p1 = Mul(x, k) p2 = Add(p1, only_inside) p = Sub(p2, e) },
                  else_branch = te () => (float[N] q) { q = Add(v, b) }>
                w0 = Add(v, u)
                w = Identity(w0)
            }> },
          else_branch = e () => (float[N] ey, float[K, N] es) {
            ey = Identity(a)
            ax = Constant<value = int64[1] {0}>()
            es = Unsqueeze(x, ax) }>
        }""",
        [{"x": X, "c": np.array(c), "m": np.array(m)} for c in (True, False) for m in (0, 1, 3)],
    ),
    "scan with captures": (
        HEAD
        + """g (float[T, N] x, float[N] h) => (float[N] y, float[T, N] s)
        <float[1] k = {3}, float[1] one = {1}> {
        outer = Mul(h, k)
        y, s = Scan <num_scan_inputs = 1, body = b (float[N] v, float[N] e) =>
          (float[N] w, float[N] r) <float[1] k1 = {3}> {
            same = Mul(h, k1)
            n = Mul(same, one)
            w0 = Add(v, e) w = Add(w0, outer)
            id = Identity(w) r = Mul(id, n) }> (h, x)
        }""",
        [{"x": np.stack([X] * t) + np.arange(t, dtype=np.float32)[:, None], "h": X} for t in (1, 3)],
    ),
    "functions that call functions": (
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N] x, bool c) => (float[N] y) {
          a = f.Outer<slope = 0.25>(x)
          y = If (c) <then_branch = t () => (float[N] p) { p = f.Outer(a) },
                      else_branch = e () => (float[N] q) { q0 = f.Inner(a) q = Identity(q0) }>
        }
        <domain: "f", opset_import: ["" : 17, "f" : 1]> Outer <slope: float = 0.5> (a) => (b) {
          t = LeakyRelu<alpha: float = @slope>(a) u = LeakyRelu<alpha: float = @slope>(a)
          s = Add(t, u) b = f.Inner(s) }
        <domain: "f", opset_import: ["" : 17]> Inner (a) => (b) {
          one = Constant<value = float {1}>() t = Mul(a, one) two = Add(one, one)
          m = Constant<value = int64 {2}>()
          b = Loop (m, , t) <body = l (int64 i, bool c, float[N] v) => (bool c2, float[N] w) {
            c2 = Identity(c) d = Identity(v) w = Mul(d, two) }> }""",
        BOTH,
    ),
    "outputs that are copies of outer values, parameters and initializers": (
        HEAD
        + """g (float[N] x, bool c, int64 m) => (float[N] y, float[N] z, float[4] w, float[N] v)
        <bool yes = {1}> {
        a = Exp(x)
        y0, w = If (c) <
          then_branch = t () => (float[N] p, float[4] k) <float[4] k = {1, 2, 3, 4}> { p = Identity(a) },
          else_branch = e () => (float[N] q, float[4] r) { q = Identity(x)
            r = Constant<value = float[4] {4, 3, 2, 1}>() }>
        y = Identity(y0)
        z, v = Loop (m, yes, x, a) <body = l (int64 i, bool lc, float[N] lv, float[N] lk) =>
          (bool lc, float[N] lw, float[N] lk) { lw = Add(lv, lk) }>
        }""",
        [{"x": X, "c": np.array(c), "m": np.array(m)} for c in (True, False) for m in (0, 2)],
    ),
    "names that hide outer names": (
        HEAD
        + """g (float[N] x, bool c, int64 m) => (float[N] y) <float[1] k = {2}, bool yes = {1}> {
        v = Mul(x, k)
        a = Exp(v)
        b = Loop (m, yes, a) <body = l (int64 m, bool c, float[N] v) =>
          (bool c2, float[N] w) <float[1] k = {3}> {
          c2 = Identity(c) h = Mul(x, k) e = Add(v, h) w = Neg(e) }>
        y0 = If (c) <
          then_branch = t () => (float[N] p) { late = Abs(b) p = Add(late, x) },
          else_branch = e () => (float[N] p) <float[1] k = {5}> { q = Mul(x, k) p = Add(q, v) }>
        late = Exp(y0)
        y = Add(x, late)
        }""",
        [{"x": X, "c": np.array(c), "m": np.array(m)} for c in (True, False) for m in (0, 2)],
    ),
    "loops in loops that carry each other's values": (
        HEAD
        + """g (float[N] x, int64 m) => (float[N] y) <bool yes = {1}, int64 two = {2}> {
        unused = Sin(x)
        y, keep = Loop (m, yes, x, unused) <body = l (int64 i, bool c, float[N] v, float[N] kept) =>
          (bool c2, float[N] w, float[N] kept2) {
            c2 = Identity(c)
            kept2 = Identity(kept)
            w, swap = Loop (two, yes, v, kept) <body = ll (int64 j, bool d, float[N] a, float[N] b) =>
              (bool d2, float[N] b2, float[N] a2) {
                d2 = Identity(d) s = Add(a, x) t = Add(a, x) st = Sub(s, t)
                a2 = Add(b, st) b2 = Add(s, kept) }>
        }> }""",
        [{"x": X, "m": np.array(m)} for m in (0, 1, 2, 3)],
    ),
    "shapes that change from iteration to iteration": (
        HEAD
        + """g (float[N] x, int64 m) => (float[M] y, int64[1] z) <bool yes = {1}> {
        y = Loop (m, yes, x) <body = l (int64 i, bool c, float[P] v) => (bool c2, float[Q] w) {
            c2 = Identity(c) sh = Shape(v) r = Reshape(v, sh) w = Concat<axis = 0>(r, x) }>
        z = Shape(y)
        }""",
        [{"x": X, "m": np.array(m)} for m in (0, 1, 3)],
    ),
    "constant conditions and trip counts": (
        HEAD
        + """g (float[N] x) => (float[N] y, float[1, N] s)
        <bool yes = {1}, int64 one = {1}, int64 zero = {0}> {
        no = Not(yes)
        a = If (no) <then_branch = t () => (float[N] p) { p = Neg(x) },
                     else_branch = e () => (float[N] q) <float[1] k = {2}> { q = Mul(x, k) }>
        y, s = Loop (one, yes, a) <body = l (int64 i, bool c, float[N] v) =>
          (bool c2, float[N] w, float[N] u) {
            c2 = Identity(c) u = Exp(v)
            w = Loop (zero, c, v) <body = ll (int64 j, bool d, float[N] b) => (bool d2, float[N] b2) {
                d2 = Identity(d) b2 = Neg(b) }> }>
        }""",
        [{"x": X}],
    ),
}


def _check_all(text: str, feeds, run) -> ir.Model:
    """Apply every pass to its predecessor's result; each must be valid and give the original's numbers."""
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto)
    wanted = [run(proto, feed) for feed in feeds]
    model = io.from_proto(proto)
    for step in _passes():
        before = ir.to_proto(model)
        if not step(model).modified:
            assert ir.to_proto(model) == before, step
            continue
        io.check(model)
        for feed, want in zip(feeds, wanted, strict=True):
            for a, b in zip(want, run(model, feed), strict=True):
                assert a.dtype == b.dtype, step
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=repr(step))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_all_passes(name, run):
    text, feeds = MODELS[name]
    _check_all(text, feeds, run)


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_alone(name, run):
    text, feeds = MODELS[name]
    proto = onnx.parser.parse_model(text)
    wanted = run(proto, feeds[-1])
    for step in _passes():
        model = io.from_proto(proto)
        if not step(model).modified:
            continue
        io.check(model)
        for a, b in zip(wanted, run(model, feeds[-1]), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=repr(step))


def test_hidden_names_get_names_of_their_own():
    model = io.from_proto(onnx.parser.parse_model(MODELS["names that hide outer names"][0]))
    outer = {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    outer |= {o.name for n in model.graph for o in n.outputs}
    for graph in model.graph.subgraphs():
        own = {v.name for v in graph.inputs} | set(graph.initializers)
        own |= {o.name for n in graph for o in n.outputs}
        assert not own & outer


def test_names_that_hide_nothing_stay():
    proto = onnx.parser.parse_model(MODELS["if in loop in if, captures from every depth"][0])
    assert ir.to_proto(io.from_proto(proto)) == ir.to_proto(ir.from_proto(proto))


def test_control_flow_is_gone_where_its_outcome_is_known(run):
    text, feeds = MODELS["constant conditions and trip counts"]
    model = _check_all(text, feeds, run)
    assert not {"If", "Loop"} & {n.op_type for n in model.graph.all_nodes()}


# Random nested graphs.


class _Writer:
    """Writes a random model: every graph draws its operands from all values that it sees."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.count = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def body(self, seen: list[str], depth: int) -> tuple[str, list[str]]:
        """Some nodes, and the names of their outputs."""
        lines, made = [], []
        for _ in range(self.number(1, 4)):
            line, name = self.node([*seen, *made], depth)
            lines.append(line)
            made.append(name)
        return "\n".join(lines), made

    def node(self, seen: list[str], depth: int) -> tuple[str, str]:
        a, b = (self.draw(st.sampled_from(seen)) for _ in range(2))
        out = self.name("v")
        kinds = ["Add", "Sub", "Mul", "Identity", "Neg", "Dup", "Const", *(["If", "Loop"] if depth else [])]
        kind = self.draw(st.sampled_from(kinds))
        if kind in ("Add", "Sub", "Mul"):
            return f"{out} = {kind}({a}, {b})", out
        if kind == "Dup":
            other = self.name("v")
            return f"{other} = Add({a}, {b}) {out} = Add({b}, {a})", out
        if kind == "Const":
            k = self.name("k")
            number = self.draw(st.sampled_from([0, 1, 2]))
            return f"{k} = Constant<value = float[1] {{{number}}}>() {out} = Mul({a}, {k})", out
        if kind == "If":
            return self.branches(out, seen, depth), out
        if kind == "Loop":
            return self.loop(out, a, b, seen, depth), out
        return f"{out} = {kind}({a})", out

    def graph_of(self, seen: list[str], depth: int, outputs: int) -> tuple[str, list[str]]:
        """Nodes that end in ``outputs`` copies, since outputs must be made by the graph itself."""
        lines, made = self.body(seen, depth)
        results = []
        for _ in range(outputs):
            out = self.name("o")
            lines += f"\n{out} = Identity({self.draw(st.sampled_from([*seen, *made]))})"
            results.append(out)
        return lines, results

    def branches(self, out: str, seen: list[str], depth: int) -> str:
        condition = self.draw(st.sampled_from(["c", "yes", "no"]))
        parts = []
        for branch in ("then_branch", "else_branch"):
            lines, (result,) = self.graph_of(seen, depth - 1, 1)
            k = self.name("k")
            parts.append(
                f"{branch} = {self.name('g')} () => (float[N] {result}) <float[1] {k} = {{2}}> {{ {lines} }}"
            )
        return f"{out} = If ({condition}) <{', '.join(parts)}>"

    def loop(self, out: str, a: str, b: str, seen: list[str], depth: int) -> str:
        v, w, i, c, c2, g, other = (self.name(p) for p in ("p", "p", "i", "c", "c", "g", "v"))
        lines, (first, second) = self.graph_of([*seen, v, w], depth - 1, 2)
        if self.draw(st.booleans()):
            second = w  # carried unchanged
        trips = self.draw(st.sampled_from(["m", "zero", "one"]))
        return f"""{out}, {other} = Loop ({trips}, {self.draw(st.sampled_from(["yes", "c"]))}, {a}, {b}) <
          body = {g} (int64 {i}, bool {c}, float[N] {v}, float[N] {w}) =>
          (bool {c2}, float[N] {first}, float[N] {second}) {{ {c2} = Identity({c}) {lines} }}>"""


@st.composite
def _models(draw) -> str:
    writer = _Writer(draw)
    lines, made = writer.body(["x", "k"], 3)
    outputs = [f"{writer.name('y')}" for _ in range(2)]
    for name in outputs:
        lines += f"\n{name} = Add({draw(st.sampled_from(made))}, x)"
    return (
        HEAD
        + f"""g (float[N] x, bool c, int64 m) => ({", ".join(f"float[N] {n}" for n in outputs)})
        <float[1] k = {{2}}, bool yes = {{1}}, bool no = {{0}}, int64 one = {{1}}, int64 zero = {{0}}>
        {{ {lines} }}"""
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_models())
def test_random_nested_graphs(run, text):
    small = np.array([-0.5, 0.25, 0.75, 0.0], np.float32)
    feeds = [{"x": small, "c": np.array(c), "m": np.array(m)} for c, m in ((True, 2), (False, 1), (True, 0))]
    _check_all(text, feeds, run)
