from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.errors import DefectError
from graphopt.graph import scopes
from graphopt.registry import Refusal as RefusalOfRegistry
from graphopt.rewrite import Refusal, Rule, apply_rules, is_exclusive, producer

# Toy rules ------------------------------------------------------------------------------------------------


class DoubleNeg(Rule):
    """Neg(Neg(x)) -> Identity(x)."""

    name = "double-neg"
    roots = ("Neg",)

    def match(self, node):
        inner = producer(node.inputs[0], node, "Neg")
        return None if inner is None else (node, inner)

    def check(self, match, context):
        _node, inner = match
        return (
            None
            if is_exclusive(inner.outputs[0])
            else f"the output '{inner.outputs[0].name}' is used elsewhere"
        )

    def rewrite(self, match, context):
        node, inner = match
        context.replace(node.outputs[0], "Identity", [inner.inputs[0]], like=inner)


class AddConstants(Rule):
    """(x + a) + b -> x + (a + b)."""

    name = "add-constants"
    roots = ("Add",)

    def match(self, node):
        inner = producer(node.inputs[0], node, "Add")
        return None if inner is None else (node, inner)

    def check(self, match, context):
        return None if is_exclusive(match[1].outputs[0]) else "used elsewhere"

    def rewrite(self, match, context):
        node, inner = match
        total = inner.inputs[1].const_value.numpy() + node.inputs[1].const_value.numpy()
        constant = context.constant("sum", total, heir_of=inner.inputs[1])
        context.replace(node.outputs[0], "Add", [inner.inputs[0], constant], like=inner)


class Rename(Rule):
    """An operator under another name."""

    def __init__(self, old: str, new: str) -> None:
        self.name = f"{old.lower()}-{new.lower()}"
        self.roots = (old,)
        self.new = new

    def match(self, node):
        return node

    def check(self, match, context):
        return None

    def rewrite(self, match, context):
        context.replace(match.outputs[0], self.new, match.inputs, like=match)


def chain(op: str, count: int) -> ir.Model:
    """x -> op -> op -> ... -> y; Add gets an initializer of 1."""
    body = "\n".join(f"v{i + 1} = {op} (v{i}{', one' if op == 'Add' else ''})" for i in range(count))
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N] v0) => (float[N] v{count})
        <float[1] one = {{1}}> {{ {body} }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


# The fixed point --------------------------------------------------------------------------------------------


def test_chain_collapses_to_a_fixed_point(ops, assert_same):
    before, after = chain("Add", 50), chain("Add", 50)
    report = apply_rules(after, [AddConstants()])
    assert ops(after) == ["Add"]
    assert report.applied == {"add-constants": 49}
    assert_same(before, after, {"v0": np.arange(3, dtype=np.float32)})
    assert not apply_rules(after, [AddConstants()]).applied


def test_pairs_collapse_and_interface_keeps_its_names(ops, assert_same):
    before, after = chain("Neg", 7), chain("Neg", 7)
    apply_rules(after, [DoubleNeg()])
    assert ops(after).count("Neg") == 1
    assert [v.name for v in after.graph.outputs] == ["v7"]
    assert_same(before, after, {"v0": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize("op", ["Add", "Neg"])
def test_visits_grow_linearly(op):
    visits = {n: apply_rules(chain(op, n), [AddConstants(), DoubleNeg()]).visits for n in (500, 1000, 2000)}
    assert visits[1000] <= 2.1 * visits[500]
    assert visits[2000] <= 2.1 * visits[1000]
    assert visits[2000] <= 4 * 2000


def test_unrelated_nodes_are_not_visited():
    assert apply_rules(chain("Neg", 30), [AddConstants()]).visits == 0


def test_rules_that_undo_each_other_are_a_defect():
    with pytest.raises(DefectError, match=r"rule '(abs-neg|neg-abs)' finds no end at (Abs|Neg)"):
        apply_rules(chain("Neg", 3), [Rename("Neg", "Abs"), Rename("Abs", "Neg")])


def test_first_rule_of_a_root_wins(ops):
    model = chain("Neg", 1)
    report = apply_rules(model, [Rename("Neg", "Abs"), Rename("Neg", "Exp")])
    assert ops(model) == ["Abs"]
    assert report.applied == {"neg-abs": 1}


# Refusals ---------------------------------------------------------------------------------------------------


def test_refusal_is_recorded_once_for_a_rule_and_node(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y, float[N] z) {
        a = Neg (x)
        [outer] y = Neg (a)
        b = Exp (a)
        c = Abs (b)
        z = Abs (c)
    }""")
    report = apply_rules(model, [Rename("Exp", "Sin"), DoubleNeg(), Rename("Abs", "Cos")])
    assert report.refusals == [Refusal("double-neg", "Neg 'outer'", "the output 'a' is used elsewhere")]
    assert str(report.refusals[0]) == "double-neg at Neg 'outer': the output 'a' is used elsewhere"


def test_refusal_is_dropped_when_a_later_rewrite_frees_the_match(parse, ops):
    # a is used by the outer Neg and by a Neg whose result becomes unused once Sub is rewritten
    class DropRight(Rename):
        def rewrite(self, match, context):
            context.replace(match.outputs[0], "Abs", [match.inputs[0]], like=match)

    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y, float[N] z) {
        a = Neg (x)
        y = Neg (a)
        b = Exp (a)
        z = Sub (x, b)
    }""")
    report = apply_rules(model, [DoubleNeg(), DropRight("Sub", "Abs")])
    assert ops(model) == ["Identity", "Abs"]
    assert report.refusals == []


def test_refusal_is_one_class_for_rules_and_passes():
    assert RefusalOfRegistry is Refusal


def test_functions_that_redefine_standard_operators_stop_all_rules(ops):
    model = ir.from_proto(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y) { a = Neg (x) y = Neg (a) }
        <domain: "ai.onnx", opset_import: ["" : 17]> Neg (x) => (y) { y = Abs (x) }""")
    )
    report = apply_rules(model, [DoubleNeg()])
    assert ops(model) == ["Neg", "Neg"]
    assert "redefines standard operators" in report.refusals[0].reason


# What a rewrite leaves behind -------------------------------------------------------------------------------


def test_new_node_inherits_name_metadata_and_place(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {
        [first] a = Neg (x)
        [second] b = Neg (a)
        [last] y = Exp (b)
    }""")
    first = model.graph.node("first")
    first.metadata_props["origin"] = "layer 1"
    first.doc_string = "negates"
    apply_rules(model, [DoubleNeg()])
    new = model.graph.node(0)
    assert (new.op_type, new.name, new.doc_string) == ("Identity", "first", "negates")
    assert new.metadata_props == {"origin": "layer 1"}
    assert new.outputs[0].name == "b"
    assert [n.op_type for n in model.graph] == ["Identity", "Exp"]


def test_only_what_became_unused_is_removed(parse, ops):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)
        <float[2] a = {1, 2}, float[2] b = {3, 4}, float[2] spare = {5, 6}> {
        dead = Exp (spare)
        s = Add (x, a)
        y = Add (s, b)
    }""")
    apply_rules(model, [AddConstants()])
    assert ops(model) == ["Exp", "Add"]
    # a's heir took its name, b is gone, what was unused before is somebody else's
    assert sorted(model.graph.initializers) == ["a", "spare"]
    np.testing.assert_array_equal(model.graph.initializers["a"].const_value.numpy(), [4, 6])


def test_heir_of_a_constant_that_stays_has_a_fresh_name(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y, float[2] z)
        <float[2] a = {1, 2}, float[2] b = {3, 4}> {
        s = Add (x, a)
        y = Add (s, b)
        z = Mul (x, a)
    }""")
    apply_rules(model, [AddConstants()])
    assert sorted(model.graph.initializers) == ["a", "sum"]
    np.testing.assert_array_equal(model.graph.initializers["a"].const_value.numpy(), [1, 2])


