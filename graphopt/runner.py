"""Runs models for passes: the implementation of :class:`graphopt.pipeline.runner.Runner` on onnxruntime's CPU."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from graphopt.ahead import TOGETHER, ahead, core_count
from graphopt.analysis.statistics import Request, Statistics
from graphopt.analysis.taps import Tap
from graphopt.calibration import Dataset, random_inputs
from graphopt.calibration.collect import Progress, collect
from graphopt.calibration.datasets import Feeds, samples_of
from graphopt.calibration.sessions import session_of
from graphopt.calibration.tapping import Tapped
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, nodes
from graphopt.pipeline.runner import Outputs
from graphopt.runtime import Session, bench, measure

Metric = Callable[[list[dict[str, Any]]], float]
"""Gets the outputs of a model on all batches, one mapping a batch, and returns a number, higher is better."""

_PROFILED_RUNS = 12
_TIMED_SECONDS = 0.5
"""How long two models take turns at least: those of a millisecond need hundreds of turns for one percent."""
_WARM_UP = 2

_FOLDS, _BLOCKS = 4, 32
"""One of so many parts of the data is held out, taken from so many places."""


class ModelRunner:
    """Runs models on ``dataset``, None when the user gave none; see :class:`graphopt.pipeline.runner.Runner`.

    ``metric`` gets the outputs on the whole data set. ``cache``, ``progress`` and ``diagnostics`` are those of
    :func:`graphopt.calibration.collect.collect`. ``exact`` asks for integer kernels that never saturate, which those of
    an x86-64 CPU without VNNI do with weights of 8 bits: for models that are to run elsewhere.
    """

    def __init__(
        self,
        dataset: Dataset | None,
        *,
        metric: Metric | None = None,
        cache: Path | None = None,
        progress: Progress | None = None,
        diagnostics: DiagnosticSink | None = None,
        exact: bool = False,
    ) -> None:
        self._config = {"session.x64quantprecision": "1"} if exact else {}
        self.used = False
        """Whether anybody asked for something that the calibration data was needed for."""
        self._dataset = dataset
        self._metric = metric
        self._cache = cache
        self._progress = progress
        self._diagnostics = diagnostics

    @property
    def has_data(self) -> bool:
        """Whether there is calibration data."""
        return self._dataset is not None

    @property
    def samples(self) -> int | None:
        """How many samples of calibration data there are, None when that is not known beforehand."""
        return None if self._dataset is None else self._dataset.samples

    def folds(self) -> tuple[ModelRunner, ModelRunner]:
        """Return one that runs models on three quarters of the data, and one that runs them on the rest.

        What lies together in the data stays together. Both have all of it where it cannot be divided. How many samples
        they have is known where all batches are of one size.
        """
        data = self._data()
        count = data.length()
        if count is None or count < _FOLDS:
            return self, self
        block = max(1, count // _BLOCKS)
        held = [number for number in range(count) if number // block % _FOLDS == _FOLDS - 1]
        per = None if data.samples is None or data.samples % count else data.samples // count
        parts = (
            data.part(
                lambda number: number // block % _FOLDS != _FOLDS - 1,
                count - len(held),
                _scaled(per, count - len(held)),
            ),
            data.part(lambda number: number // block % _FOLDS == _FOLDS - 1, len(held), _scaled(per, len(held))),
        )
        exact = bool(self._config)
        fitting, rest = (
            ModelRunner(part, progress=self._progress, diagnostics=self._diagnostics, exact=exact) for part in parts
        )
        return fitting, rest

    def collect(self, model: Model, requests: Sequence[Request]) -> Statistics:
        """Run ``model`` once over all the data and return the statistics asked for.

        Raises UsageError without data, and all that :func:`graphopt.calibration.collect.collect` raises.
        """
        return collect(
            model,
            requests,
            self._data(),
            cache=self._cache,
            progress=self._progress,
            diagnostics=self._diagnostics,
        )

    def outputs(self, model: Model, *, limit: int | None = None) -> Iterator[Outputs]:
        """Yield the outputs of ``model`` by name, one mapping for each batch, of at most ``limit`` samples in all.

        A batch that cannot be divided is run whole. Raises UsageError without data, ModelError and TargetError.
        """
        return (outputs for _, outputs in self.variants(model, [{}], limit=limit))

    def variants(
        self, model: Model, settings: Sequence[Outputs], *, limit: int | None = None
    ) -> Iterator[tuple[int, Outputs]]:
        """Run ``model`` on each batch, of at most ``limit`` samples in all, once for each of ``settings``.

        A setting holds arrays for inputs that the data does not have. Yields the setting's index and the outputs.
        A batch that cannot be divided is run whole. Raises UsageError without data, ModelError and TargetError.
        """
        data = self._data()
        session = session_of(model, optimize=True, threads=core_count(), config=self._config)
        left = limit
        for feeds in data:
            if left is not None and left <= 0:
                return
            part = feeds if left is None else next(data.split(feeds, left))
            accepted = _accepted(session, part)
            for index, setting in enumerate(settings):
                yield index, session.run({**accepted, **setting})
            left = None if left is None else left - samples_of(part)

    def trace(
        self,
        taps: Sequence[Tap],
        feeds: Iterable[Sequence[Outputs]] | None = None,
        *,
        samples: int | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[Outputs, ...]]:
        """Run several models side by side and yield, for each batch, what each tap wants, by name.

        Each item of ``feeds`` holds the inputs of each model, and what its tap is given; None runs all of them on the
        calibration data, ``samples`` at a time and ``limit`` in all at most. The arrays must not be written to. Raises
        UsageError without data, ModelError and TargetError.
        """
        tapped = [Tapped(tap.model, tap.wanted, tap.given, loose=tap.loose) for tap in taps]
        together = min(core_count(), TOGETHER)
        sessions = [item.session(floats=False, threads=core_count() // together) for item in tapped]

        def run(batch: Sequence[Outputs]) -> tuple[Outputs, ...]:
            pairs = zip(tapped, sessions, batch, strict=True)
            return tuple(_wanted(item, session, arrays) for item, session, arrays in pairs)

        batches = self._parts(len(taps), samples, limit) if feeds is None else feeds
        # Several batches, each on few threads, take less time than one after the other on all.
        yield from ahead(run, batches, together)

    def _parts(self, count: int, samples: int | None, limit: int | None) -> Iterator[Sequence[Outputs]]:
        data, done = self._data(), 0
        for feeds in data:
            for part in [feeds] if samples is None else data.split(feeds, samples):
                if limit is not None and done >= limit:
                    return
                run = part if limit is None else next(data.split(part, limit - done))
                yield [run] * count
                done += samples_of(run)

    def metric(self, model: Model) -> float | None:
        """Return the task metric of ``model`` on all the data, None when there is no metric or no data.

        Raises UsageError when the metric fails, ModelError and TargetError.
        """
        if self._metric is None or self._dataset is None:
            return None
        return measure(self._metric, list(self.outputs(model)))

    def latency_ratio(self, reference: Model, candidate: Model, *, rounds: int = 20) -> float:
        """Run both in turns on one thread and return the median of candidate's seconds over reference's.

        They run on the first sample of the data (the first batch where it cannot be divided), or on random inputs.
        """
        config = {"session.force_spinning_stop": "1"}
        first, second = (session_of(model, optimize=True, config=config) for model in (reference, candidate))
        result = bench(first, second, self._one(first), runs=rounds, min_seconds=_TIMED_SECONDS)
        assert result.ratio is not None
        return result.ratio.median

    def node_seconds(self, model: Model) -> dict[str, float]:
        """Return the median seconds of each kernel of a run on one thread, by the name of the node it implements.

        The runtime merges nodes: the seconds of a Conv include those of the Clip behind it, which then has no entry. A
        kernel that stands for no one node of ``model`` (a reordering for another kernel, say) goes by its own name.
        """
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            session = session_of(model, optimize=True, profile=Path(folder) / "trace")
            feeds = self._one(session)
            for _ in range(_PROFILED_RUNS):
                session.run(feeds)
            events = json.loads(session.end_profiling().read_text())
        return _seconds(events, model)

    def _data(self) -> Dataset:
        if self._dataset is None:
            raise UsageError("there is no calibration data", hint="give inputs of your own with --data")
        self.used = True
        return self._dataset

    def _one(self, session: Session) -> Feeds:
        if self._dataset is None:
            return random_inputs(session.inputs, seed=0)
        for feeds in self._dataset:
            return _accepted(session, next(self._dataset.split(feeds, 1)))
        raise UsageError("the data set is empty", where=self._dataset.source)


def _accepted(session: Session, feeds: Mapping[str, Any]) -> Feeds:
    """Leave out inputs that a pass has removed."""
    return {name: array for name, array in feeds.items() if name in session.accepts}


def _scaled(each: int | None, count: int) -> int | None:
    return None if each is None else each * count


def _wanted(tapped: Tapped, session: Session | None, feeds: Outputs) -> Outputs:
    """Run once and return the values wanted; those that the feeds hold already come from there."""
    found: Outputs = {} if session is None else session.run(_accepted(session, feeds), share=True)
    return {name: found[name] if name in found else feeds[name] for name in tapped.names}


def _seconds(events: Sequence[Mapping[str, Any]], model: Model) -> dict[str, float]:
    """Return the median over runs of the seconds of each kernel in a trace, those of one node added up."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, found = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            kernel = name.removesuffix("_kernel_time"), str(found.get("op_name", ""))
            seconds.setdefault(kernel, []).append(event["dur"] * 1e-6)
    origins = _Origins(model)
    result: dict[str, float] = {}
    for (name, operator), values in seconds.items():
        # A kernel name that several kernels share, or that runs in a loop, has a multiple of the runs.
        each = len(values) // _PROFILED_RUNS or 1
        runs = [sum(values[start : start + each]) for start in range(0, len(values), each)]
        origin = origins.of(name, operator)
        result[origin] = result.get(origin, 0.0) + median(runs[_WARM_UP:] or runs)
    return result


