"""Symbolic sizes as ``torch.export.save`` writes them: torch reads them back with Python's ``eval``.

So they are let through only if they are what torch writes: numbers, symbols (``s77``, ``u0``) and functions
of sizes. What is passed on is written anew from what was understood, not copied.
"""

from __future__ import annotations

import ast
import re

__all__ = ["canonical"]

#: What torch's names of symbols begin with: sizes and floats, each known or found when the program runs.
_SYMBOL = re.compile(r"(s|u|zf|zuf)\d{1,6}")
_FLOAT = re.compile(r"-?\d{1,40}(\.\d{0,400})?(e[+-]?\d{1,4})?")
_ASSUMPTION_NAMES = (
    "commutative complex extended_real finite integer negative nonnegative nonzero positive rational real"
)
_FUNCTION_NAMES = (
    "Abs Add And BooleanFalse BooleanTrue CeilDiv CeilToInt CleanDiv Eq Equality FloatPow FloatTrueDiv "
    "FloorDiv FloorToInt Ge GreaterThan Gt Identity IntTrueDiv IsNonOverlappingAndDenseIndicator LShift Le "
    "LessThan Lt Max Min Mod ModularIndexing Mul Ne Not Or Pow PowByNatural PythonMod RShift RoundDecimal "
    "RoundToInt StrictGreaterThan StrictLessThan ToFloat TruncToFloat TruncToInt Unequality Where ceiling "
    "floor sqrt"
)
_ASSUMPTIONS = frozenset(_ASSUMPTION_NAMES.split())
_CONSTANTS = frozenset({"true", "false", "oo"})
#: Of sympy and of torch.utils._sympy.functions: none has an effect or looks anything up.
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_POWERS = frozenset({"FloatPow", "LShift", "Pow", "PowByNatural"})
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_COMPARE = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_LENGTH, _NODES, _DEPTH = 20_000, 4_000, 60
_INTEGER = 1 << 64
#: The product of nested exponents: towers of powers take all memory.
_EXPONENT = 64


def canonical(text: str) -> str:
    """The expression, written anew.

    Raises:
        ValueError: It is no such expression; says what is wrong.
    """
    if len(text) > _LENGTH:
        raise ValueError(f"an expression of {len(text):,} characters; {_LENGTH:,} are the limit")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused(text) from None
    if sum(1 for _ in ast.walk(tree)) > _NODES:
        raise ValueError(f"an expression of more than {_NODES:,} parts")
    if not _is_size(tree.body, 1, 0):
        raise _refused(text)
    return ast.unparse(tree)


def _refused(text: str) -> ValueError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ValueError(f"{shown!r} is no expression of sizes")


def _is_size(node: ast.expr, exponent: int, depth: int) -> bool:
    """Whether a part of an expression is a number, a symbol, or a function of such."""
    if depth > _DEPTH:
        return False
    if isinstance(node, ast.Call):
        return _is_call(node, exponent, depth)
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.BinOp):
        operands = (node.left, node.right)
        return isinstance(node.op, _BINARY) and all(_is_size(n, exponent, depth + 1) for n in operands)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        operands = (node.left, node.comparators[0])
        return isinstance(node.ops[0], _COMPARE) and all(_is_size(n, exponent, depth + 1) for n in operands)
    return _number(node) is not None


def _number(node: ast.expr) -> int | float | None:
    """A literal number, with its sign."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        return None
    value = node.value
    assert isinstance(value, int | float)
    return sign * value if abs(value) < _INTEGER else None


def _is_call(node: ast.Call, exponent: int, depth: int) -> bool:
    if not isinstance(node.func, ast.Name):
        return False
    name = node.func.id
    if name == "Symbol":
        return _is_symbol(node)
    if name == "Float":
        return _is_float(node)
    if node.keywords:
        return False
    if name in ("Integer", "Rational"):
        return 0 < len(node.args) <= 2 and all(isinstance(_number(a), int) for a in node.args)
    if name in _POWERS:
        exponent = _raised(node, exponent)
    return (
        name in _FUNCTIONS
        and exponent <= _EXPONENT
        and all(_is_size(a, exponent, depth + 1) for a in node.args)
    )


def _is_symbol(node: ast.Call) -> bool:
    """``Symbol('s77', positive=True, integer=True)``."""
    return _takes_text(node, _SYMBOL) and all(
        k.arg in _ASSUMPTIONS and isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
        for k in node.keywords
    )


def _is_float(node: ast.Call) -> bool:
    """``Float('1.5', precision=53)``."""
    return _takes_text(node, _FLOAT) and all(
        k.arg == "precision" and 0 < (_number(k.value) or 0) <= 1024 for k in node.keywords
    )


def _takes_text(node: ast.Call, pattern: re.Pattern[str]) -> bool:
    """Whether the one argument by place is a literal text of this form."""
    if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant):
        return False
    text = node.args[0].value
    return isinstance(text, str) and pattern.fullmatch(text) is not None


def _raised(node: ast.Call, exponent: int) -> int:
    """The exponents so far times this one; an exponent that is no literal counts as one."""
    if len(node.args) != 2:
        return _EXPONENT + 1
    power = node.args[1]
    if isinstance(power, ast.Call) and power.args and isinstance(power.args[0], ast.expr):
        power = power.args[0]  # Integer(2)
    return exponent * max(1, int(abs(_number(power) or 1)))
