"""What a run left alone: only what still holds, each once, by rule and reason."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import graphopt
from graphopt import explain
from graphopt.pipeline import Pipeline
from graphopt.recipe import Recipe, Step
from graphopt.registry import Pass, PassResult, Refusal

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n] x) => (float[n] y) <float[1] w = {2}>
{ a = Relu(x)
  [middle] b = Mul(a, w)
  y = Add(b, a) }"""


def standing(parse, *runs):
    return [(s.pass_name, s.refusal.where) for s in explain.standing(runs, parse(MODEL))]


def refusals(*places: str, reason: str = "no", rule: str = "rule"):
    return [Refusal(rule, place, reason) for place in places]


def test_only_places_that_the_model_has(parse):
    places = ["Relu (output 'a')", "Mul 'middle'", "weight 'w'", "'b'", "the model", "function f"]
    gone = ["Relu (output 'gone')", "Mul 'a'", "Sub 'middle'", "weight 'v'", "'gone'"]
    assert standing(parse, ("p", "", refusals(*places, *gone))) == [("p", place) for place in places]


def test_only_the_last_run_of_a_pass_and_every_refusal_once(parse):
    first, last = refusals("Mul 'middle'", "the model"), refusals("the model", "the model")
    assert standing(parse, ("p", "", first), ("q", "", []), ("p", "", last)) == [("p", "the model")]
    assert standing(parse, ("p", "", first), ("p", "", [])) == []


def test_a_pass_with_other_options_is_another_run(parse):
    one, two = refusals("Mul 'middle'"), refusals("the model")
    assert standing(parse, ("p", "a", one), ("p", "b", two)) == [("p", "Mul 'middle'"), ("p", "the model")]


def test_what_differs_in_names_and_large_numbers_only_is_one_group():
    found = [
        explain.Standing("p", Refusal("rule", f"Add '{i}'", reason))
        for i, reason in enumerate(
            (
                "the rank of 'v' is 3",
                "the output 'a' of Mul 'm' (12,345 bytes) is used by Add (output 'x')",
                "the output 'b' of Mul 'n' (45678 bytes) is used by Add (output 'y')",
                "'c' is unknown",
                "'d' is unknown",
            )
        )
    ]
    assert [(group.reason, len(group.places)) for group in explain.grouped(found)] == [
        ("the output of Mul (so many bytes) is used by Add", 2),
        ("'…' is unknown", 2),
        ("the rank of 'v' is 3", 1),
    ]


def test_a_text_is_looked_for_in_pass_rule_node_and_reason():
    found = [
        explain.Standing("fuse", Refusal("gelu", "Erf 'one'", "old")),
        explain.Standing("fuse", Refusal("attention", "Softmax 'two'", "new")),
    ]
    for text, rules in {"": 2, "FUSE": 2, "Gelu": 1, "'two'": 1, "old": 1, "three": 0}.items():
        assert len(explain.grouped(found, text)) == rules, text


@dataclasses.dataclass(eq=False)
class Wrong(Pass):
    """Make the model wrong, and refuse something."""

    name: ClassVar[str] = "wrong"

    def call(self, model):
        model.graph.node(1).replace_input_with(1, model.graph.node(0).outputs[0])
        return PassResult(model, True, refusals=refusals("Mul 'middle'"))


def test_a_pass_that_was_undone_is_a_reason(parse):
    pipeline = Pipeline(Recipe((Step("wrong", Wrong()),)), parse(MODEL))
    (own, undone) = pipeline.run().left_alone()
    assert own.places == (Refusal("rule", "Mul 'middle'", "no"),)
    assert (undone.rule, undone.places[0].where) == ("wrong", "the model")
    assert undone.reason.startswith("the pass was undone: it changed the numbers")


def test_the_python_api_answers_too(parse):
    text = MODEL.replace("y = Add(b, a)", "c = MatMul(b, m) y = Add(c, a)").replace(
        "<float", "<float[3,3] m, float"
    )
    text = text.replace("[n]", "[n, 2, 3]").replace("float[3,3] m", "float[3,3] m = {1,0,0,0,1,0,0,0,1}")
    report = graphopt.run({"version": 1, "passes": ["fuse"]}, parse(text)).report
    (group,) = report.left_alone("matmul-add")
    assert "Gemm needs rank 2" in group.reason
