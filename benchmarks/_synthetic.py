"""A graph of any number of nodes, with clutter in it, to see how a tool's time grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

WIDTH = 16
BLOCK = """
{p}m = MatMul({x}, {p}w)
{p}a = Add({p}m, {p}b)
{p}i = Identity({p}a)
{p}r = Relu({p}i)
{p}s = Shape({p}r)
{p}g = Gather<axis = 0>({p}s, zero)
{p}u = Unsqueeze({p}g, axes)
{p}c = Concat<axis = 0>({p}u, width)
{p}q = Reshape({p}r, {p}c)
{p}l = Mul({p}q, one)
{p}t = Transpose<perm = [1, 0]>({p}l)
{p}v = Transpose<perm = [1, 0]>({p}t)
{p}d = Add({p}n, {p}n)
{p}e = Div({p}v, {p}d)
{p}o = Add({p}e, {x})
"""


def make(count: int, target: Path) -> None:
    """Write a residual network of at least ``count`` nodes in blocks of 15.

    Every block has what exporters leave behind: an Identity, a Reshape to the shape its input has anyway, a
    multiplication by one, a pair of Transposes, an Add of constants, a MatMul with a bias.
    """
    blocks = max(count // (BLOCK.count("\n") - 1), 1)
    names = ["x", *(f"b{i}_o" for i in range(blocks))]
    body = "".join(BLOCK.format(p=f"b{i}_", x=names[i]) for i in range(blocks))
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> synthetic (float[batch, {WIDTH}] x) => '
        f"(float[batch, {WIDTH}] y) {{ {body} y = Tanh({names[-1]}) }}"
    )
    arrays = {
        "one": np.ones(1, np.float32),
        "zero": np.array(0),
        "axes": np.array([0]),
        "width": np.array([WIDTH]),
    }
    for i in range(blocks):
        arrays[f"b{i}_w"] = np.eye(WIDTH, dtype=np.float32) * np.float32(0.9)
        arrays[f"b{i}_b"] = np.full(WIDTH, 0.01, np.float32)
        arrays[f"b{i}_n"] = np.array([i % 7 + 1], np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    onnx.save(model, target)
