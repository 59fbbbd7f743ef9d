"""What calibration data tells of a model's values: requests for statistics, and the statistics. They form a monoid:
those of two parts of the data merge into those of the whole.

Collecting them needs a runtime and is done elsewhere (:mod:`graphopt.calibration`); passes ask for them with
``ctx.statistics(requests)``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

BINS = 2048
"""Most bins that a histogram has."""

_FINEST = -126
"""Smallest exponent of a bin's width, so that dividing by the width is multiplying by a float32."""

_DIGITS = 24
"""Bins are no finer than float32's steps at the largest value, so that an index is exact in float32."""


@dataclass(frozen=True, order=True)
class Unfold:
    """How a convolution reads its input: the patches whose Gram matrix is wanted. Sizes are per spatial axis.

    ``pads`` are ONNX's (all begins, then all ends); ``auto_pad`` has been resolved. ``groups`` splits the channels.
    ``most`` bounds the patches taken of one sample, 0 for all: neighbouring patches are nearly the same, so an even
    grid of them tells as much for a fraction of the work.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    most: int = 0


@dataclass(frozen=True, order=True)
class Request:
    """One statistic of one value (by its name in the model).

    ``range``: smallest and largest number. ``moving``: averages over batches of the smallest and the largest.
    ``histogram``: counts on a grid of power-of-two width. ``channel_range``, ``channel_mean`` and ``channel_power``
    (the mean square): by index along ``axis``. ``gram``: sums of x xᵀ and of x over all rows x along ``axis`` or over
    all patches of ``unfold``.
    """

    value: str
    kind: Literal["range", "moving", "histogram", "channel_range", "channel_mean", "channel_power", "gram"]
    axis: int = -1
    unfold: Unfold | None = None


class CalibrationData:
    """Marks, in ``Pass.needs``, a pass that asks for statistics and so cannot run without calibration data."""

    wants_data: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class Statistic:
    """Base of all statistics: equal when all fields are."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def merge(self, other: Any) -> Self:
        """Return the statistic of both parts of the data together. Raises ValueError when they do not belong."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Range(Statistic):
    """Smallest and largest number."""

    low: float
    high: float

    def merge(self, other: Self) -> Self:
        """Return the range of both."""
        return type(self)(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False)
class Moving(Statistic):
    """Sums over batches of the smallest and of the largest number; ``low`` and ``high`` are the averages."""

    low_total: float
    high_total: float
    batches: int

    @property
    def low(self) -> float:
        """Average of the batches' smallest number."""
        return self.low_total / self.batches

    @property
    def high(self) -> float:
        """Average of the batches' largest number."""
        return self.high_total / self.batches

    def merge(self, other: Self) -> Self:
        """Return the averages over the batches of both."""
        total = self.batches + other.batches
        return type(self)(self.low_total + other.low_total, self.high_total + other.high_total, total)


