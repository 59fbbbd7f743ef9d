"""How much memory a process and its children take while something runs in it. Needs nothing but Python."""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType


class PeakMemory:
    """Within a ``with``: watches the anonymous memory of this process and its children.

    ``megabytes`` is the largest sum seen, looked at a hundred times a second; where the system does not tell, the
    largest resident set.
    """

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()
        self.megabytes = self.megabytes or high_water_megabytes()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.megabytes = max(self.megabytes, anonymous_megabytes())


def anonymous_megabytes() -> float:
    """Return the anonymous memory of this process and its descendants; 0 where the system does not say."""
    family = descendants(os.getpid())
    if len(family) == 1:
        return status_megabytes(Path("/proc/self/status"), "RssAnon:")
    # Forked processes share pages: each counts its part only. Reading that takes longer.
    return sum(status_megabytes(Path(f"/proc/{process}/smaps_rollup"), "Pss_Anon:") for process in family)


def descendants(process: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    found = [process]
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            listed = children.read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        found += [descendant for child in listed for descendant in descendants(int(child))]
    return found


def status_megabytes(path: Path, key: str) -> float:
    """Return a line's kilobytes in MB; 0 when the process has ended or there is no such line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(key)), 0.0)


def high_water_megabytes() -> float:
    """Return the largest resident set of this process, libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
