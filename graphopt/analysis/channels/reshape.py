"""Which axes of a reshaped value are which: the digits that the positions before and after share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from graphopt.analysis.channels.ties import Ties
from graphopt.analysis.symbolic import Expr
from graphopt.ir import Node, Value


@dataclass(frozen=True)
class Block:
    """Axes before and after that hold the same elements in the same order, whatever the other axes are."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def blocks(before: Sequence[Expr], after: Sequence[Expr]) -> list[Block]:
    """Return the smallest blocks of two shapes of one array, from both ends on, as far as the sizes are known.

    Axes of size 1 are in no block.
    """
    one = [axis for axis, size in enumerate(before) if size.value != 1]
    two = [axis for axis, size in enumerate(after) if size.value != 1]
    tail = _from_the_end(one, two, before, after)
    rest = [axis for axis in one if all(axis not in block.before for block in tail)]
    others = [axis for axis in two if all(axis not in block.after for block in tail)]
    head = _from_the_end(rest[::-1], others[::-1], before, after)
    return [Block(block.before[::-1], block.after[::-1]) for block in head] + tail[::-1]


def _from_the_end(one: list[int], two: list[int], before: Sequence[Expr], after: Sequence[Expr]) -> list[Block]:
    found: list[Block] = []
    while one and two:
        block = _last_block(one, two, before, after)
        if block is None:
            return found
        one, two = one[: -len(block.before)], two[: -len(block.after)]
        found.append(block)
    return found


def _last_block(one: list[int], two: list[int], before: Sequence[Expr], after: Sequence[Expr]) -> Block | None:
    if before[one[-1]] == after[two[-1]]:
        return Block((one[-1],), (two[-1],))
    m, n = 1, 1
    left, right = before[one[-1]].value, after[two[-1]].value
    while left is not None and right is not None and left != right:
        if left < right:
            m += 1
            left = _times(left, one, m, before)
        else:
            n += 1
            right = _times(right, two, n, after)
    return None if left is None or right is None else Block(tuple(one[-m:]), tuple(two[-n:]))


def _times(product: int, axes: list[int], count: int, sizes: Sequence[Expr]) -> int | None:
    size = sizes[axes[-count]].value if count <= len(axes) else None
    # A size of 0 makes products equal that are not: nothing in such an array can be told apart.
    return None if not size else product * size


def tie_block(ties: Ties, node: Node, source: Value, target: Value, block: Block) -> bool:
    """Tie the axes of a block; ``False`` when they cut each other so that they share no digits."""
    first = [ties.number((source, axis)) for axis in block.before]
    second = [ties.number((target, axis)) for axis in block.after]
    if None in first or None in second:
        return False
    one, two = [n for n in first if n is not None], [n for n in second if n is not None]
    bounds = sorted({*_strides(ties, one), *_strides(ties, two)})
    if any(high % low for low, high in pairwise(bounds)):
        return False
    atoms = list(pairwise(bounds))[::-1]
    parts_one, parts_two = _atoms_of(ties, one, atoms), _atoms_of(ties, two, atoms)
    numbers = _numbered(ties, parts_one, parts_two, atoms)
    for parts in (parts_one, parts_two):
        for axis, held in parts.items():
            if len(held) > 1:
                ties.split(node, axis, [numbers[atom] for atom in held])
            elif numbers[held[0]] != axis:
                ties.tie_numbers(axis, numbers[held[0]])
    return True


Atom = tuple[int, int]


def _strides(ties: Ties, axes: list[int]) -> list[int]:
    """Return the elements between neighbours along each axis, and the elements of all."""
    found = [1]
    for axis in reversed(axes):
        found.append(found[-1] * ties.lengths[axis])
    return found


def _atoms_of(ties: Ties, axes: list[int], atoms: list[Atom]) -> dict[int, list[Atom]]:
    """Return the digits that each axis holds, outer before inner."""
    found = {}
    bounds = _strides(ties, axes)[::-1]
    for axis, high, low in zip(axes, bounds, bounds[1:], strict=False):
        found[axis] = [atom for atom in atoms if low <= atom[0] and atom[1] <= high]
    return found


def _numbered(ties: Ties, one: dict[int, list[Atom]], two: dict[int, list[Atom]], atoms: list[Atom]) -> dict[Atom, int]:
    """Return an axis for each digit: one that holds nothing else where there is one, else one of no value."""
    alone = {held[0]: axis for parts in (two, one) for axis, held in parts.items() if len(held) == 1}
    return {atom: alone[atom] if atom in alone else ties.inner(atom[1] // atom[0]) for atom in atoms}
