"""Data sets: batches of input arrays for calibration, comparison and timing, from what users have at hand.

:func:`open_dataset` takes

- a ``.npz`` file: one array for each input name, the first axis the samples;
- a ``.npy`` file, for a model with one input: the first axis the samples;
- a folder of ``.npz`` files, in the order of their names: each is one batch, fed as it is;
- a folder of images and a preprocessing TOML (see :mod:`graphopt.calibration.images`), for a model with one input;
- ``package.module:callable``: it returns an iterable of batches, each a dict of arrays, or an array for a model with
  one input; fed as they are. It is called again for every pass over the data.

An array whose rank is one above its input's gives each sample its own whole input, without a batch axis: recurrent
states of shape [2, N, 128], or a scalar. One array of rank 0 serves all batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.calibration.checks import check_dims, check_dtype, check_names, fit, remark
from graphopt.calibration.images import EXAMPLE, SUFFIXES, Preprocessing, read_preprocessing
from graphopt.calibration.stored import StoredArray, open_npy, open_npz
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import GraphOptError, UsageError
from graphopt.runtime import InputInfo, is_callable_spec, load_callable

#: Samples a batch where neither the caller nor the model says.
DEFAULT_BATCH = 8
#: Arrays by input name; a list of arrays for an input that is a sequence.
Feeds = dict[str, Any]


class Dataset:
    """Batches of arrays by input name, that can be gone through any number of times.

    ``samples`` is their number where it is known beforehand. ``rows`` names the inputs whose first axis is the samples,
    where batches may be of any size, and is empty where they may not. ``diagnostics`` holds remarks on casts, dropped
    samples and unused arrays; some come up only as the batches are read.
    """

    def __init__(
        self,
        source: str,
        batches: Callable[[], Iterator[Feeds]],
        diagnostics: DiagnosticSink,
        *,
        length: int | None = None,
        samples: int | None = None,
        rows: frozenset[str] = frozenset(),
    ) -> None:
        self.source = source
        self.diagnostics = diagnostics
        self.samples = samples
        self.rows = rows
        self._batches = batches
        self._length = length

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the batches. Raises UsageError at the first one that does not fit the model."""
        empty = True
        for feeds in self._batches():
            empty = False
            yield feeds
        if empty:
            raise UsageError("the data set is empty", where=self.source)

    def __len__(self) -> int:
        """Return the number of batches. Raises TypeError when it is not known beforehand."""
        if self._length is None:
            raise TypeError(f"the number of batches of {self.source} is not known beforehand")
        return self._length

    def length(self) -> int | None:
        """Return the number of batches, None when it is not known beforehand."""
        return self._length

    def part(self, chosen: Callable[[int], bool], length: int | None, samples: int | None) -> Dataset:
        """Return the batches whose number is ``chosen``: ``length`` batches of ``samples`` samples, where known."""

        def batches() -> Iterator[Feeds]:
            return (feeds for number, feeds in enumerate(self._batches()) if chosen(number))

        return Dataset(self.source, batches, self.diagnostics, length=length, samples=samples, rows=self.rows)

    def split(self, feeds: Feeds, size: int) -> Iterator[Feeds]:
        """Yield a batch in parts of at most ``size`` samples, or whole where batches may not be of any size."""
        count = samples_of(feeds)
        if not self.rows or count <= size:
            yield feeds
            return
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield {name: array[part] if name in self.rows else array for name, array in feeds.items()}


