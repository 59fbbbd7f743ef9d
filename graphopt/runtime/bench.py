"""How long a model takes, and how two models compare when they run in turns on the same machine.

Other work on a machine comes and goes within seconds; models that take turns meet the same of it, so the ratio of
neighbouring runs is far steadier than the ratio of two medians taken one after the other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import UsageError
from graphopt.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 10th and 90th percentile, and smallest of a list of numbers."""

    median: float
    p10: float
    p90: float
    min: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Seconds a run of ``a`` and ``b``, and ``ratio``: seconds of b over a, pair by pair (below 1: b is faster)."""

    a: Spread
    b: Spread | None
    ratio: Spread | None
    runs: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def render(self) -> str:
        """Return a text table in milliseconds."""
        lines = [f"{'':6}{'median':>10}{'p10':>10}{'p90':>10}{'min':>10}"]
        for name, spread, scale in (("a ms", self.a, 1e3), ("b ms", self.b, 1e3), ("b/a", self.ratio, 1.0)):
            if spread is not None:
                cells = (spread.median, spread.p10, spread.p90, spread.min)
                lines.append(f"{name:6}" + "".join(f"{value * scale:10.4g}" for value in cells))
        lines.append(f"{self.runs} runs each, {self.threads} thread{'' if self.threads == 1 else 's'}")
        return "\n".join(lines)


def bench(
    a: str | Path | bytes | Session,
    b: str | Path | bytes | Session | None = None,
    feeds: Mapping[str, Any] | None = None,
    *,
    runs: int = 20,
    warmup: int = 3,
    threads: int = 1,
    min_seconds: float = 1.0,
) -> BenchResult:
    """Time ``a``, and ``b`` in turns with it, on ``feeds`` (arrays by input name, the same for both).

    A round runs each model once; who goes first changes from round to round. There are at least ``runs`` rounds, and
    more until ``min_seconds`` have passed. ``warmup`` rounds before them do not count. Raises UsageError for a number
    out of range or feeds that do not fit, ModelError when a model does not run.
    """
    if runs < 1 or warmup < 0 or threads < 0 or min_seconds < 0:
        raise UsageError("runs must be at least 1; warmup, threads and min_seconds at least 0")
    sessions = [_session(m, threads) for m in ((a,) if b is None else (a, b))]
    given = dict(feeds or {})
    mine = [{k: v for k, v in given.items() if k in s.accepts or k not in sessions[0].accepts} for s in sessions]
    for _ in range(warmup):
        for session, feed in zip(sessions, mine, strict=True):
            session.run(feed)
    seconds = _rounds(sessions, mine, runs, min_seconds)
    first = _spread(seconds[0])
    if b is None:
        return BenchResult(first, None, None, len(seconds[0]), threads)
    ratio = [y / x for x, y in zip(*seconds, strict=True)]
    return BenchResult(first, _spread(seconds[1]), _spread(ratio), len(seconds[0]), threads)


def _session(model: str | Path | bytes | Session, threads: int) -> Session:
    if isinstance(model, Session):
        return model
    # Idle threads of one model would otherwise spin on the cores that the other is being timed on.
    return Session(model, threads=threads, config={"session.force_spinning_stop": "1"})


def _rounds(
    sessions: Sequence[Session], feeds: Sequence[Mapping[str, Any]], runs: int, min_seconds: float
) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in sessions]
    order = list(range(len(sessions)))
    clock = time.perf_counter
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        while len(seconds[0]) < runs or clock() - start < min_seconds:
            for index in order:
                before = clock()
                sessions[index].run(feeds[index])
                seconds[index].append(clock() - before)
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return seconds


def _spread(values: Sequence[float]) -> Spread:
    p10, median, p90 = (float(v) for v in np.percentile(values, (10, 50, 90)))
    return Spread(median, p10, p90, min(values))