def test_initializer_that_is_a_graph_input_or_output_stays(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, float[2] b)
        => (float[2] y, float[2] a)
        <float[2] a = {1, 2}, float[2] b = {3, 4}> {
        s = Add (x, a)
        y = Add (s, b)
    }""", check=False)  # fmt: skip
    apply_rules(model, [AddConstants()])
    assert sorted(model.graph.initializers) == ["a", "b", "sum"]
    assert [v.name for v in model.graph.inputs] == ["x", "b"]


def test_tensors_are_never_changed(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)
        <float[2] a = {1, 2}, float[2] b = {3, 4}> { s = Add (x, a) y = Add (s, b) }""")
    undo = model.clone()
    apply_rules(model, [AddConstants()])
    assert sorted(undo.graph.initializers) == ["a", "b"]
    np.testing.assert_array_equal(undo.graph.initializers["a"].const_value.numpy(), [1, 2])
    assert [v.const_value.name for v in undo.graph.initializers.values()] == ["a", "b"]
    onnx.checker.check_model(ir.to_proto(undo))


def test_replacing_one_of_several_used_outputs_is_a_defect(parse):
    class Bad(Rename):
        def rewrite(self, match, context):
            context.replace(match.outputs[0], "Neg", [match.inputs[0]], like=match)

    model = parse("""<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (float[2] y, float[2] z) {
        a, b = Split <num_outputs = 2> (x)
        y = Neg (a)
        z = Neg (b)
    }""")
    with pytest.raises(DefectError, match="'a' cannot be replaced alone"):
        apply_rules(model, [Bad("Split", "Neg")])


