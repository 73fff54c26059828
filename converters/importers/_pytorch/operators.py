"""Which operators a model file may name: those that only compute.

An operator that touches a file or a process is told where by a string, and what runs foreign code is not of
PyTorch's own namespaces. So an operator is let through if every argument has a plain type, and every string
among them is known to be no more than a mode: what a later PyTorch adds is refused until it is known.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch

__all__ = ["check_target", "does_more_than_compute"]

#: Namespaces of the operators that TorchScript may call.
_SPACES = ("aten", "prim", "quantized")

_PYTHON_NAMES = (
    "abs add and_ eq floordiv ge gt le lshift lt mod mul ne neg not_ or_ pos pow rshift sub truediv"
)
_TORCH_NAMES = "_sym_sqrt sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum"
_HIGHER_ORDER_NAMES = (
    "associative_scan cond invoke_subgraph map_impl scan while_loop wrap_with_autocast "
    "wrap_with_set_grad_enabled"
)
_MODE_NAMES = (
    "UPLO activation algorithm api_name approximate assert_msg driver equation indexing interpolation mode "
    "norm ord p pad_mode padding padding_side reduce rounding_mode side"
)
_TEXT_NAMES = (
    "a b chars cls device_type dict el fillchar idx input inputs item key l message msg new old s self "
    "separator string substr t to_add type values"
)
_PLAIN_NAMES = (
    "Device Generator Layout MemoryFormat ScalarType SymBool SymInt Tensor bool complex float int number"
)
#: What nodes may call by name: operators on sizes, and operators on graphs that run those and nothing else.
_CALLED = frozenset(
    {
        *(f"_operator.{name}" for name in _PYTHON_NAMES.split()),
        *(f"torch.{name}" for name in _TORCH_NAMES.split()),
        *(f"torch.ops.higher_order.{name}" for name in _HIGHER_ORDER_NAMES.split()),
        *("math.ceil", "math.floor", "math.trunc"),
    }
)
_OPERATOR = re.compile(
    r"torch\.ops\.(?P<space>aten|prims)\.(?P<name>[A-Za-z_]\w*)\.(?P<overload>[A-Za-z_]\w*)"
)
#: Arguments that are strings and say how to compute; those that are texts of TorchScript; plain types.
_MODES = frozenset(_MODE_NAMES.split())
_TEXTS = frozenset(_TEXT_NAMES.split())
_PLAIN = frozenset(_PLAIN_NAMES.split())
_WRAPPED = re.compile(r"(?:Optional|List)\[(.*)\]")


@cache
def check_target(target: str) -> None:
    """Let through what a node of an exported program may call.

    Raises:
        ValueError: It may not; says why.
    """
    if target in _CALLED:
        return
    match = _OPERATOR.fullmatch(target)
    if match is None:
        raise ValueError(f"calls {target[:80]!r}, which is no operator of PyTorch that only computes")
    operator: Any = getattr(getattr(torch.ops, match["space"]), match["name"], None)
    operator = getattr(operator, match["overload"], None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise ValueError(f"calls {target!r}, which PyTorch {torch.__version__} does not have")
    wrong = _wrong_argument(operator._schema, plain=True)
    if wrong:
        raise ValueError(f"calls {target!r}, whose argument '{wrong}' may name a file or run code")


@cache
def does_more_than_compute() -> frozenset[str]:
    """Names of the operators that TorchScript may not call: their strings may name files or hosts."""
    found = set()
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if space in _SPACES and _wrong_argument(schema, plain=False):
            found.add(name)
    return frozenset(found)


def _wrong_argument(schema: Any, *, plain: bool) -> str:
    """The first argument that may be more than a number, a tensor or a mode.

    Args:
        schema: Of the operator.
        plain: Whether types of TorchScript only (dictionaries, strings as such) are wrong as well.
    """
    for argument in schema.arguments:
        kind = str(argument.real_type)
        while match := _WRAPPED.fullmatch(kind):
            kind = match[1]
        if kind == "str":
            if argument.name not in _MODES and (plain or argument.name not in _TEXTS):
                return str(argument.name)
        elif plain and kind not in _PLAIN:
            return str(argument.name)
    return ""
