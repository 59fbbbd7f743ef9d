"""A network run over the data again and again, from one resting place to the next.

What it has at a resting place lies in files, so that memory does not grow with the data and nothing before it is run
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from numpy.typing import NDArray

from graphopt.analysis.taps import Tap
from graphopt.ir import Model, Value
from graphopt.ir.query import reads
from graphopt.pruning.stacking import Outputs, Traces, can_stack, stacked
from graphopt.pruning.stored import Stored

Found = Iterator[tuple[int, Outputs]]
"""A batch's number, and arrays by the names of values."""

_WAITING = 4
"""Arrays that may wait to be written."""


class Relay:
    """Runs ``model``, ``samples`` at a time and ``limit`` in all. At first it starts from the data.

    A model that takes one sample at a time is run on several if ``stacks``; None finds out whether it can be.
    A context manager: what is stored goes with it.
    """

    def __init__(
        self, runner: Traces, model: Model, samples: int, limit: int | None = None, *, stacks: bool | None = None
    ) -> None:
        self._runner = runner
        self._model = model
        self._samples = samples
        self._limit = limit
        self._count: int | None = None
        self._loose = samples > 1 and (can_stack(model, runner) if stacks is None else stacks)
        self._stored: dict[str, Stored] = {}
        self._ahead: dict[str, Stored] = {}
        self._spare: list[Stored] = []
        # One thread for all files: what is read or written next does not keep the network waiting.
        self._files = ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what is stored."""
        self._files.shutdown()
        for stored in (*self._spare, *self._stored.values(), *self._ahead.values()):
            stored.close()

    def run(
        self,
        wanted: Sequence[str],
        model: Model | None = None,
        settings: Sequence[Outputs] = ({},),
        only: Callable[[int], bool] | None = None,
        ahead: Sequence[str] = (),
    ) -> Found:
        """Yield for each batch its number and the values ``wanted`` of the model, or of another in its place.

        Each batch is run once for each of ``settings``, which hold arrays for inputs that the data does not have.
        ``only`` tells by its number whether a batch is run. ``ahead`` names what the next move will want and this run
        can give; it comes with the values.
        """
        # Whether a value is wanted once more must not hang on how far the files are.
        self._settle()
        further = [name for name in ahead if self._lacking((name,)) != ()]
        names = tuple(dict.fromkeys((*wanted, *further)))
        tap = Tap(model or self._model, names, tuple(self._stored), self._loose)
        numbers: deque[int] = deque()
        for (found,) in self._runner.trace([tap], self._feeds(tap, settings, only, numbers)):
            number = numbers.popleft()
            for name in further:
                self._put(name, number, found[name])
            yield number, found

    def move(self, names: Sequence[str]) -> None:
        """Go on to where ``names`` are all that the rest of the model reads."""
        self._settle()
        lacking = self._lacking(names)
        if lacking != ():
            only = None if lacking is None else frozenset(lacking).__contains__
            ran = sum(1 for _ in self.run(names, only=only, ahead=names))
            self._count = ran if self._count is None else self._count
        self._settle()
        known = {**self._stored, **self._ahead}
        self._stored, self._ahead = {name: known.pop(name) for name in names}, {}
        for stored in known.values():
            stored.clear()
            self._spare.append(stored)

    def _lacking(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return the batches of which not all values are stored, None (all) while nobody knows how many there are."""
        if self._count is None:
            return None
        stored = [self._ahead.get(name, ()) for name in names if name not in self._stored]
        return tuple(number for number in range(self._count) if any(number not in of_name for of_name in stored))

    def _put(self, name: str, number: int, array: NDArray[Any]) -> None:
        stored = self._ahead.get(name)
        if stored is None:
            stored = self._ahead[name] = self._spare.pop() if self._spare else Stored()
        if number not in stored:
            while len(self._writing) >= _WAITING:
                self._writing.popleft().result()
            self._writing.append(self._files.submit(stored.write, number, array))

    def _settle(self) -> None:
        while self._writing:
            self._writing.popleft().result()

    def _feeds(
        self, tap: Tap, settings: Sequence[Outputs], only: Callable[[int], bool] | None, numbers: deque[int]
    ) -> Iterator[Sequence[Outputs]]:
        """Yield the model's inputs and what it is given, and note the batch's number."""
        for number, found in self._from_data(only) if self._count is None else self._from_files(tap, only):
            for setting in settings:
                numbers.append(number)
                yield ({**found, **setting},)

    def _from_data(self, only: Callable[[int], bool] | None) -> Found:
        inputs = [str(value.name) for value in self._model.graph.inputs if not value.is_initializer()]
        tap = Tap(self._model, tuple(inputs))
        given = (found for (found,) in self._runner.trace([tap], samples=self._samples, limit=self._limit))
        batches = enumerate(stacked(given, self._samples) if self._loose else given)
        yield from ((number, found) for number, found in batches if only is None or only(number))

    def _from_files(self, tap: Tap, only: Callable[[int], bool] | None) -> Found:
        """Read one batch ahead."""
        some = {name: self._stored[name] for name in _needed(tap)}
        reading: deque[tuple[int, Future[Outputs]]] = deque()
        for number in range(self._count or 0):
            if only is None or only(number):
                reading.append((number, self._files.submit(_read, some, number)))
            if len(reading) > 1:
                first, found = reading.popleft()
                yield first, found.result()
        yield from ((number, found.result()) for number, found in reading)


def _read(some: Mapping[str, Stored], number: int) -> Outputs:
    return {name: stored.read(number) for name, stored in some.items()}


def _needed(tap: Tap) -> list[str]:
    """Return those of the values given that what is wanted is computed from."""
    values: dict[str | None, Value] = {value.name: value for value in tap.model.graph.inputs}
    values |= {value.name: value for node in tap.model.graph for value in node.outputs}
    left = [values[name] for name in tap.wanted if name in values]
    seen = set(left)
    while left:
        value = left.pop()
        node = None if value.name in tap.given else value.producer()
        further = [] if node is None else [read for read in reads(node) if read not in seen]
        seen.update(further)
        left.extend(further)
    return [name for name in tap.given if values.get(name) in seen]