class _Origins:
    """Tells which node of a model a kernel stands for, by the kernel's name."""

    # What the runtime's own rewrites make of names: layouts, copies, fusions, and numbers for uniqueness.
    _MARKS = re.compile(r"^fused |(_token_\d+|_nchwc|/duplicated|/MatMulScaleFusion/?|_quant|/MatMulAddFusion/?)$")
    # How far before the last node that a kernel was merged from the node is that it is named after.
    _MERGED = 4

    def __init__(self, model: Model) -> None:
        self._nodes = {node.name: node for node in nodes(model) if node.name}
        self._producers = {value.name: node for node in nodes(model) for value in node.outputs if value.name}

    def of(self, kernel: str, operator: str) -> str:
        """Return the name of the node, or ``kernel`` when there is none."""
        name = kernel
        while name not in self._nodes and name not in self._producers:
            shorter = self._MARKS.sub("", name)
            if shorter == name:
                return kernel
            name = shorter
        node = self._nodes[name] if name in self._nodes else self._same(self._producers[name], operator)
        return node.name or kernel

    def _same(self, last: Node, operator: str) -> Node:
        """Return the node of the kernel's kind among those it was merged from; layouts name kernels by outputs."""
        node: Node | None = last
        for _ in range(self._MERGED):
            if node is None:
                return last
            if operator.endswith(node.op_type):
                return node
            source = node.inputs[0] if node.inputs else None
            node = source.producer() if source is not None else None
        return last