def open_dataset(
    spec: str | Path,
    inputs: Sequence[InputInfo],
    *,
    batch: int | None = None,
    limit: int | None = None,
    preprocess: Path | None = None,
) -> Dataset:
    """Open the data set that ``spec`` names (see the module) for a model with ``inputs``.

    ``batch`` is the number of samples a batch where the source leaves a choice: the size that the model fixes, or else
    8, when None. With a free size the last batch may be smaller; with a fixed one what is left over is dropped, with a
    warning. ``limit`` is the largest number of samples used. ``preprocess`` is the TOML file for a folder of images.

    Raises UsageError when the source does not exist or does not fit the model: what was expected, and what was found.
    """
    if (batch is not None and batch < 1) or (limit is not None and limit < 1):
        raise UsageError("batch and limit must be at least 1", where=str(spec))
    request = _Request(str(spec), tuple(inputs), batch, limit, DiagnosticSink())
    path = Path(spec)
    if preprocess is not None and not path.is_dir():
        raise UsageError("a preprocessing file goes with a folder of images", where=str(spec))
    if path.is_dir():
        return _open_folder(path, request, preprocess)
    if path.is_file() and path.suffix == ".npz":
        return _from_samples(open_npz(path), request)
    if path.is_file() and path.suffix == ".npy":
        return _from_samples({_only_input(request).name: open_npy(path)}, request)
    if not path.exists() and is_callable_spec(str(spec)):
        return _from_callable(load_callable(str(spec)), request)
    what = "cannot tell what data this is" if path.exists() else "no such file or folder"
    hint = "give a .npz, a .npy, a folder of .npz files or images, or package.module:callable"
    raise UsageError(what, where=str(spec), hint=hint)