@dataclass(frozen=True, eq=False)
class Histogram(Statistic):
    """Counts of numbers: bin i covers [(first + i) * width, (first + i + 1) * width), where width is 2**exponent.

    ``counts`` is int64 with at most BINS entries, the first and the last not zero. ``low`` and ``high`` are the
    smallest and the largest number. The exponent follows from these two alone (:func:`bin_exponent`), so that the
    same numbers give the same histogram in whatever order and parts they came.
    """

    exponent: int
    first: int
    counts: NDArray[np.int64]
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Borders of the bins, one more than there are bins."""
        return np.ldexp(self.first + np.arange(len(self.counts) + 1, dtype=np.float64), self.exponent)

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middles of the bins."""
        return np.ldexp(self.first + 0.5 + np.arange(len(self.counts), dtype=np.float64), self.exponent)

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    @classmethod
    def of(cls, values: NDArray[Any]) -> Histogram:
        """Return the histogram of finite floats of any shape, counted in float32 unless they are float64."""
        flat = np.asarray(values).reshape(-1)
        flat = flat if flat.dtype == np.float64 else flat.astype(np.float32, copy=False)
        low, high = float(flat.min()), float(flat.max())
        exponent = bin_exponent(low, high)
        first = bin_index(low, exponent)
        kind = scaling_type(flat.dtype, exponent)
        index = np.floor(np.multiply(flat, kind(2.0**-exponent), dtype=kind)).astype(np.int64) - first
        return cls(exponent, first, np.bincount(index), low, high)

    def coarsened(self, exponent: int) -> Self:
        """Return the same counts in wider bins. Raises ValueError for an ``exponent`` below this one's."""
        step = exponent - self.exponent
        if step < 0:
            raise ValueError(f"bins of width 2**{self.exponent} cannot be split")
        if step == 0:
            return self
        if step > 62:  # an index has no more bits than that
            first = -1 if self.first < 0 else 0
            index = np.where(np.arange(len(self.counts)) + self.first < 0, -1, 0) - first
        else:
            first = self.first >> step
            index = ((np.arange(len(self.counts)) + self.first) >> step) - first
        counts = np.zeros(int(index[-1]) + 1, np.int64)
        np.add.at(counts, index, self.counts)
        return type(self)(exponent, first, counts, self.low, self.high)

    def merge(self, other: Self) -> Self:
        """Return the histogram of all numbers of both, exactly."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        exponent = max(bin_exponent(low, high), self.exponent, other.exponent)
        parts = self.coarsened(exponent), other.coarsened(exponent)
        first = min(part.first for part in parts)
        counts = np.zeros(max(part.first + len(part.counts) for part in parts) - first, np.int64)
        for part in parts:
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return type(self)(exponent, first, counts, low, high)


def bin_exponent(low: float, high: float) -> int:
    """Return the smallest exponent with which at most BINS bins of width 2**exponent cover ``low`` to ``high``.

    It never falls when the range grows.
    """
    largest = max(abs(low), abs(high))
    exponent = _FINEST if largest == 0 else max(math.frexp(largest)[1] - _DIGITS, _FINEST)
    while bin_index(high, exponent) - bin_index(low, exponent) >= BINS:
        exponent += 1
    return exponent


def scaling_type(dtype: np.dtype[Any], exponent: int) -> type[np.float32] | type[np.float64]:
    """Return the type in which numbers of ``dtype`` divided by 2**exponent keep their floor.

    A small float32 divided by more than one may become zero, and so a negative one leave its bin.
    """
    return np.float32 if dtype == np.float32 and exponent <= 0 else np.float64


def bin_index(value: float, exponent: int) -> int:
    """Return the number of the bin of width 2**exponent that ``value`` is in; bin 0 begins at zero."""
    return math.floor(math.ldexp(value, -exponent))


@dataclass(frozen=True, eq=False)
class ChannelRange(Statistic):
    """Smallest and largest number of each channel: float32[C] each."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def merge(self, other: Self) -> Self:
        """Return the ranges of both."""
        _same_shape(self.low, other.low)
        return type(self)(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


@dataclass(frozen=True, eq=False)
class ChannelMean(Statistic):
    """Sum of each channel, float64[C], over ``count`` numbers a channel."""

    total: NDArray[np.float64]
    count: int

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return self.total / self.count

    def merge(self, other: Self) -> Self:
        """Return the means over both."""
        _same_shape(self.total, other.total)
        return type(self)(self.total + other.total, self.count + other.count)


@dataclass(frozen=True, eq=False)
class ChannelPower(ChannelMean):
    """Sum of the squares of each channel, float64[C], over ``count`` numbers a channel; ``mean`` is the mean square."""


@dataclass(frozen=True, eq=False)
class Gram(Statistic):
    """Sums of x xᵀ, float64[groups, K, K], and of x, float64[groups, K], over ``count`` rows x (a group).

    Patches of a convolution hold (channel within the group, *kernel) in row-major order, as W.reshape(O, -1) does.
    """

    matrix: NDArray[np.float64]
    total: NDArray[np.float64]
    count: int

    @property
    def second(self) -> NDArray[np.float64]:
        """Mean of x xᵀ."""
        return self.matrix / self.count

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of x."""
        return self.total / self.count

    def merge(self, other: Self) -> Self:
        """Return the sums over both."""
        _same_shape(self.matrix, other.matrix)
        return type(self)(self.matrix + other.matrix, self.total + other.total, self.count + other.count)


def _same_shape(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"statistics of shapes {list(a.shape)} and {list(b.shape)} do not belong together")


KINDS: Mapping[str, type[Statistic]] = {
    "range": Range,
    "moving": Moving,
    "histogram": Histogram,
    "channel_range": ChannelRange,
    "channel_mean": ChannelMean,
    "channel_power": ChannelPower,
    "gram": Gram,
}
"""The class of statistic that each kind of request gets."""


class Statistics(Mapping[Request, Any]):
    """Statistics by what was asked for: ``statistics[request]`` is of the class KINDS[request.kind]."""

    def __init__(self, entries: Mapping[Request, Statistic] | Iterable[tuple[Request, Statistic]] = ()) -> None:
        self._entries: dict[Request, Statistic] = dict(entries)

    def __getitem__(self, request: Request) -> Any:
        return self._entries[request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both parts of the data together; what only one of them holds is taken over."""
        merged = dict(self._entries)
        for request in other:
            mine = merged.get(request)
            merged[request] = other[request] if mine is None else mine.merge(other[request])
        return Statistics(merged)

    def save(self, file: Path | BinaryIO) -> None:
        """Write a .npz that :meth:`load` reads."""
        arrays: dict[str, NDArray[Any]] = {}
        index = []
        for number, (request, entry) in enumerate(self._entries.items()):
            plain: dict[str, Any] = {}
            for field in dataclasses.fields(entry):
                value = getattr(entry, field.name)
                if isinstance(value, np.ndarray):
                    arrays[f"{number}.{field.name}"] = value
                else:
                    plain[field.name] = value
            index.append([dataclasses.asdict(request), plain])
        text = np.frombuffer(json.dumps(index).encode(), np.uint8)
        np.savez(file, index=text, **arrays)  # type: ignore[arg-type]  # numpy's stub takes every keyword for allow_pickle

    @classmethod
    def load(cls, file: Path | BinaryIO) -> Statistics:
        """Read what :meth:`save` wrote. Raises OSError, or ValueError when the content is something else."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                index = json.loads(stored["index"].tobytes())
                arrays: dict[int, dict[str, NDArray[Any]]] = {}
                for name in stored.files:
                    number, _, field = name.partition(".")
                    if field:
                        arrays.setdefault(int(number), {})[field] = stored[name]
            entries = [(_request(asked), plain | arrays.get(number, {})) for number, (asked, plain) in enumerate(index)]
            return cls((request, KINDS[request.kind](**fields)) for request, fields in entries)
        except (KeyError, TypeError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"not statistics of graphopt: {error}") from error


def _request(plain: dict[str, Any]) -> Request:
    unfold = plain.pop("unfold")
    if unfold is not None:
        groups, most = unfold.pop("groups"), unfold.pop("most")
        unfold = Unfold(**{name: tuple(sizes) for name, sizes in unfold.items()}, groups=groups, most=most)
    return Request(**plain, unfold=unfold)
