"""What 16 bits buy most, where only so many values may have them.

Noise goes away when all the nodes around a value have 16 bits, and where they meet others a pair more is needed to
convert. So nodes are taken together, value by value, each time those that save most for the pairs that they add.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from graphopt.quantization.cover import Cover, Move

_PRICED = 24
"""How many offers are priced each time, those with most to gain for a node first: pricing goes through the model."""
_FREE = 1e-4
"""What an offer costs at least: nodes between others may save conversions."""

Price = Callable[[Collection[Move]], float]
"""The part of all pairs that have 16 bits when these nodes do."""


def spend(cover: Cover, price: Price, most: float) -> list[Move]:
    """Return the moves, of a price of at most ``most``, that do away with as much noise as can be found."""
    taken: dict[Move, None] = {}
    while True:
        spent = price(taken)
        priced: list[tuple[float, tuple[Move, ...]]] = []
        for gain, group in _offers(cover, taken):
            costs = price({**taken, **dict.fromkeys(group)})
            if costs <= most:
                priced.append((gain / max(costs - spent, _FREE), group))
            if len(priced) == _PRICED:
                break
        if not priced:
            return list(taken)
        taken.update(dict.fromkeys(max(priced, key=lambda offer: offer[0])[1]))


def _offers(cover: Cover, taken: Collection[Move]) -> Iterator[tuple[float, tuple[Move, ...]]]:
    """Yield what may be taken next, with the noise it does away with at the worst output, most a node first."""
    output = int(np.argmax(cover.left(dict.fromkeys(taken))))
    missing: dict[frozenset[Move], float] = {}
    order: dict[frozenset[Move], tuple[Move, ...]] = {}
    for source in cover.sources:
        group = tuple(node for node in source.holders if node not in taken)
        if group:
            key = frozenset(group)
            missing[key] = missing.get(key, 0.0) + float(source.noise[output])
            order.setdefault(key, group)
    gains = {key: sum(noise for other, noise in missing.items() if other <= key) for key in missing}
    for key in sorted(gains, key=lambda key: -gains[key] / len(key)):
        if gains[key] > 0:
            yield gains[key], order[key]
