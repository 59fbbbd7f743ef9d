"""What the original network has where layers are refit to it: run once for as many of them as memory lets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import NDArray

from graphopt.ir import Model, Node, Value
from graphopt.ir.query import shape_of
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import resting_places
from graphopt.pruning.stored import Stored

_BYTES = 1 << 28
"""Bytes of results that are had of a batch at a time."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A value of the network by its ``name``, and what of it to ``keep``.

    Nodes before ``since`` give nothing that it is computed from but by way of what nodes from there on read.
    """

    value: Value
    since: Node
    keep: Callable[[NDArray[Any]], NDArray[Any]]

    @property
    def name(self) -> str:
        """The value's name."""
        return str(self.value.name)

    @property
    def bytes(self) -> int:
        """The size of one sample, a whole bundle's where it is not known."""
        _, *sizes = shape_of(self.value) or (None, None)
        known = [size for size in sizes if isinstance(size, int)]
        return 4 * math.prod(known) if len(known) == len(sizes) else _BYTES


class Reference:
    """Gives what is ``wanted`` of ``model``, which ``relay`` runs ``samples`` at a time.

    A context manager: what is stored goes with it.
    """

    def __init__(self, relay: Relay, model: Model, wanted: Sequence[Wanted], samples: int) -> None:
        self._relay = relay
        self._bundles = _bundles(wanted, samples)
        self._stops = resting_places(model, [bundle[0].since for bundle in self._bundles])
        self._next = 0
        self._kept: dict[Wanted, Stored] = {}
        self._spare: list[Stored] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what is stored."""
        for stored in (*self._spare, *self._kept.values()):
            stored.close()

    def of(self, wanted: Wanted) -> Stored:
        """Return what is kept of a value, by the number of the batch.

        It is there until one of a later bundle is asked for: they are asked for in their order. Raises GraphOptError.
        """
        while wanted not in self._kept:
            self._run()
        return self._kept[wanted]

    def _run(self) -> None:
        bundle, stop = self._bundles[self._next], self._stops[self._next]
        self._next += 1
        if stop is not None:
            self._relay.move(stop)
        following = next((later for later in self._stops[self._next :] if later is not None), ())
        for stored in self._kept.values():
            stored.clear()
            self._spare.append(stored)
        self._kept = {wanted: self._spare.pop() if self._spare else Stored() for wanted in bundle}
        for number, found in self._relay.run([wanted.name for wanted in bundle], ahead=following):
            for wanted, stored in self._kept.items():
                stored.write(number, wanted.keep(found[wanted.name]))


def _bundles(wanted: Sequence[Wanted], samples: int) -> list[list[Wanted]]:
    """Cut a sequence up so that a batch of no part is too large; what is of one value stays together."""
    bundles: list[list[Wanted]] = []
    size = 0
    for item in wanted:
        is_new = not bundles or item.value is not bundles[-1][-1].value
        size += item.bytes * samples if is_new else 0
        if bundles and (not is_new or size <= _BYTES):
            bundles[-1].append(item)
        else:
            bundles.append([item])
            size = item.bytes * samples
    return bundles