def dataset_from_arrays(
    arrays: Mapping[str, NDArray[Any]],
    inputs: Sequence[InputInfo],
    *,
    batch: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Return a data set of arrays in memory, one for each input name, the first axis the samples, as from a .npz."""
    request = _Request("arrays", tuple(inputs), batch, limit, DiagnosticSink())
    return _from_samples({name: _Loaded(np.asarray(array)) for name, array in arrays.items()}, request)


def dataset_from_feeds(feeds: Sequence[Mapping[str, NDArray[Any]]], inputs: Sequence[InputInfo]) -> Dataset:
    """Return a data set of batches in memory, fed as they are."""
    request = _Request("feeds", tuple(inputs), None, None, DiagnosticSink())
    named = [(f"batch {index}", feed) for index, feed in enumerate(feeds)]
    return _from_feeds(lambda: iter(named), request, len(named))


@dataclass(frozen=True)
class _Request:
    source: str
    inputs: tuple[InputInfo, ...]
    batch: int | None
    limit: int | None
    sink: DiagnosticSink


class _Array(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def load(self) -> Any:
        """Return something that slices like an array."""


@dataclass(frozen=True)
class _Loaded:
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def load(self) -> NDArray[Any]:
        return self.array


@dataclass(frozen=True)
class _Images:
    """Image files as one array of samples, each read when it is asked for."""

    files: tuple[Path, ...]
    spec: Preprocessing
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.spec.shape)

    def load(self) -> _Images:
        return self

    def __getitem__(self, part: slice) -> NDArray[Any]:
        return np.stack([self.spec.sample(file, self.dtype) for file in self.files[part]])


# --- sources whose first axis is the samples ------------------------------------------------------------------------


def _from_samples(arrays: Mapping[str, _Array], request: _Request) -> Dataset:
    check_names(arrays, request.inputs, request.source, request.sink)
    used = [i for i in request.inputs if i.name in arrays]
    kinds = {i.name: _role(i, arrays[i.name], request) for i in used}
    total = _count({n: arrays[n].shape[0] for n, kind in kinds.items() if kind != "constant"}, request)
    step, fixed = _step(used, kinds, request)
    count = min(total, request.limit or total)
    if fixed and count < step:
        raise UsageError(f"the model's batch is fixed at {step}, found {count} samples", where=request.source)
    if fixed and count % step:
        message = f"{count % step} of {count} samples are dropped: the model's batch is fixed at {step}"
        remark(request.sink, "DATA002", message, loss=True)
        count -= count % step

    def batches() -> Iterator[Feeds]:
        loaded = {i.name: arrays[i.name].load() for i in used}
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            yield {i.name: _part(i, kinds[i.name], loaded[i.name], part, request.source) for i in used}

    rows = frozenset() if fixed else frozenset(name for name, kind in kinds.items() if kind == "rows")
    return Dataset(request.source, batches, request.sink, length=-(-count // step), samples=count, rows=rows)


def _role(info: InputInfo, array: _Array, request: _Request) -> str:
    """Return rows (the first axis is the batch), whole (each entry is an input of its own) or constant."""
    if info.kind != "tensor":
        hint = "a callable can return lists of arrays"
        raise UsageError(f"input {info.name} is a {info.kind}", where=request.source, hint=hint)
    check_dtype(info, array.dtype, request.source, request.sink)
    rank, given = len(info.shape), len(array.shape)
    if given == 0:
        return "constant"
    if given == rank + 1 and (rank or given == 1):
        check_dims(info, array.shape, request.source, lead=1)
        return "whole"
    # Rank 0 also stands for an unknown rank.
    if given != rank and rank:
        message = f"expected {info} with the samples first, found shape {list(array.shape)}"
        raise UsageError(message, where=f"{request.source}: input {info.name}")
    check_dims(info, array.shape, request.source, skip=1)
    return "rows"


def _count(lengths: Mapping[str, int], request: _Request) -> int:
    if not lengths:
        raise UsageError("no array has an axis of samples", where=request.source)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UsageError(f"the arrays differ in their number of samples: {found}", where=request.source)
    total = next(iter(lengths.values()))
    if total == 0:
        raise UsageError("the data set is empty", where=request.source)
    return total


def _step(inputs: Sequence[InputInfo], kinds: Mapping[str, str], request: _Request) -> tuple[int, bool]:
    """Return the samples a batch, and whether no batch may be smaller."""
    sizes = {i.name: i.shape[0] for i in inputs if kinds[i.name] == "rows" and i.shape}
    fixed = {name: size for name, size in sizes.items() if isinstance(size, int)}
    fixed |= {name: 1 for name, kind in kinds.items() if kind == "whole"}
    if not fixed:
        return request.batch or DEFAULT_BATCH, False
    if len(set(fixed.values())) > 1:
        found = ", ".join(f"{name}: {size}" for name, size in fixed.items())
        hint = "give inputs without a batch axis an array of rank one higher, one entry a sample"
        raise UsageError(f"the inputs need different batch sizes: {found}", where=request.source, hint=hint)
    name, size = next(iter(fixed.items()))
    if request.batch not in (None, size):
        message = f"a batch of {request.batch} was asked for, but input {name} allows {size} only"
        raise UsageError(message, where=request.source)
    return size, True


def _part(info: InputInfo, kind: str, array: Any, part: slice, where: str) -> NDArray[Any]:
    if kind == "constant":
        return fit(info, array, where, 0)
    rows = fit(info, array[part], where, part.start)
    return rows if kind == "rows" else rows.reshape(rows.shape[1:])


# --- sources that give whole batches --------------------------------------------------------------------------------


def _from_feeds(
    feeds: Callable[[], Iterator[tuple[str, Mapping[str, Any]]]], request: _Request, length: int | None
) -> Dataset:
    if request.batch is not None:
        remark(request.sink, "DATA004", "the source gives whole batches, so that the batch size asked for is not used")

    def batches() -> Iterator[Feeds]:
        seen = 0
        for where, feed in feeds():
            if request.limit is not None and seen >= request.limit:
                return
            checked = _checked(feed, where, seen, request)
            seen += samples_of(checked)
            yield checked

    return Dataset(request.source, batches, request.sink, length=length if request.limit is None else None)


def _checked(feed: Mapping[str, Any], where: str, first: int, request: _Request) -> Feeds:
    check_names(feed, request.inputs, where, request.sink)
    result = {}
    for info in request.inputs:
        value = feed.get(info.name)
        if value is None:
            continue
        if info.kind != "tensor":
            result[info.name] = value
            continue
        array = np.asarray(value.load() if isinstance(value, StoredArray) else value)
        if info.shape and array.ndim != len(info.shape):
            raise UsageError(f"expected {info}, found shape {list(array.shape)}", where=f"{where}: input {info.name}")
        if array.size == 0:
            raise UsageError("the array is empty", where=f"{where}: input {info.name}")
        check_dims(info, array.shape, where)
        check_dtype(info, array.dtype, where, request.sink)
        result[info.name] = fit(info, array, where, first)
    return result


def samples_of(feeds: Feeds) -> int:
    """Return how many samples a batch holds: the first axis of its first array that has axes."""
    return next((len(a) for a in feeds.values() if isinstance(a, np.ndarray) and a.ndim), 1)


def _from_callable(function: Callable[..., Any], request: _Request) -> Dataset:
    def feeds() -> Iterator[tuple[str, Mapping[str, Any]]]:
        batches = _call(lambda: _iterable(function(), request), request)
        for index in range(2**62):
            try:
                value = _call(lambda: next(batches), request)
            except StopIteration:
                return
            yield f"{request.source}: batch {index}", _as_feed(value, index, request)

    return _from_feeds(feeds, request, None)


def _call(step: Callable[[], Any], request: _Request) -> Any:
    try:
        return step()
    except (GraphOptError, StopIteration):
        raise
    except Exception as error:  # the user's code may raise anything
        raise UsageError(f"it failed: {type(error).__name__}: {error}", where=request.source) from error


def _iterable(value: Any, request: _Request) -> Iterator[Any]:
    if isinstance(value, Mapping | np.ndarray | str) or not isinstance(value, Iterable):
        hint = "return a list, or yield: one dict of arrays by input name for each batch"
        raise UsageError(
            f"it must return an iterable of batches, not a {type(value).__name__}", where=request.source, hint=hint
        )
    return iter(value)


def _as_feed(value: Any, index: int, request: _Request) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, np.ndarray) and len(request.inputs) == 1:
        return {request.inputs[0].name: value}
    expected = "an array or a dict" if len(request.inputs) == 1 else "a dict of arrays by input name"
    raise UsageError(f"batch {index} is a {type(value).__name__}, expected {expected}", where=request.source)


# --- folders --------------------------------------------------------------------------------------------------------


def _open_folder(folder: Path, request: _Request, preprocess: Path | None) -> Dataset:
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.relative_to(folder).as_posix())
    archives = [f for f in files if f.suffix.lower() == ".npz"]
    images = [f for f in files if f.suffix.lower() in SUFFIXES]
    if preprocess is not None:
        _note_ignored(files, images, request)
        return _from_images(images, read_preprocessing(preprocess), request)
    if archives:
        _note_ignored(files, archives, request)
        return _from_feeds(lambda: ((str(f), open_npz(f)) for f in archives), request, len(archives))
    if images:
        hint = f"for instance: {EXAMPLE}"
        raise UsageError(
            "a folder of images needs a preprocessing file (--preprocess)", where=request.source, hint=hint
        )
    found = ", ".join(sorted({f.suffix or f.name for f in files})) or "nothing"
    raise UsageError(f"the folder holds neither .npz files nor images, but {found}", where=request.source)


def _note_ignored(files: list[Path], used: list[Path], request: _Request) -> None:
    left = [f for f in files if f not in set(used) and f.suffix != ".toml"]
    if left:
        remark(request.sink, "DATA005", f"{len(left)} other files are not used, {left[0].name} for one")


def _from_images(files: list[Path], spec: Preprocessing, request: _Request) -> Dataset:
    if not files:
        raise UsageError(
            "the folder holds no image", where=request.source, hint=f"known: {', '.join(sorted(SUFFIXES))}"
        )
    info = _only_input(request)
    dtype = np.dtype(spec.dtype) if spec.dtype else info.dtype
    if info.shape and len(info.shape) != 4:
        raise UsageError(f"images need an input of rank 4, the model has {info}", where=request.source)
    return _from_samples({info.name: _Images(tuple(files), spec, dtype)}, request)


def _only_input(request: _Request) -> InputInfo:
    if len(request.inputs) != 1:
        names = ", ".join(i.name for i in request.inputs)
        hint = "give a .npz with one array for each"
        raise UsageError(f"this data serves one input, the model has {names}", where=request.source, hint=hint)
    return request.inputs[0]
