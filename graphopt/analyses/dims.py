"""Sizes of axes as integers, names of axes, and exact arithmetic with both.

A size is an int or an :class:`Axis`: a polynomial with integer coefficients over *atoms*. An atom is the name
of an axis, which is never negative, or a function of sizes that has no simpler form: ``floor((h + 1)/2)``,
``Min(16, s)``, ``Max(0, n - 1)``, ``Broadcast(a; b)``. Equal polynomials have equal texts, and two sizes
count as equal exactly where their texts are. The text of the product of ``a`` and ``b`` is ``a*b``, so names
of axes that read like an expression are kept out of arithmetic (see :class:`Names`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import onnx_ir as ir

__all__ = [
    "Axis",
    "Dim",
    "Dims",
    "Names",
    "add",
    "broadcast",
    "declarable",
    "divide_exactly",
    "floor_divide",
    "fresh",
    "is_axis",
    "is_negative_never",
    "maximum",
    "minimum",
    "multiply",
    "product",
    "ratio",
    "same",
    "same_dims",
    "static",
    "subtract",
]

#: A size as everybody sees it; the value of a nameless SymbolicDim is None and equal to nothing.
Dim = int | ir.SymbolicDim
Dims = tuple[Dim, ...]
_Monomial = tuple[str, ...]
_NAME: Final = re.compile(r"[A-Za-z_][\w.]*")
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}")
#: Expressions that grow longer become new axes: no rewrite looks at them.
_LONGEST: Final = 64
_FRESH: Final = "_axis_"
_BROADCAST: Final = "Broadcast("
_numbers = itertools.count()
#: What the atoms that are fractions stand for: numerator and divisor.
_fractions: dict[str, tuple[Axis, int]] = {}
#: Atoms that may be negative; an atom's text tells what it is, so this holds for all models alike.
_signed: set[str] = set()


class Axis(ir.SymbolicDim):
    """A size that is not a number: a polynomial over atoms.

    Attributes:
        terms: (atoms of a monomial, sorted; its coefficient, not 0), in the order of the text.
    """

    __slots__ = ("terms",)

    def __init__(self, text: str, terms: tuple[tuple[_Monomial, int], ...] | None = None) -> None:
        super().__init__(text)
        self.terms = (((text,), 1),) if terms is None else terms


def fresh() -> Axis:
    """An axis of which nothing is known but that it is one, unlike any other."""
    return Axis(f"{_FRESH}{next(_numbers)}")


class Names:
    """Reads the axes that a file declares: binds them to sizes, and keeps odd names out of arithmetic.

    Args:
        declared: All names that the graph inputs declare.
        axes: Sizes of axes by name.
        unnamed: The size of every other open axis; None leaves it open.
    """

    def __init__(self, declared: Iterable[str], axes: Mapping[str, int], unnamed: int | None) -> None:
        self._axes, self._unnamed = axes, unnamed
        declared = set(declared)
        self._read = {name: _read(name, declared) for name in declared}

    def read(self, shape: Iterable[Dim]) -> tuple[int | Axis, ...]:
        """The declared shape of a graph input."""
        return tuple([self._dim(d) for d in shape])

    def _dim(self, dim: Dim) -> int | Axis:
        name = None if isinstance(dim, int) else dim.value
        if isinstance(dim, int) and dim >= 0:  # some files write -1 for an open axis
            return dim
        if name is not None and name in self._axes:
            return self._axes[name]
        if self._unnamed is not None:
            return self._unnamed
        if name is None:
            return fresh()
        return self._read.get(name) or _read(name, set(self._read))


def _read(name: str, declared: set[str]) -> Axis:
    if _PLAIN.fullmatch(name) and not name.startswith(_FRESH):
        return Axis(name)
    words = set(_NAME.findall(name))
    if "'" in name or any(w in declared or w.startswith(_FRESH) for w in words):
        return fresh()  # its text could be taken for that of an expression
    return Axis(name, (((f"'{name}'",), 1),))


def declarable(dims: Sequence[Dim] | None) -> ir.Shape | None:
    """The shape as a file may declare it: expressions of the inputs' axes keep their text.

    Axes that inference made up or that meet there, and expressions of oddly named ones, have no name.
    """
    if dims is None:
        return None
    return ir.Shape([None if _is_made_up(d) else d for d in dims])


def _is_made_up(dim: Dim) -> bool:
    text = None if isinstance(dim, int) else dim.value
    return text is not None and any(mark in text for mark in (_FRESH, _BROADCAST, "'"))


def same(left: Dim, right: Dim) -> bool:
    """Whether two sizes are equal at all sizes of their axes, as far as their text tells."""
    if isinstance(left, int) or isinstance(right, int):
        return isinstance(left, int) and left == right
    return left.value is not None and left.value == right.value


def same_dims(left: Sequence[Dim], right: Sequence[Dim]) -> bool:
    """Whether two shapes, or two vectors of sizes, are equal at all sizes of their axes."""
    return len(left) == len(right) and all(map(same, left, right))


def static(dims: Sequence[Dim] | None) -> tuple[int, ...] | None:
    """The dimensions where all of them are integers."""
    if dims is None:
        return None
    found = tuple([d for d in dims if type(d) is int])
    return found if len(found) == len(dims) else None


def is_axis(dim: object) -> bool:
    """Whether a size is that of one axis, hence at least 0 as an element too."""
    if not isinstance(dim, Axis) or len(dim.terms) != 1:
        return False
    atoms, coefficient = dim.terms[0]
    return coefficient == 1 and len(atoms) == 1 and (atoms[0][0] == "'" or bool(_NAME.fullmatch(atoms[0])))


def is_negative_never(size: int | Axis) -> bool:
    """Whether a size is at least 0 whatever the axes are, an element of a computed vector included."""
    if isinstance(size, int):
        return size >= 0
    return all(c > 0 and not any(a in _signed for a in atoms) for atoms, c in size.terms)


# Arithmetic.


def _terms(size: int | Axis) -> Sequence[tuple[_Monomial, int]]:
    if isinstance(size, int):
        return (((), size),) if size else ()
    return size.terms


def _make(terms: dict[_Monomial, int]) -> int | Axis:
    """The polynomial with these coefficients; a new axis where it has become too long."""
    kept = [(atoms, c) for atoms, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    kept.sort(key=lambda term: (-len(term[0]), term[0]))
    text = _text(kept)
    return Axis(text, tuple(kept)) if len(text) <= _LONGEST else _opaque(kept)


def _opaque(terms: Sequence[tuple[_Monomial, int]]) -> Axis:
    """A new axis for what has become too long to follow, which may be negative where that may be."""
    axis = fresh()
    if any(c < 0 or any(a in _signed for a in atoms) for atoms, c in terms):
        _signed.add(str(axis.value))
    return axis


def _text(terms: Sequence[tuple[_Monomial, int]]) -> str:
    parts: list[str] = []
    for atoms, coefficient in terms:
        factors = [] if abs(coefficient) == 1 and atoms else [str(abs(coefficient))]
        text = "*".join([*factors, *atoms])
        sign = "-" if coefficient < 0 else "+"
        parts.append(f" {sign} {text}" if parts else text if coefficient > 0 else f"-{text}")
    return "".join(parts)


def add(left: int | Axis, right: int | Axis) -> int | Axis:
    """The sum."""
    if type(left) is int and type(right) is int:
        return left + right
    terms = dict(_terms(left))
    for atoms, coefficient in _terms(right):
        terms[atoms] = terms.get(atoms, 0) + coefficient
    return _make(terms)


def subtract(left: int | Axis, right: int | Axis) -> int | Axis:
    """The difference."""
    return add(left, multiply(right, -1))


def multiply(left: int | Axis, right: int | Axis) -> int | Axis:
    """The product."""
    if type(left) is int and type(right) is int:
        return left * right
    if left == 1:
        return right
    if right == 1:
        return left
    terms: dict[_Monomial, int] = {}
    for (a, m), (b, n) in itertools.product(_terms(left), _terms(right)):
        atoms = tuple(sorted(a + b))
        terms[atoms] = terms.get(atoms, 0) + m * n
    return _make(terms)


def product(sizes: Iterable[int | Axis]) -> int | Axis:
    """The product of all."""
    result: int | Axis = 1
    for size in sizes:
        result = multiply(result, size)
    return result


def floor_divide(size: int | Axis, divisor: int) -> int | Axis:
    """``size / divisor`` rounded down, for a divisor above 0.

    Terms whose coefficients the divisor divides leave the fraction: the floor of ``(4*a + b)/2`` is
    ``2*a`` plus the floor of ``b/2``.
    """
    if type(size) is int:
        return size // divisor
    whole: dict[_Monomial, int] = {}
    rest: dict[_Monomial, int] = {}
    for atoms, coefficient in _terms(size):
        if atoms and coefficient % divisor:
            rest[atoms] = coefficient
        else:
            whole[atoms] = coefficient // divisor
            if coefficient % divisor:
                rest[atoms] = coefficient % divisor
    if not any(rest):  # only a number between 0 and the divisor is left
        return _make(whole)
    return add(_make(whole), _fraction(_make(rest), divisor))


def _fraction(rest: int | Axis, divisor: int) -> int | Axis:
    if isinstance(rest, int):
        return rest // divisor
    common = math.gcd(divisor, *(c for _, c in rest.terms))
    if common > 1:
        rest, divisor = _make({atoms: c // common for atoms, c in rest.terms}), divisor // common
        if divisor == 1 or isinstance(rest, int):
            return rest if divisor == 1 else floor_divide(rest, divisor)
    inner = next((t for t in rest.terms if t[1] == 1 and len(t[0]) == 1 and t[0][0] in _fractions), None)
    if inner is not None:  # the floor of (floor(p/a) + b)/c is that of (p + a*b)/(a*c)
        numerator, first = _fractions[inner[0][0]]
        others = _make({atoms: c for atoms, c in rest.terms if atoms != inner[0]})
        return floor_divide(add(numerator, multiply(others, first)), first * divisor)
    text = _text(rest.terms) if len(rest.terms) == 1 else f"({_text(rest.terms)})"
    atom = _atom(f"floor({text}/{divisor})", signed=not is_negative_never(rest))
    if str(atom.value).startswith("floor"):
        _fractions[str(atom.value)] = rest, divisor
    return atom


def divide_exactly(size: int | Axis, divisor: int | Axis) -> int | Axis | None:
    """The quotient where it is a polynomial, for a divisor that is a monomial; None otherwise."""
    terms = _terms(divisor)
    if len(terms) != 1:  # 0, or a sum
        return 1 if divisor != 0 and same(size, divisor) else None
    (atoms, coefficient), found = terms[0], dict[_Monomial, int]()
    for factors, number in _terms(size):
        left = list(factors)
        for atom in atoms:
            if atom not in left:
                return None
            left.remove(atom)
        if number % coefficient:
            return None
        found[tuple(left)] = number // coefficient
    return _make(found)


def ratio(size: int | Axis, divisor: int | Axis) -> int | Axis:
    """``size / divisor`` where that is known to come out even, and both to be at least 0."""
    exact = divide_exactly(size, divisor)
    if exact is not None:
        return exact
    if isinstance(divisor, int):
        return floor_divide(size, divisor)
    return _atom(f"floor(({_shown(size)})/({_shown(divisor)}))", signed=False)


def minimum(left: int | Axis, right: int | Axis) -> int | Axis:
    """The smaller of both."""
    return _extreme("Min", left, right)


def maximum(left: int | Axis, right: int | Axis) -> int | Axis:
    """The larger of both."""
    return _extreme("Max", left, right)


def _extreme(name: str, left: int | Axis, right: int | Axis) -> int | Axis:
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right) if name == "Min" else max(left, right)
    difference = subtract(left, right)
    if is_negative_never(difference):
        return right if name == "Min" else left
    if is_negative_never(multiply(difference, -1)):
        return left if name == "Min" else right
    first, second = sorted((left, right), key=lambda s: (not isinstance(s, int), str(s)))
    signs = [is_negative_never(s) for s in (left, right)]
    signed = not (all(signs) if name == "Min" else any(signs))
    return _atom(f"{name}({_shown(first)}, {_shown(second)})", signed=signed)


def _shown(size: int | Axis) -> str:
    return str(size) if isinstance(size, int) else _text(size.terms)


def _atom(text: str, *, signed: bool) -> Axis:
    if len(text) > _LONGEST:
        return _opaque([((text,), -1 if signed else 1)])
    if signed:
        _signed.add(text)
    return Axis(text)


_CAPPED: Final = re.compile(r"Min\((\d+), ([A-Za-z_]\w*)\)")


def broadcast(left: int | Axis, right: int | Axis) -> int | Axis:
    """The size that two axes broadcast to, where they do."""
    if left is right or right == 1:
        return left
    if left == 1:
        return right
    if isinstance(left, int):
        return left
    if isinstance(right, int):
        return right
    if left.value == right.value:
        return left
    for one, other in ((left, right), (right, left)):
        capped = _CAPPED.fullmatch(str(one.value))
        if capped is not None and capped[2] == other.value and int(capped[1]) > 0:
            return other  # above the cap the two do not broadcast, so nothing runs there
    return _broadcast_atom(left, right)


def _broadcast_atom(left: Axis, right: Axis) -> Axis:
    """The same atom for the same operands, however they were brought together."""
    met: set[str] = set()
    for size in (left, right):
        text = _text(size.terms)
        nested = len(size.terms) == 1 and size.terms[0][1] == 1 and len(size.terms[0][0]) == 1
        inner = nested and text.startswith(_BROADCAST)
        met.update(text[len(_BROADCAST) : -1].split("; ") if inner else [text])
    text = f"{_BROADCAST}{'; '.join(sorted(met))})"
    return Axis(text) if len(text) <= _LONGEST and "'" not in text else fresh()
