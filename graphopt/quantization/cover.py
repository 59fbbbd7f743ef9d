"""Which sources of noise to do away with, so that the rest is below a bound and little is lost for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.ir import Node
from graphopt.quantization.sensitivity import Noise, Source

Move = Node
"""A node to put back to float, or to 16 bits."""


@dataclass(frozen=True)
class Cover:
    """Chooses moves. ``costs`` are the multiply-accumulates of the nodes, ``scale`` what noise on paper has to be
    multiplied by to be that which was measured.
    """

    sources: Collection[Source]
    costs: Mapping[Node, int]
    scale: Noise

    @classmethod
    def scaled(
        cls,
        sources: Collection[Source],
        costs: Mapping[Node, int],
        taken: Collection[Move],
        measured: Noise,
    ) -> Cover:
        """Return a cover scaled to the noise that was measured after the moves ``taken``."""
        paper = cls(sources, costs, np.ones_like(measured)).left(dict.fromkeys(taken))
        usable = np.isfinite(measured) & np.isfinite(paper) & (paper > 0)
        return cls(sources, costs, np.divide(measured, paper, out=np.ones_like(measured), where=usable))

    def left(self, taken: Mapping[Move, None]) -> Noise:
        """Return the noise that is left after the moves ``taken``."""
        return self.scale * sum(
            (source.noise for source in self.sources if self._alive(source, taken)), np.zeros_like(self.scale)
        )

    def extend(self, taken: Mapping[Move, None], goal: float) -> list[Move]:
        """Return at least one further move, and as many as leave no more than ``goal`` at each output.

        It is empty when nothing is left to do.
        """
        added: list[Move] = []
        while not added or float(self.left({**taken, **dict.fromkeys(added)}).max()) > goal:
            move = self._best({**taken, **dict.fromkeys(added)})
            if move is None:
                break
            added.append(move)
        # What was taken early for being cheap may not be needed any more beside what was taken later.
        return self.reduced(added, goal, taken) or added[:1]

    def reduced(self, moves: Collection[Move], goal: float, taken: Mapping[Move, None] | None = None) -> list[Move]:
        """Return those of ``moves`` that are needed besides ``taken`` for ``goal``, the dear ones dropped first."""
        needed = list(moves)
        for move in sorted(moves, key=lambda move: -self._cost(move)):
            fewer = [other for other in needed if other is not move]
            if float(self.left({**(taken or {}), **dict.fromkeys(fewer)}).max()) <= goal:
                needed = fewer
        return needed

    def _alive(self, source: Source, taken: Mapping[Move, None]) -> bool:
        return any(node not in taken for node in source.holders)

    def _best(self, taken: Mapping[Move, None]) -> Move | None:
        """Return the move that saves most noise at the worst output for its cost.

        A node is credited with its part of what it shares with others: only all of them together make that go away.
        """
        output = int(np.argmax(self.left(taken)))
        gains: dict[Move, float] = {}
        for source in self.sources:
            if not self._alive(source, taken):
                continue
            holders = [node for node in source.holders if node not in taken]
            for node in holders:
                gains[node] = gains.get(node, 0.0) + float(source.noise[output]) / len(holders)
        return max(gains, key=lambda move: gains[move] / self._cost(move), default=None)

    def _cost(self, move: Move) -> float:
        """Return what a move costs: nodes without multiplications are not free."""
        return self.costs.get(move, 0) + max(sum(self.costs.values()) / max(len(self.costs), 1) / 100, 1.0)
