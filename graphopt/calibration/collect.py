"""One streaming run of a model over a data set for all the statistics that were asked for.

The values asked for become outputs of a copy of the model. They are read where the runtime computed them, without a
copy: that takes a third of the time of ReduceMin and ReduceMax nodes inside the graph (EfficientNet-Lite0, onnxruntime
1.31, x86), and those lose NaN.

Memory is that of the model, of the statistics, and of the values of one run. Where samples may be run in parts, a run
takes as many as have ``PART_BYTES`` of values. Where one sample, or one batch that cannot be divided, has more than
``RUN_BYTES``, the values are divided among several passes over the data. Neither depends on how much data there is.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from graphopt.ahead import core_count
from graphopt.analysis.statistics import Request, Statistics
from graphopt.calibration.cache import DataHash, Saved, Store
from graphopt.calibration.checks import is_float
from graphopt.calibration.datasets import Dataset, Feeds, samples_of
from graphopt.calibration.interrupts import deferred_interrupt
from graphopt.calibration.observers import Observer, observer
from graphopt.calibration.tapping import Tapped, within_reach
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.errors import UsageError
from graphopt.ir import Model, fingerprint
from graphopt.runtime import Session

PART_BYTES = 1 << 26
"""Values of about this size are computed at a time where a batch can be divided."""

RUN_BYTES = 1 << 29
"""Values of more than this size are not held at a time, unless a single one is larger."""

_MOST_THREADS = 8
"""Each thread that sums up has buffers of its own."""

_SAVE_SECONDS = 60.0
"""How much work a crash may cost when there is a cache."""

Progress = Callable[[int, int | None], None]
"""Called after each batch with the number done and the number of all, None when that is not known."""


def collect(
    model: Model,
    requests: Iterable[Request],
    data: Dataset,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    diagnostics: DiagnosticSink | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Statistics:
    """Run ``model`` over ``data`` and return the statistics asked for, in the order of ``requests``.

    ``cache`` is a folder in which statistics are kept: the same run is not repeated, and one that Ctrl-C cut short goes
    on after the batches that it had done. ``shard`` (i, n) takes only every n-th batch, from the i-th on, counted from
    0: the statistics of all n shards merge into those of one run.

    Values within nested graphs and functions, and those that are always empty, have no statistics; ``diagnostics`` says
    which. Raises UsageError for values that the model does not have, that are constant or no floats, for data that do
    not fit, and when a value becomes NaN or infinite; ModelError and TargetError when the model does not run.
    """
    if not 0 <= shard[0] < shard[1]:
        raise UsageError(f"shard {shard[0]} of {shard[1]}: shards are counted from 0")
    sink = diagnostics if diagnostics is not None else DiagnosticSink()
    asked = within_reach(model, requests, sink)
    if not asked:
        return Statistics()
    groups = list(_groups(model, asked, data))
    found = Statistics()
    # The products are many and small: values are shared among threads, and threads within a product would only wait.
    with threadpool_limits(1, "blas"):
        for number, group in enumerate(groups):
            run = _Pass(group, data, shard, sink, cache, _share(progress, number, len(groups)))
            found = found.merge(run.statistics())
    for name in dict.fromkeys(request.value for request in asked if request not in found):
        _note(sink, "CALIB002", "no statistics: it is empty for all of the data", name, Severity.WARNING)
    return Statistics((request, found[request]) for request in asked if request in found)


def _note(sink: DiagnosticSink, code: str, message: str, node: str | None, severity: Severity) -> None:
    sink.add(Diagnostic(severity, code, message, node, origin="calibration"))


def _share(progress: Progress | None, number: int, count: int) -> Progress:
    """Return a callback for one of ``count`` passes, so that the user sees one job."""

    def report(done: int, total: int | None) -> None:
        if progress is not None:
            progress(done + number * (total or 0), None if total is None else total * count)

    return report


@dataclass(frozen=True)
class _Group:
    """Requests that one pass over the data serves: ``part`` samples are run at a time."""

    tapped: Tapped
    requests: tuple[Request, ...]
    part: int


def _groups(model: Model, requests: list[Request], data: Dataset) -> Iterator[_Group]:
    """Divide the requests by the size of their values for the first sample, so that no pass holds too much."""
    names = list(dict.fromkeys(request.value for request in requests))
    everything = Tapped(model, names)
    sizes = everything.bytes_of(_first_sample(data))
    bundles: list[list[str]] = [[]]
    room = RUN_BYTES
    for name in names:
        size = sizes.get(name, 0)
        if size > room and bundles[-1]:
            bundles.append([])
            room = RUN_BYTES
        bundles[-1].append(name)
        room -= size
    for bundle in bundles:
        tapped = everything if len(bundles) == 1 else Tapped(model, bundle)
        wanted = tuple(request for request in requests if request.value in set(bundle))
        yield _Group(tapped, wanted, max(1, PART_BYTES // max(1, sum(sizes.get(name, 0) for name in bundle))))


def _first_sample(data: Dataset) -> Feeds:
    for feeds in data:
        return next(data.split(feeds, 1))
    raise UsageError("the data set is empty", where=data.source)


class _Pass:
    """One pass over the data, and what is summed up in it."""

    def __init__(
        self,
        group: _Group,
        data: Dataset,
        shard: tuple[int, int],
        diagnostics: DiagnosticSink,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        self._group = group
        self._data = data
        self._shard = shard
        self._progress = progress
        self._store = None if cache is None else Store(cache, self._key(), diagnostics)
        self._session: Session | None = None
        self._observers: dict[str, list[tuple[Request, Observer]]] = {}
        self._done = 0
        self._digest = ""
        self._torn = False
        self._adding: list[Future[None]] = []
        self._is_batch_over = False

    def _key(self) -> str:
        """Return the hash of all that the statistics depend on, the data apart."""
        facts = (fingerprint(self._group.tapped.model), sorted(map(repr, self._group.requests)), self._shard)
        return hashlib.sha256(repr((*facts, self._group.part)).encode()).hexdigest()

    def statistics(self) -> Statistics:
        """Go through the data. On Ctrl-C what was done is kept in the cache."""
        saved = None if self._store is None else self._store.load()
        with ThreadPoolExecutor(min(core_count(), _MOST_THREADS)) as pool:
            if saved is not None and self._store is not None and not self._run(saved, pool):
                self._store.remark("CALIB005", "the cache file is ignored: it was made from other data")
                saved = None
            if saved is None:
                self._run(None, pool)
        return self._result()

    def _result(self) -> Statistics:
        self._finish()
        pairs = [(request, item.result()) for items in self._observers.values() for request, item in items]
        return Statistics((request, result) for request, result in pairs if result is not None)

    def _start(self, saved: Saved | None) -> None:
        self._observers = {}
        for request in self._group.requests:
            item = observer(request)
            if saved is not None and request in saved.statistics:
                item.restore(saved.statistics[request])
            self._observers.setdefault(request.value, []).append((request, item))
        self._done = 0 if saved is None else saved.batches
        self._digest = "" if saved is None else saved.digest

    def _run(self, saved: Saved | None, pool: Executor) -> bool:
        """Run what ``saved`` does not cover yet; False when the data are not those that it was made from."""
        self._start(saved)
        covered, digest, number = self._done, DataHash(), 0
        kept_at = time.monotonic()
        try:
            for number, (first, feeds) in enumerate(self._batches(), start=1):
                if self._store is not None:
                    digest.add(feeds)
                if number == covered and digest.hexdigest() != self._digest:
                    return False
                if number > covered:
                    with deferred_interrupt():
                        self._torn = True
                        self._add_batch(feeds, first, pool)
                        self._done, self._digest = number, digest.hexdigest()
                        self._torn = False
                self._progress(number, self._count())
                if time.monotonic() - kept_at > _SAVE_SECONDS:
                    self._keep(covered)
                    kept_at = time.monotonic()
        except KeyboardInterrupt:
            self._keep(covered)
            raise
        if number < covered:
            return False
        self._keep(covered)
        return True

    def _keep(self, covered: int) -> None:
        if self._store is not None and not self._torn and self._done > covered:
            self._store.save(Saved(self._done, self._digest, self._result()))

    def _batches(self) -> Iterator[tuple[int, Feeds]]:
        """Yield the batches of this shard, each with the number of the samples before it."""
        first = 0
        for number, feeds in enumerate(self._data):
            if number % self._shard[1] == self._shard[0]:
                yield first, feeds
            first += samples_of(feeds)

    def _count(self) -> int | None:
        total = self._data.length()
        return None if total is None else len(range(self._shard[0], total, self._shard[1]))

    def _add_batch(self, feeds: Feeds, first: int, pool: Executor) -> None:
        for part in self._data.split(feeds, self._group.part):
            samples = samples_of(part)
            self._add(part, _Place(self._data.source, first, samples), pool)
            first += samples
        self._is_batch_over = True

    def _add(self, feeds: Feeds, place: _Place, pool: Executor) -> None:
        if self._session is None:
            self._session = self._group.tapped.session()
        computed: dict[str, Any] = {}
        if self._session is not None:
            accepted = {name: array for name, array in feeds.items() if name in self._session.accepts}
            computed = self._session.run(accepted, share=True)
        # The model has run meanwhile on what comes next.
        self._finish()
        # One thread has all of a value, so that the order of sums does not depend on the number of threads.
        self._adding = [
            pool.submit(_observe, name, computed[name] if name in computed else feeds.get(name), items, place)
            for name, items in self._observers.items()
        ]

    def _finish(self) -> None:
        """Wait until all that was run has been added up."""
        jobs, self._adding = self._adding, []
        wait(jobs)
        for job in jobs:
            job.result()
        for item in (item for items in self._observers.values() for _, item in items) if self._is_batch_over else ():
            item.end_batch()
        self._is_batch_over = False


def _observe(name: str, value: Any, items: list[tuple[Request, Observer]], place: _Place) -> None:
    array = _floats(value, name)
    if array.size == 0:
        return
    with np.errstate(invalid="ignore"):
        low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise place.error(array, name)
    try:
        for _, item in items:
            item.add(array, low, high)
    except UsageError as error:
        raise UsageError(error.message, where=name) from error


def _floats(array: Any, name: str) -> NDArray[Any]:
    """Return a value as float32 or float64."""
    if array is None:
        raise UsageError("no array for this input in the data, whose statistics are asked for", where=name)
    if not is_float(array.dtype):
        raise UsageError(f"statistics are for tensors of floats; this is {array.dtype}", where=name)
    floats: NDArray[Any] = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    return floats


@dataclass(frozen=True)
class _Place:
    """Which samples of the data set a run is about."""

    source: str
    first: int
    samples: int

    def error(self, array: NDArray[Any], name: str) -> UsageError:
        """Return the error for a value that is not finite, with the index of the first such sample."""
        index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]] if array.ndim else []
        which = f"samples {self.first} to {self.first + self.samples - 1}"
        if self.samples == 1:
            which = f"sample {self.first}"
        elif index and len(array) == self.samples:
            which = f"sample {self.first + index[0]}"
        kind = "NaN" if np.isnan(array).any() else "infinite"
        return UsageError(
            f"the value {name!r} becomes {kind} at {index}",
            where=f"{self.source}: {which}",
            hint="the model overflows on this input; leave it out of the data, or mend the model",
        )
