from __future__ import annotations

import pytest


def graph(body: str, x: str = "float[N, 6, M] x", y: str = "float[a, b, c] y", opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) {{ {body} }}'


def cut(output: str, data: str, *cuts: tuple[int, int, int, int]) -> str:
    """A Slice: start, end, axis and step of each axis."""
    text = ""
    for name, numbers in zip(("s", "e", "a", "t"), zip(*cuts, strict=True), strict=True):
        listed = ", ".join(map(str, numbers))
        text += f"{output}_{name} = Constant <value = int64[{len(cuts)}] {{{listed}}}> ()\n"
    return text + f"{output} = Slice ({data}, {output}_s, {output}_e, {output}_a, {output}_t)\n"


def ints(name: str, *numbers: int) -> str:
    return f"{name} = Constant <value = int64[{len(numbers)}] {{{', '.join(map(str, numbers))}}}> ()\n"


END = 2**63 - 1
FLAT = "float[a, b] y"


@pytest.mark.parametrize(
    ("start", "end", "axis"),
    [(0, 1, 1), (3, 4, 1), (-1, END, 1), (-3, -2, 1), (2, 3, -2), (-1, 2**31 - 1, -2)],
)
def test_slice_squeeze(start, end, axis, becomes, draw):
    text = graph(ints("q", 1) + cut("v", "x", (start, end, axis, 1)) + "y = Squeeze (v, q)", y=FLAT)
    becomes(text, ["Gather"], {"x": draw(2, 6, 4)}, {"x": draw(1, 6, 1)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ints("q", 1) + cut("v", "x", (-1, 0, 1, 1)) + "y = Squeeze (v, q)", "more than one entry"),
        (ints("q", 1) + cut("v", "x", (0, 2, 1, 1)) + "y = Squeeze (v, q)", "more than one entry"),
        (ints("q", 1) + cut("v", "x", (0, 1, 1, 2)) + "y = Squeeze (v, q)", "more than one entry"),
        (ints("q", 1) + cut("v", "x", (0, 1, 2, 1)) + "y = Squeeze (v, q)", "other axes"),
        (ints("q", 1) + cut("v", "x", (0, 1, 1, 1), (0, 1, 2, 1)) + "y = Squeeze (v, q)", "other axes"),
        (cut("v", "x", (0, 1, 1, 1)) + "y = Squeeze (v)", "other axes"),
        (
            ints("q", 1) + cut("v", "x", (0, 1, 1, 1)).replace("v_s,", "p,") + "y = Squeeze (v, q)",
            "not constant",
        ),
        (ints("q", 1) + cut("v", "x", (0, 1, 1, 1)) + "y = Squeeze (v, q)\n w = Relu (v)", "used elsewhere"),
    ],
)
def test_slice_squeeze_left_alone(body, reason, stays):
    outputs = FLAT + (", float[c, d, e] w" if "w =" in body else "")
    stays(graph(body, x="float[N, 6, M] x, int64[1] p", y=outputs), reason, "slice-squeeze")


SPLIT = (
    ints("q", 1)
    + "p0, p1 = Split <axis = 1> (x)\n a = Squeeze (p0, q)\n b = Squeeze (p1, q)\n y = Add (a, b)"
)


def test_split_squeeze(becomes, draw):
    text = graph(SPLIT, x="float[N, 2, M] x", y=FLAT)
    becomes(text, ["Gather", "Gather", "Add"], {"x": draw(2, 2, 4)}, {"x": draw(1, 2, 3)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (graph(SPLIT, x="float[N, 4, M] x", y=FLAT), "not known to be one entry"),
        (graph(SPLIT, x="float[N, K, M] x", y=FLAT), "not known to be one entry"),
        (graph(SPLIT, x="float[N, 2, M] x", y=FLAT + ", float[c, d, e] p1"), "is a graph output"),
        (graph(SPLIT.replace("Add (a, b)", "Add (a, p1)"), x="float[N, 2, M] x", y=FLAT), "is used by Add"),
    ],
)
def test_split_squeeze_left_alone(text, reason, parse, simplify):
    result = simplify(parse(text, check=False), "split-squeeze")
    assert not result.modified
    assert reason in result.refusals[0].reason


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([(1, 5, 1, 1)], [(0, 2, 2, 1)]),
        ([(1, END, 1, 2)], [(-2, END, 2, 1)]),
        ([(1, END, 1, 1)], [(1, 3, 1, 1)]),
        ([(0, END, 1, 2)], [(1, END, 1, 1)]),
        ([(1, 5, 1, 2)], [(0, 9, 1, 2)]),
        ([(4, 2, 1, 1)], [(0, 1, 1, 1)]),
        ([(9, 99, 1, 1)], [(0, 1, 1, 1)]),
        ([(0, 3, 1, 1), (1, END, 2, 1)], [(1, 2, -1, 1), (0, 1, 0, 1)]),
    ],
)
def test_slice_slice(first, second, becomes, draw):
    text = graph(cut("v", "x", *first) + cut("y", "v", *second))
    becomes(text, ["Slice"], {"x": draw(2, 6, 4)}, {"x": draw(1, 6, 7)})


def test_a_slice_shared_by_slices_goes(becomes, draw):
    body = cut("v", "x", (1, END, 1, 1)) + cut("a", "v", (0, 2, 2, 1)) + cut("b", "v", (1, 3, 2, 1))
    becomes(graph(body + "y = Add (a, b)"), ["Slice", "Slice", "Add"], {"x": draw(2, 6, 4)})


