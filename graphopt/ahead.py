"""Work done in other threads before its result is asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


TOGETHER = 4
"""Items that are worked on at the same time at most: what each gives takes memory."""


def core_count() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """Yield ``function`` of each item, in their order; ``threads`` work on those that follow the one yielded last.

    By default that is one for each core, a few at most.

    Items are taken one by one, in the thread of the caller. What the function raises comes in its result's place.
    """
    waiting: deque[Future[Result]] = deque()
    threads = min(core_count(), TOGETHER) if threads is None else threads
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
