"""Apply the fusion rules of this package."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from graphopt.options import nearest, option
from graphopt.registry import Pass, PassResult, register
from graphopt.rewrite import Rule, apply_rules, rules_of

__all__ = ["Fuse", "fusion_rules"]


def fusion_rules() -> dict[str, type[Rule[Any]]]:
    """Every rule that a module of this package defines, by name."""
    return rules_of(__name__.rpartition(".")[0])


@register
@dataclasses.dataclass(eq=False)
class Fuse(Pass):
    """Fuse operators into fewer ones that compute the same function.

    Rules (names for ``include`` and ``exclude``):

    - ``conv-batch-normalization``: Conv or ConvTranspose, then BatchNormalization at inference
    - ``gemm-batch-normalization``: Gemm or a MatMul of matrices, then BatchNormalization at inference
    - ``conv-mul``, ``conv-add``: Conv or ConvTranspose, then Mul/Div or Add/Sub by constants per channel
    - ``gemm-mul``, ``gemm-add``: the same behind Gemm (``gemm-mul``: or MatMul)
    - ``distant-scale``: Mul or Div by a constant per channel behind the bias of one of these, behind a
      Transpose, or both
    - ``matmul-add``: MatMul of matrices and Add of a row become Gemm; ``gemm-reshapes``: a Gemm of what was
      flattened in front of it and gets its axes back behind it becomes MatMul and Add
    - ``pad-conv``, ``pad-average-pool``: a Pad of zeros becomes the padding of what follows;
      ``pad-max-pool``: so does a Pad of minus infinity
    - ``gelu``: the erf or tanh formula becomes Gelu (opset 20)
    - ``layer-normalization`` (opset 17), ``rms-normalization`` (23), ``instance-normalization``: the formula
      over the last axes, or over the spatial ones, becomes the operator
    - ``normalization-mul``, ``normalization-add``: LayerNormalization or RMSNormalization, then a constant;
      ``normalization-casts``: either between Casts from float16 and back
    - ``group-normalization``: InstanceNormalization between Reshapes becomes GroupNormalization (opset 21);
      onnxruntime has no kernel for it and takes it apart again, which is slower
    - ``hard-sigmoid``, ``hard-swish`` (opset 14), ``mish`` (18), ``softplus``, ``softsign``, ``leaky-relu``:
      the formula becomes the operator
    - ``softmax``, ``log-softmax``: the formula with the maximum taken off becomes the operator (opset 13)
    - ``swish``: x * Sigmoid(alpha * x) becomes Swish (opset 24); onnxruntime has no kernel for it and fuses
      the two operators better
    - ``attention``: Softmax(scale Q K^T + mask) V becomes Attention (opset 23); ``attention-heads``: that
      between split and merged heads takes them as they lie in memory, ``attention-late-heads``: so it does
      where the sequence is the first axis; ``attention-windows``: that in windows
      with a mask for each; ``attention-folded-heads``: that of three axes, with heads folded into the batch;
      ``attention-groups``: keys and values that are repeated for groups of queries
    - ``rotary-embedding``: x * cos + rotate(x) * sin becomes RotaryEmbedding (opset 23);
      ``partial-rotary-embedding``: that of a part of each head takes the whole
    - ``recurrent-loop``: a Loop that runs the cell of an LSTM, GRU or RNN over a sequence becomes that;
      ``recurrent-zero-state``: LSTM, GRU or RNN leaves out an initial state of zeros;
      ``recurrent-last-step``: the last step of its outputs is its last state

    A rule does not fire where an intermediate result is used elsewhere, where a weight is no constant (a
    graph input, computed), is shared and large, or would overflow, and where shapes are not known to fit;
    the report says which.
    """

    name = "fuse"

    include: tuple[str, ...] = option((), help="Names of the rules to apply; none means all.")
    exclude: tuple[str, ...] = option((), help="Names of rules to leave out.")

    def __post_init__(self) -> None:
        known = fusion_rules()
        for name in (*self.include, *self.exclude):
            if name not in known:
                raise ValueError(f"unknown fusion rule '{name}'{nearest(name, known)}")

    def call(self, model: ir.Model) -> PassResult:
        """Apply the chosen rules until none applies any more."""
        chosen = self.include or tuple(fusion_rules())
        rules = [cls() for name, cls in fusion_rules().items() if name in chosen and name not in self.exclude]
        report = apply_rules(model, rules)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(report.applied.items()))
        summary = f"fused {counts}" if counts else "nothing to fuse"
        return PassResult(model, bool(counts), summary, report.refusals)