def test_slices_of_a_gather_become_gathers(becomes, draw):
    body = ints("i", 3, -1, 0, 2) + "v = Gather <axis = 1> (x, i)\n"
    body += cut("a", "v", (0, 2, 1, 1)) + cut("b", "v", (2, END, 1, 1)) + "y = Sub (a, b)"
    becomes(graph(body), ["Gather", "Gather", "Sub"], {"x": draw(2, 6, 4)})


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (cut("v", "x", (-3, END, 1, 1)) + cut("y", "v", (0, 1, 1, 1)), ""),
        (cut("v", "x", (1, END, 1, 1)) + cut("y", "v", (0, -1, 1, 1)), ""),
        (cut("v", "x", (5, 0, 1, -1)) + cut("y", "v", (0, 2, 1, 1)), ""),
        (cut("v", "x", (0, 2, 1, 1)) + cut("y", "v", (0, 1, 2, 1)), ", float[d, e, f] v"),
        (cut("v", "x", (0, 2, 1, 1)) + cut("y", "v", (0, 1, 2, 1)) + "w = Relu (v)", ", float[d, e, f] w"),
        (ints("i", 1, 7) + "v = Gather <axis = 1> (x, i)\n" + cut("y", "v", (0, 1, 1, 1)), ""),
        (ints("i", 1, 2) + "v = Gather <axis = 2> (x, i)\n" + cut("y", "v", (0, 1, 1, 1)), ""),
    ],
)
def test_slice_slice_left_alone(body, outputs, parse, ops, simplify):
    model = parse(graph(body, y="float[a, b, c] y" + outputs))
    before = ops(model)
    result = simplify(model, "slice-slice")
    assert not result.modified
    assert ops(model) == before
    assert result.refusals


@pytest.mark.parametrize(
    ("cuts", "left"),
    [
        ([(2, END, 1, 1), (0, 2, 1, 1)], ["Gather"]),
        ([(5, -99, 1, -1), (0, 1, 1, 1)], ["Gather"]),
        ([(0, 2, 1, 1), (2, 6, 1, 1)], ["Identity"]),
        ([(0, 2, 1, 1), (2, END, 1, 1)], ["Identity"]),
        ([(0, 2, -2, 1), (-4, END, 1, 1)], ["Identity"]),
    ],
)
def test_concat_of_slices(cuts, left, becomes, draw):
    parts = [cut(f"v{i}", "x", c) for i, c in enumerate(cuts)]
    text = graph("".join(parts) + "y = Concat <axis = 1> (v0, v1)")
    becomes(text, left, {"x": draw(2, 6, 4)}, {"x": draw(1, 6, 1)})


def test_adjacent_slices_of_an_open_axis_are_the_whole(becomes, draw):
    body = (
        cut("a", "x", (0, 2, 2, 1))
        + cut("b", "x", (2, END, 2, 1))
        + "v = Concat <axis = 2> (a, b)\n y = Relu (v)"
    )
    becomes(graph(body), ["Relu"], {"x": draw(2, 6, 4)}, {"x": draw(1, 6, 1)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            cut("a", "x", (2, END, 2, 1)) + cut("b", "x", (0, 2, 2, 1)) + "y = Concat <axis = 2> (a, b)",
            "not known",
        ),
        (
            cut("a", "x", (0, 2, 2, 1)) + cut("b", "x", (3, END, 2, 1)) + "y = Concat <axis = 2> (a, b)",
            "not known",
        ),
        (
            cut("a", "x", (0, 2, 1, 1)) + cut("b", "x", (2, END, 1, 1)) + "y = Concat <axis = 2> (a, b)",
            "along",
        ),
        (cut("a", "x", (0, 2, 1, 1)) + cut("b", "z", (2, END, 1, 1)) + "y = Concat <axis = 1> (a, b)", ""),
        (
            cut("a", "x", (2, END, 1, 1)) + cut("b", "x", (0, 2, 1, 1)) + "y = Concat <axis = 1> (a, b)\n"
            "w = Relu (a)\n u = Relu (b)",
            "every part",
        ),
    ],
)
def test_concat_of_slices_left_alone(body, reason, stays):
    outputs = "float[a, b, c] y" + (", float[d, e, f] w, float[g, h, i] u" if "w =" in body else "")
    stays(graph(body, x="float[N, 6, M] x, float[N, 6, M] z", y=outputs), reason, "concat-slices")


def test_all_parts_of_a_split(becomes, stays, draw):
    text = graph("a, b = Split <axis = 1> (x)\n v = Concat <axis = -2> (a, b)\n y = Relu (v)")
    becomes(text, ["Relu"], {"x": draw(2, 6, 4)})
    stays(text.replace("axis = -2", "axis = 2"), "the same axis", "split-concat")
    stays(text.replace("> (a, b)", "> (b, a)"), "", "split-concat")
    stays(text.replace("> (a, b)", "> (a, a)"), "", "split-concat")


def test_concat_concat(becomes, stays, draw):
    text = graph("r = Relu (x)\n v = Concat <axis = 1> (x, r)\n y = Concat <axis = -2> (r, v, x)")
    becomes(text, ["Relu", "Concat"], {"x": draw(2, 6, 4)})
    stays(text.replace("axis = 1", "axis = 2"), "another axis", "concat-concat")
    stays(text.replace(") => (float", ") => (float[d, e, f] v, float"), "used elsewhere", "concat-concat")
    stays(text.replace("(r, v, x)", "(v, v, x)"), "used elsewhere", "concat-concat")
