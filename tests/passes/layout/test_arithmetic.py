from __future__ import annotations

import numpy as np
import pytest


def graph(body: str, dtype: str = "float", more: str = "", opset: int = 17) -> str:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({dtype}[N, 3] x{more}) => ({dtype}[a, b] y)'
    return f"{head} {{ {body} }}"


def constant(name: str, *numbers: float, dtype: str = "float", scalar: bool = False) -> str:
    shape = "" if scalar else f"[{len(numbers)}]"
    return f"{name} = Constant <value = {dtype}{shape} {{{', '.join(map(str, numbers))}}}> ()\n"


EDGES = np.array([[0.0, -0.0, np.inf], [-np.inf, np.nan, 1e-40], [1.5, -2.5, 7.0]], np.float32)


@pytest.mark.parametrize("op_type", ["Neg", "Abs", "Ceil", "Floor", "Relu", "Round", "Sign"])
def test_twice(op_type, becomes):
    left = ["Exp"] if op_type == "Neg" else [op_type, "Exp"]
    becomes(graph(f"a = {op_type} (x)\n b = {op_type} (a)\n y = Exp (b)"), left, {"x": EDGES})


def test_smallest_integer_and_not(becomes, draw):
    text = graph("a = Neg (x)\n b = Neg (a)\n y = Abs (b)", "int32")
    becomes(text, ["Abs"], {"x": np.array([[-(2**31), 2**31 - 1, 0]], np.int32)})
    becomes(
        graph("a = Not (x)\n b = Not (a)\n y = Identity (b)", "bool"), ["Identity"], {"x": draw(2, 3) > 0}
    )


def test_others_twice_stay(stays):
    stays(graph("a = Sqrt (x)\n y = Sqrt (a)"))
    stays(graph("a = Reciprocal (x)\n y = Reciprocal (a)"))
    stays(graph("a = Floor (x)\n y = Ceil (a)"))


LOW, HIGH = constant("l", -1.0, scalar=True), constant("h", 2.0, scalar=True)
SIX = constant("z", 0.0, scalar=True) + constant("s", 6.0, scalar=True)


@pytest.mark.parametrize(
    "body",
    [
        LOW + HIGH + SIX + "a = Clip (x, l, h)\n y = Clip (a, z, s)",
        LOW + HIGH + SIX + "a = Clip (x, z, s)\n y = Clip (a, l, h)",
        constant("l", 3.0, scalar=True) + SIX + HIGH + "a = Clip (x, l, s)\n y = Clip (a, z, h)",
        SIX + "a = Relu (x)\n y = Clip (a, z, s)",
        LOW + HIGH + "a = Relu (x)\n y = Clip (a, l, h)",
        HIGH + "a = Clip (x, , h)\n y = Clip (a)",
        LOW + HIGH + "a = Clip (x, l)\n y = Clip (a, , h)",
    ],
)
def test_clip_of_clip(body, becomes):
    becomes(graph(body), ["Clip"], {"x": EDGES})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (graph(SIX + "a = Relu (x)\n y = Clip (a, z, p)", more=", float p"), "not constant"),
        (graph(SIX + "a = Clip (x, s, z)\n y = Clip (a, z, s)"), "wrong order"),
        (graph(SIX + "a = Relu (x)\n b = Clip (a, z, s)\n y = Add (a, b)"), "used elsewhere"),
        (graph("a = Relu (x)\n y = Clip <max = 6.0> (a)", opset=10), "other bounds"),
        (
            graph(
                constant("z", 0, dtype="int32", scalar=True) + "a = Clip (x, z)\n y = Clip (a, z)", "int32"
            ),
            "no float",
        ),
    ],
)
def test_clip_of_clip_left_alone(text, reason, stays):
    stays(text, reason, "clip-clip")


TWO, ROW = constant("k", 2.0, scalar=True), constant("r", 0.5, -3.0, 4.0)


@pytest.mark.parametrize(
    ("body", "op_type"),
    [
        (TWO + ROW + "a = Mul (x, k)\n y = Mul (r, a)", "Mul"),
        (TWO + ROW + "a = Div (x, r)\n y = Mul (a, k)", "Mul"),
        (ROW + "a = Div (x, r)\n y = Div (a, r)", "Mul"),
        (TWO + "a = Add (k, x)\n y = Add (a, k)", "Add"),
        (constant("p", 1.0, 0.0, 3.0) + TWO + "a = Sub (x, p)\n y = Sub (a, k)", "Add"),
    ],
)
def test_constants_join(body, op_type, becomes, draw):
    becomes(graph(body), [op_type], {"x": draw(2, 3)}, {"x": EDGES}, rtol=2e-6)


def mul(first: float, second: float, dtype: str = "float") -> str:
    body = constant("k", first, dtype=dtype, scalar=True) + constant("l", second, dtype=dtype, scalar=True)
    return graph(body + "a = Mul (x, k)\n y = Mul (a, l)", dtype)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (mul(1e30, 1e30), "not a normal number"),
        (mul(1e-30, 1e-30), "not a normal number"),
        (mul(0.0, 2.0), "not a normal number"),
        (mul(2, 3, "int32"), "no plain floats"),
        (graph(TWO + "a = Mul (x, k)\n b = Mul (a, k)\n y = Add (a, b)"), "used elsewhere"),
        (graph(TWO + "a = Div (k, x)\n y = Mul (a, k)"), ""),
        (graph(TWO + "a = Mul (x, p)\n y = Mul (a, k)", more=", float p"), ""),
        (
            graph(
                "c = Constant <value = float[2, 1] {1.0, 2.0}> ()\n" + ROW + "a = Mul (x, c)\n y = Mul (a, r)"
            ),
            "other shapes",
        ),
    ],
)
def test_factors_left_alone(text, reason, stays):
    stays(text, reason, "mul-mul")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (constant("m", 12582912.0, scalar=True) + "a = Add (x, m)\n y = Sub (a, m)", "different signs"),
        (constant("m", 3e38, scalar=True) + "a = Add (x, m)\n y = Add (a, m)", "not finite"),
        (TWO + "a = Sub (k, x)\n y = Add (a, k)", ""),
    ],
)
def test_addends_left_alone(body, reason, stays):
    stays(graph(body), reason, "add-add")


def scales(first: str, second: str, more: str = "") -> str:
    body = f"{first}{second}t = Transpose <perm = [1, 0]> (x)\n a = Mul (x, k)\n b = Mul (l, t)\n"
    return graph(body + "y = MatMul (a, b)" + more)


HALF, THIRD = constant("k", 0.5, scalar=True), constant("l", 0.3)


def test_scales_join(becomes, draw):
    becomes(scales(HALF, THIRD), ["Transpose", "Mul", "MatMul"], {"x": draw(2, 3)}, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (scales(constant("k", 1.5, scalar=True), THIRD), "above 1"),
        (scales(constant("k", 0.5, 0.5, 0.5), THIRD), "no scalar"),
        (scales(constant("k", 1e-30, scalar=True), constant("l", 1e-30)), "not a normal number"),
        (scales(HALF, THIRD).replace("(float[a, b] y)", "(float[a, b] y, float[c, d] a)"), "used elsewhere"),
    ],
)
def test_scales_left_alone(text, reason, stays):
    stays(text, reason, "matmul-scales")
