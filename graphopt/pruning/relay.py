"""Two networks run side by side over the same data, from one resting place to the next.

What both have at a resting place lies in files, so that memory does not grow with the data and nothing before it is run
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from numpy.typing import NDArray

from graphopt.analysis.taps import Tap
from graphopt.ir import Model, Value
from graphopt.ir.query import reads
from graphopt.pruning.stacking import Outputs, Traces, stacked, stacks
from graphopt.pruning.stored import Stored

Names = Sequence[Sequence[str]]
"""Names of values, those of each model."""

Found = Iterator[tuple[int, tuple[Outputs, ...]]]
"""A batch's number, and what there is of each model."""

_WAITING = 4
"""Arrays that may wait to be written."""


class Relay:
    """Runs ``models`` side by side, ``samples`` at a time and ``limit`` in all. At first they start from the data.

    A context manager: what is stored goes with it.
    """

    def __init__(self, runner: Traces, models: Sequence[Model], samples: int, limit: int | None = None) -> None:
        self._runner = runner
        self._models = tuple(models)
        self._samples = samples
        self._limit = limit
        self._count: int | None = None
        self._loose = samples > 1 and all(stacks(model, runner) for model in models)
        self._stored: list[dict[str, Stored]] = [{} for _ in models]
        self._ahead: list[dict[str, Stored]] = [{} for _ in models]
        self._spare: list[Stored] = []
        # One thread for all files: what is read or written next does not keep the networks waiting.
        self._files = ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what is stored."""
        self._files.shutdown()
        for stored in (*self._spare, *(item for items in (*self._stored, *self._ahead) for item in items.values())):
            stored.close()

    def run(
        self,
        wanted: Names,
        models: Sequence[Model] | None = None,
        settings: Sequence[Outputs] = ({},),
        only: Callable[[int], bool] | None = None,
        ahead: Names = (),
    ) -> Found:
        """Yield for each batch its number and the values ``wanted`` of each model, or of others in their places.

        Each batch is run once for each of ``settings``, which hold arrays for inputs that the data does not have.
        ``only`` tells by its number whether a batch is run. ``ahead`` names what of each model the next move will want
        and this run can give; it comes with the values.
        """
        # Whether a value is wanted once more must not hang on how far the files are.
        self._settle()
        further = [
            [name for name in names if self._lacking(index, (name,)) != ()]
            for index, names in enumerate(ahead or ((),) * len(self._models))
        ]
        taps = [
            Tap(model, tuple(dict.fromkeys((*names, *more))), tuple(stored), self._loose)
            for model, names, more, stored in zip(models or self._models, wanted, further, self._stored, strict=True)
        ]
        numbers: deque[int] = deque()
        for found in self._runner.trace(taps, self._feeds(taps, settings, only, numbers)):
            number = numbers.popleft()
            for index, names in enumerate(further):
                for name in names:
                    self._put(index, name, number, found[index][name])
            yield number, found

    def move(self, names: Names) -> None:
        """Go on to where ``names``, some of each model, are all that the rest of it reads."""
        self._settle()
        lacking = [self._lacking(index, some) for index, some in enumerate(names)]
        for numbers in dict.fromkeys(lacking):
            if numbers == ():
                continue
            some = [mine if of_mine == numbers else () for mine, of_mine in zip(names, lacking, strict=True)]
            only = None if numbers is None else frozenset(numbers).__contains__
            ran = sum(1 for _ in self.run(some, only=only, ahead=some))
            self._count = ran if self._count is None else self._count
        self._settle()
        for index, mine in enumerate(names):
            known = {**self._stored[index], **self._ahead[index]}
            self._stored[index], self._ahead[index] = {name: known.pop(name) for name in mine}, {}
            for stored in known.values():
                stored.clear()
                self._spare.append(stored)

    def _lacking(self, index: int, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return the batches of which not all values are stored, None (all) while nobody knows how many there are."""
        if self._count is None:
            return None
        stored = [self._ahead[index].get(name, ()) for name in names if name not in self._stored[index]]
        return tuple(number for number in range(self._count) if any(number not in of_name for of_name in stored))

    def _put(self, index: int, name: str, number: int, array: NDArray[Any]) -> None:
        stored = self._ahead[index].get(name)
        if stored is None:
            stored = self._ahead[index][name] = self._spare.pop() if self._spare else Stored()
        if number not in stored:
            while len(self._writing) >= _WAITING:
                self._writing.popleft().result()
            self._writing.append(self._files.submit(stored.write, number, array))

    def _settle(self) -> None:
        while self._writing:
            self._writing.popleft().result()

    def _feeds(
        self,
        taps: Sequence[Tap],
        settings: Sequence[Outputs],
        only: Callable[[int], bool] | None,
        numbers: deque[int],
    ) -> Iterator[Sequence[Outputs]]:
        """Yield the inputs of each model, and what it is given, and note the batch's number."""
        for number, found in self._from_data(only) if self._count is None else self._from_files(taps, only):
            for setting in settings:
                numbers.append(number)
                yield [{**values, **setting} for values in found]

    def _from_data(self, only: Callable[[int], bool] | None) -> Iterator[tuple[int, Sequence[Outputs]]]:
        inputs = [[value for value in model.graph.inputs if not value.is_initializer()] for model in self._models]
        taps = [Tap(m, tuple(str(v.name) for v in some)) for m, some in zip(self._models, inputs, strict=True)]
        batches = self._runner.trace(taps, samples=self._samples, limit=self._limit)
        if self._loose:
            batches = stacked(batches, self._samples)
        yield from ((number, found) for number, found in enumerate(batches) if only is None or only(number))

    def _from_files(
        self, taps: Sequence[Tap], only: Callable[[int], bool] | None
    ) -> Iterator[tuple[int, Sequence[Outputs]]]:
        """Read one batch ahead."""
        some = [{name: stored[name] for name in _needed(tap)} for tap, stored in zip(taps, self._stored, strict=True)]
        reading: deque[tuple[int, Future[list[Outputs]]]] = deque()
        for number in range(self._count or 0):
            if only is None or only(number):
                reading.append((number, self._files.submit(_read, some, number)))
            if len(reading) > 1:
                first, found = reading.popleft()
                yield first, found.result()
        yield from ((number, found.result()) for number, found in reading)


def _read(some: Sequence[dict[str, Stored]], number: int) -> list[Outputs]:
    return [{name: stored.read(number) for name, stored in of_model.items()} for of_model in some]


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
