"""Timing several forms of one network in turns, so that whatever else the machine does meets them all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from graphopt.runtime import Session

# Idle threads of one session would otherwise spin on the cores that another is being timed on.
_QUIET = {"session.force_spinning_stop": "1"}


@dataclass(frozen=True)
class Stopwatch:
    """How to time: ``rounds`` turns of each model, each about ``turn_seconds`` long after ``warmup`` unmeasured runs.

    The rounds are divided among ``sessions``: where a session's buffers happen to lie makes up to 8 % of the time of a
    model of a millisecond.
    Other models have emptied the processor's caches before a turn begins, which the first run pays for.
    """

    rounds: int
    turn_seconds: float = 0.02
    sessions: int = 5
    warmup: int = 1

    def turn(self, session: Session, feed: Mapping[str, Any], runs: int) -> float:
        """Return the median seconds of ``runs`` runs in a row."""
        for _ in range(self.warmup):
            session.run(feed)
        seconds = []
        for _ in range(runs):
            before = time.perf_counter()
            session.run(feed)
            seconds.append(time.perf_counter() - before)
        return median(seconds)


def in_turns(models: Mapping[str, Path], feed: Mapping[str, Any], base: str, watch: Stopwatch) -> dict[str, float]:
    """Return, for each model, the median over all rounds of its seconds over those of ``base`` in the same round."""
    names = list(models)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        each = math.ceil(watch.rounds / watch.sessions)
        for start in range(0, watch.rounds, each):
            sessions = {name: Session(path, config=_QUIET) for name, path in models.items()}
            first = watch.turn(sessions[base], feed, 3)
            runs = max(1, min(50, math.ceil(watch.turn_seconds / first)))
            for index in range(start, min(start + each, watch.rounds)):
                seconds = {name: watch.turn(sessions[name], feed, runs) for name in rotated(names, index)}
                for name in names:
                    ratios[name].append(seconds[name] / seconds[base])
    finally:
        gc.enable()
    return {name: median(values) for name, values in ratios.items()}


def rotated(names: list[str], index: int) -> list[str]:
    """Return the names with another one first in each round, every second round backwards."""
    start = index % len(names)
    order = names[start:] + names[:start]
    return order if index % 2 == 0 else order[::-1]
