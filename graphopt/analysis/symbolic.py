"""Exact arithmetic on sizes: integer polynomials over named sizes, in canonical form.

Every symbol is the size of a dimension, so it is at least 0. Quotients, minima and maxima that no polynomial can
express are atoms of their own, equal exactly when they are written alike. Equal expressions are equal sizes; different
expressions may still be equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Call:
    """``div``, ``mod``, ``min`` or ``max`` of two expressions that are at least 0, as one indivisible size."""

    function: str
    left: Expr
    right: Expr

    def __str__(self) -> str:
        return f"{self.function}({self.left}, {self.right})"


Atom = str | Call
Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Expr:
    """A polynomial: ``terms`` holds monomials (sorted atoms, repeated for powers) with their nonzero coefficients."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def value(self) -> int | None:
        """The number that this is, ``None`` when it depends on a symbol."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def least(self) -> int | None:
        """A number that this is never below, ``None`` when there may be none."""
        if any(coefficient < 0 for monomial, coefficient in self.terms if monomial):
            return None
        return sum(coefficient for monomial, coefficient in self.terms if not monomial)

    @property
    def name(self) -> str | None:
        """The symbol that this is, ``None`` when it is anything else."""
        if len(self.terms) != 1 or self.terms[0][1] != 1 or len(self.terms[0][0]) != 1:
            return None
        atom = self.terms[0][0][0]
        return atom if isinstance(atom, str) else None

    def call(self, function: str) -> Call | None:
        """Return the ``function`` call that this is, ``None`` when it is anything else."""
        if len(self.terms) != 1 or self.terms[0][1] != 1 or len(self.terms[0][0]) != 1:
            return None
        atom = self.terms[0][0][0]
        return atom if isinstance(atom, Call) and atom.function == function else None

    def __add__(self, other: Expr) -> Expr:
        total = Counter(dict(self.terms))
        total.update(dict(other.terms))
        return _canonical(total)

    def __neg__(self) -> Expr:
        return Expr(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __sub__(self, other: Expr) -> Expr:
        return self + -other

    def __mul__(self, other: Expr) -> Expr:
        total: Counter[Monomial] = Counter()
        for left, a in self.terms:
            for right, b in other.terms:
                total[tuple(sorted(left + right, key=str))] += a * b
        return _canonical(total)

    def __str__(self) -> str:
        return " + ".join(_term(monomial, coefficient) for monomial, coefficient in self.terms) or "0"


def number(value: int) -> Expr:
    """Return the expression of a known size."""
    return Expr((((), value),)) if value else ZERO


def symbol(name: str) -> Expr:
    """Return the expression of the size called ``name``."""
    return Expr((((name,), 1),))


def product(factors: Iterable[Expr]) -> Expr:
    """Return the product, 1 of none."""
    return math.prod(factors, start=ONE)


def divide(left: Expr, right: Expr) -> Expr | None:
    """Return the quotient, rounded to zero as ONNX's Div of integers does; ``None`` when it cannot be told."""
    a, b = left.value, right.value
    if b == 0 or not right.terms:
        return None
    if a is not None and b is not None:
        return number(abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1))
    exact = divide_exactly(left, right)
    # A symbol that divides may be 0, and then there is no quotient at all that the exact one could differ from.
    if exact is not None:
        return exact
    return _call("div", left, right) if b is not None and b > 0 else None


def divide_exactly(left: Expr, right: Expr) -> Expr | None:
    """Return the expression that times ``right``, a single term, is ``left``; ``None`` when there is none."""
    if len(right.terms) != 1:
        return ONE if right.terms and left == right else None
    divisor, factor = right.terms[0]
    total: Counter[Monomial] = Counter()
    for monomial, coefficient in left.terms:
        rest = Counter(monomial)
        rest.subtract(Counter(divisor))
        if coefficient % factor or min(rest.values(), default=0) < 0:
            return None
        total[tuple(sorted(rest.elements(), key=str))] += coefficient // factor
    return _canonical(total)


def remainder(left: Expr, right: Expr) -> Expr | None:
    """Return what Mod gives for operands that are at least 0; ``None`` when it cannot be told."""
    a, b = left.value, right.value
    if b is None or b <= 0 or left.least is None or left.least < 0:
        return None
    if a is not None:
        return number(a % b)
    return ZERO if divide_exactly(left, right) is not None else _call("mod", left, right)


def minimum(left: Expr, right: Expr) -> Expr | None:
    """Return the smaller one; ``None`` when it cannot be told."""
    order = compare(left, right)
    if order is not None:
        return left if order <= 0 else right
    return _call("min", *_sorted(left, right))


def maximum(left: Expr, right: Expr) -> Expr | None:
    """Return the larger one; ``None`` when it cannot be told."""
    order = compare(left, right)
    if order is not None:
        return left if order >= 0 else right
    return _call("max", *_sorted(left, right))


def compare(left: Expr, right: Expr) -> int | None:
    """Return a number below 0, 0 or above 0 as ``left`` is never above, equal to or never below ``right``.

    ``None`` when neither is certain.
    """
    if left == right:
        return 0
    ahead, behind = (left - right).least, (right - left).least
    if ahead is not None and ahead >= 0:
        return 1
    return -1 if behind is not None and behind >= 0 else None


def differs(left: Expr, right: Expr) -> bool:
    """Tell whether the two are never equal."""
    gaps = ((left - right).least, (right - left).least)
    return any(gap is not None and gap > 0 for gap in gaps)


def _call(function: str, left: Expr, right: Expr) -> Expr | None:
    for side in (left, right):
        if side.least is None or side.least < 0:
            return None
    return Expr((((Call(function, left, right),), 1),))


def _sorted(left: Expr, right: Expr) -> tuple[Expr, Expr]:
    return (left, right) if str(left) <= str(right) else (right, left)


def _canonical(total: Counter[Monomial]) -> Expr:
    terms = [(monomial, coefficient) for monomial, coefficient in total.items() if coefficient]
    if len(terms) > 1:
        terms.sort(key=lambda term: [str(atom) for atom in term[0]])
    return Expr(tuple(terms))


def _term(monomial: Monomial, coefficient: int) -> str:
    factors = [str(atom) for atom in monomial]
    return "*".join(factors if coefficient == 1 and factors else [str(coefficient), *factors])


ZERO = Expr(())
ONE = number(1)