# Scopes -----------------------------------------------------------------------------------------------------

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y)
    <float[2] a = {1, 2}, float[2] b = {3, 4}> {
    outer = Add (x, a)
    y = If (c) <
        then_branch = t () => (float[2] u) { s = Add (x, a) u = Add (s, b) },
        else_branch = e () => (float[2] v) { v = Add (outer, b) }
    >
}"""


def test_subgraphs_are_rewritten_but_nothing_moves_into_them(parse, assert_same):
    before, after = parse(BRANCHES), parse(BRANCHES)
    report = apply_rules(after, [AddConstants()])
    assert report.applied == {"add-constants": 1}
    counts = {scope.graph.name: len(list(scope.graph)) for scope in scopes(after)}
    assert counts == {"g": 2, "t": 1, "e": 1}
    feeds = [{"x": np.ones(2, np.float32), "c": np.array(c)} for c in (True, False)]
    assert_same(before, after, *feeds)


FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2] x) => (float[2] y)
    { y = own.F (x) }
    <domain: "own", opset_import: ["" : 17]> F (u) => (w) {
        a = Constant <value = float[2] {1, 2}> ()
        b = Constant <value = float[2] {3, 4}> ()
        s = Add (u, a)
        w = Add (s, b)
    }"""


class AddConstantNodes(AddConstants):
    """As AddConstants, for Constant nodes."""

    def rewrite(self, match, context):
        node, inner = match
        arrays = [n.inputs[1].producer().attributes["value"].as_tensor().numpy() for n in match]
        constant = context.constant("sum", sum(arrays), heir_of=inner.inputs[1])
        context.replace(node.outputs[0], "Add", [inner.inputs[0], constant], like=inner)


def test_functions_get_constant_nodes_since_they_have_no_initializers(parse, assert_same):
    before, after = parse(FUNCTION), parse(FUNCTION)
    apply_rules(after, [AddConstantNodes()])
    function = next(iter(after.functions.values()))
    assert [n.op_type for n in function] == ["Constant", "Add"]
    assert function[0].outputs[0].name == "a"
    assert_same(before, after, {"x": np.ones(2, np.float32)})


def test_nodes_with_attributes_of_the_caller_are_left_alone(parse):
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.F <alpha = 0.5> (x) }
        <domain: "own", opset_import: ["" : 17]> F <alpha> (u) => (w) { w = Elu <alpha : float = @alpha> (u) }
    """)  # fmt: skip
    assert apply_rules(model, [Rename("Elu", "Neg")]).visits == 0


def test_opset_of_a_function_is_its_own(parse):
    seen = []

    class Look(Rename):
        def check(self, match, context):
            seen.append(context.opset)
            return "only looking"

    older = FUNCTION.replace('opset_import: ["" : 17]> F', 'opset_import: ["" : 13]> F')
    apply_rules(parse(older, check=False), [Look("Add", "")])
    assert seen == [13, 13]


def test_inference_follows_the_rewrites(parse):
    ranks = []

    class Look(Rename):
        def check(self, match, context):
            ranks.append((match.inputs[0].name, context.rank(match.inputs[0])))
            return None if match.op_type == "Exp" else "only looking"

    model = parse("""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y)
        { a = Exp (x) y = Neg (a) }""")
    apply_rules(model, [Look("Exp", "Sin"), Look("Neg", "")])
    assert ranks == [("x", 2), ("a", 2)]


class AnyAbs(Rule):
    """Every Abs is rewritten; how is up to the subclass."""

    name = "any-abs"
    roots = ("Abs",)

    def match(self, node):
        return node

    def check(self, match, context):
        return None


class SplitAbs(AnyAbs):
    """Abs(x) -> Max(x, Neg(x)), both nodes named like the one that goes."""

    name = "split-abs"

    def rewrite(self, match, context):
        output, data = match.outputs[0], match.inputs[0]
        known = context.infer(output)
        negative = context.add("Neg", [data], before=match, like=output, known=known, name=match.name)
        context.replace(output, "Max", [data, negative], like=match)


def test_no_two_nodes_that_a_rewrite_adds_have_one_name(parse, ops, run):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { [abs] y = Abs(x) }"""
    )
    assert apply_rules(model, [SplitAbs()]).applied["split-abs"] == 1
    assert ops(model) == ["Neg", "Max"]
    assert [node.name for node in model.graph] == ["abs", None]
    (y,) = run(model, {"x": np.array([-1, 2], np.float32)})  # onnxruntime refuses twins
    np.testing.assert_array_equal(y, [1, 2])


class LikeProducer(AnyAbs):
    """Abs(Relu(x)) -> Identity(Relu(x)), named like the Relu, which stays."""

    name = "like-producer"

    def rewrite(self, match, context):
        relu = match.inputs[0].producer()
        context.replace(match.outputs[0], "Identity", [match.inputs[0]], like=relu)


def test_names_taken_from_a_node_that_stays_are_given_up(parse, run):
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] z) { [relu] a = Relu(x) [one] y = Abs(a) [two] z = Abs(a) }"""
    )
    assert apply_rules(model, [LikeProducer()]).applied["like-producer"] == 2
    assert [node.name for node in model.graph] == ["relu", None, None]
    for output in run(model, {"x": np.array([-1, 2], np.float32)}):
        np.testing.assert_array_equal(output, [0, 2])
