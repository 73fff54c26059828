from __future__ import annotations

import numpy as np
import pytest

#: Element types of the text syntax with their number in TensorProto.
TYPES = {
    "float": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9,
    "float16": 10, "double": 11, "uint32": 12, "bfloat16": 16,
}  # fmt: skip


def casts(*types: str) -> str:
    """A chain of Casts through these types."""
    body, value = "", "x"
    for index, dtype in enumerate(types[1:]):
        body += f"v{index} = Cast <to = {TYPES[dtype]}> ({value})\n"
        value = f"v{index}"
    head = f'<ir_version: 8, opset_import: ["" : 17]> g ({types[0]}[N] x) => ({types[-1]}[N] y)'
    return f"{head} {{ {body} y = Identity ({value}) }}"


@pytest.mark.parametrize(
    ("types", "left"),
    [
        (("int32", "int64", "int32"), 0),
        (("float16", "float", "float16"), 0),
        (("bool", "float", "bool"), 0),
        (("int64", "int64", "int64"), 0),
        (("int8", "int32", "uint8"), 1),
        (("int8", "float16", "float"), 1),
        (("uint8", "int16", "bool"), 1),
        (("bool", "int64", "float"), 1),
        (("float", "double", "float16"), 1),
        (("int16", "float", "double", "float"), 1),
    ],
)
def test_lossless(types, left, becomes):
    numbers = np.array([0, 1, -1, 5, 127, -128, 100, 3])
    feed = (numbers if types[0] != "float" else numbers / 7).astype(
        {"float": "float32"}.get(types[0], types[0])
    )
    if types[0] == "float16":
        feed = np.array([0, -0.0, 1e-7, 65504, np.inf, -np.inf, 0.1, 3], np.float16)
    becomes(casts(*types), ["Cast"] * left + ["Identity"], {"x": feed.astype(feed.dtype)})


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (("float", "float16", "float"), "FLOAT16 does not hold every number of FLOAT"),
        (("float", "bfloat16", "float"), "does not hold"),
        (("float16", "bfloat16", "float"), "does not hold"),
        (("int64", "int32", "int64"), "does not hold"),
        (("int32", "uint32", "int64"), "does not hold"),
        (("int32", "float", "int32"), "does not hold"),
        (("int64", "double", "int64"), "does not hold"),
        (("int16", "float16", "float"), "does not hold"),
        (("int64", "bool", "int64"), "does not hold"),
        (("float", "double", "int32"), "out of the range"),
        (("float16", "float", "bool"), "out of the range"),
    ],
)
def test_lossy(types, reason, stays):
    stays(casts(*types), reason, "cast-cast")
