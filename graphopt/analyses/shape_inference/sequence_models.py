"""Recurrent layers and attention."""

from __future__ import annotations

from graphopt.analyses import dims as d
from graphopt.analyses.dims import Axis, fresh
from graphopt.analyses.shape_inference._known import Inferred
from graphopt.analyses.shape_inference._op import Op, anew, rule
from graphopt.analyses.shape_inference.elementwise import like

__all__: list[str] = []


@rule("RNN", "GRU", "LSTM")
def _recurrent(op: Op) -> list[Inferred]:
    """Y, Y_h and, of an LSTM, Y_c; the hidden size is that of the recurrent weights."""
    first, second, _ = op.dims(0)
    hidden = op.integer("hidden_size", 0) or op.dims(2)[-1]
    directions = 2 if op.text("direction", "forward") == "bidirectional" else 1
    dtype = op[0].dtype
    if op.integer("layout", 0):
        last = Inferred(dtype, (first, directions, hidden))
        return [Inferred(dtype, (first, second, directions, hidden)), last, last]
    last = Inferred(dtype, (directions, second, hidden))
    return [Inferred(dtype, (first, directions, second, hidden)), last, last]


@rule("Attention")
def _attention(op: Op) -> list[Inferred]:
    """Y, the present key and value, and the products of queries and keys."""
    query, key, value = (op.dims(i) for i in range(3))
    heads, shared = op.integer("q_num_heads", 0), op.integer("kv_num_heads", 0)
    if len(query) == 4:
        attended: tuple[int | Axis, ...] = (*query[:3], value[3])
        key_heads, key_size, value_size, length = key[1], key[3], value[3], key[2]
    else:
        key_size, value_size = (_exactly(size, shared) for size in (key[2], value[2]))
        attended = (*query[:2], d.multiply(value_size, heads))
        key_heads, length = shared, key[1]
    total = d.add(op.dims(4)[2], length) if op.has(4) else length
    present = [
        Inferred(op[1 + i].dtype, (query[0], key_heads, total, size))
        for i, size in enumerate((key_size, value_size))
    ]
    return [Inferred(op[0].dtype, attended), *present, Inferred(op[0].dtype, anew(4))]


def _exactly(size: int | Axis, divisor: int) -> int | Axis:
    found = d.divide_exactly(size, divisor) if divisor else None
    return fresh() if found is None else found


@rule("RotaryEmbedding")
def _rotary_embedding(op: Op) -> Inferred:
    return like(op[0])
