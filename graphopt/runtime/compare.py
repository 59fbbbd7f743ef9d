"""How far two models are apart: both run on the same inputs, the differences summed up output by output.

Outputs are not kept: only sums are, so that a large data set needs no more memory than one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import GraphOptError, UsageError, VerifyError
from graphopt.runtime.session import Session

Metric = Callable[[list[dict[str, Any]]], float]

_COLUMNS = ("output", "dtype", "elements", "differ", "max abs", "max/scale", "SQNR dB", "cosine", "argmax", "NaN/Inf")
# Elements converted to float64 at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one output of model b is from that of model a (the reference), over all batches.

    ``differing`` counts the elements that are not equal (NaN equals NaN). The other numbers are for float outputs, None
    for others, and leave out elements that are NaN or infinite on either side: ``nonfinite`` counts those of them that
    do not match. ``scale`` is the reference's largest absolute value, ``max_rel_to_scale`` the largest difference over
    it, ``sqnr_db`` ten times the logarithm of the power of the reference over that of the difference (inf when equal),
    ``argmax_agreement`` the share of rows whose largest element is the same (outputs of rank 2 and 3, last axis).
    """

    name: str
    dtype: str
    elements: int
    differing: int
    nonfinite: int = 0
    max_abs: float | None = None
    scale: float | None = None
    max_rel_to_scale: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    argmax_agreement: float | None = None

    def within(self, rtol: float, atol: float = 0.0) -> bool:
        """Return whether the largest difference is at most ``atol + rtol * scale``; other than floats must be equal."""
        if self.max_abs is None or self.scale is None:
            return self.differing == 0
        return self.nonfinite == 0 and self.max_abs <= atol + rtol * self.scale

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers that JSON lacks become the strings inf, -inf and nan."""
        return {k: _json_number(v) for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class MetricValues:
    """The task metric of both models."""

    a: float
    b: float

    def to_json(self) -> dict[str, Any]:
        """Return both values and ``change``, b minus a."""
        return {"a": _json_number(self.a), "b": _json_number(self.b), "change": _json_number(self.b - self.a)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of :func:`compare`. ``unsupported`` says which outputs were not compared and why."""

    outputs: tuple[OutputDifference, ...]
    batches: int
    metric: MetricValues | None = None
    rtol: float | None = None
    atol: float = 0.0
    unsupported: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every element of every output is the same."""
        return not self.unsupported and all(o.differing == 0 for o in self.outputs)

    @property
    def failures(self) -> list[str]:
        """Names of the outputs that are out of tolerance or could not be compared; empty when no ``rtol`` was given."""
        if self.rtol is None:
            return []
        return [o.name for o in self.outputs if not o.within(self.rtol, self.atol)] + list(self.unsupported)

    def check(self) -> None:
        """Raise VerifyError, naming the first output out of tolerance."""
        if not self.failures:
            return
        name = self.failures[0]
        message = f"differs by more than {self.rtol:g} of its scale plus {self.atol:g}"
        if name in self.unsupported:
            message = f"not compared: {self.unsupported[name]}"
        raise VerifyError(message, where=f"output {name}", context=self.render())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "outputs": [o.to_json() for o in self.outputs],
            "batches": self.batches,
            "equal": self.equal,
            "metric": self.metric.to_json() if self.metric else None,
            "rtol": self.rtol,
            "atol": self.atol,
            "failures": self.failures,
            "unsupported": dict(self.unsupported),
            "notes": list(self.notes),
        }

    def render(self) -> str:
        """Return a text table, one line an output."""
        rows = [_COLUMNS, *(_row(o) for o in self.outputs)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines = [_line(row, widths) for row in rows]
        lines += [f"{name}: not compared: {why}" for name, why in self.unsupported.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.metric:
            a, b = self.metric.a, self.metric.b
            lines.append(f"metric: {a:.6g} -> {b:.6g} ({b - a:+.6g})")
        lines.append(f"{self.batches} batch{'' if self.batches == 1 else 'es'} compared")
        return "\n".join(lines)


def compare(
    a: str | Path | bytes | Session,
    b: str | Path | bytes | Session,
    batches: Iterable[Mapping[str, Any]],
    *,
    metric: Metric | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    threads: int = 1,
) -> Comparison:
    """Run ``a`` (the reference) and ``b`` on every batch (arrays by input name) and sum up how far they are apart.

    Floats of different width (float32 against float16) are compared by value. Sequences are compared element by
    element as ``name[0]``, ``name[1]``, …; sparse tensors are reported as not compared. ``metric`` gets the outputs of
    one model on all batches, one dict a batch, and returns a number; only then are outputs kept. With ``rtol`` the
    result knows which outputs are out of tolerance (:meth:`Comparison.check`).

    Raises VerifyError naming the output when one is missing or has another shape or kind of element, UsageError when
    there is no batch, a batch does not fit the model, or the metric fails, ModelError when a model does not run.
    """
    first, second = (m if isinstance(m, Session) else Session(m, threads=threads) for m in (a, b))
    _same_names(first, second)
    notes = _unread_inputs(first, second)
    unsupported: dict[str, str] = {}
    kept: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    count = 0

    def pairs() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        nonlocal count
        for feeds in batches:
            count += 1
            left = first.run(feeds)
            right = second.run({k: v for k, v in feeds.items() if k in second.accepts or k not in first.accepts})
            if metric is not None:
                kept[0].append(left)
                kept[1].append(right)
            yield left, right

    results = differences(pairs(), unsupported)
    if not count:
        raise UsageError("no batch to compare the models on")
    values = MetricValues(measure(metric, kept[0]), measure(metric, kept[1])) if metric is not None else None
    return Comparison(results, count, values, rtol, atol, unsupported, notes)


def differences(
    pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], unsupported: dict[str, str] | None = None
) -> tuple[OutputDifference, ...]:
    """Sum up how far outputs are apart: pairs of one batch's by name, the reference's first.

    What cannot be compared goes into ``unsupported``, with the reason. Raises VerifyError as :func:`compare` does.
    """
    sums: dict[str, _Sums] = {}
    skipped: dict[str, str] = {} if unsupported is None else unsupported
    for count, (left, right) in enumerate(pairs, start=1):
        for name, expected in left.items():
            for path, x, y in _leaves(name, expected, right[name], skipped):
                sums.setdefault(path, _Sums(path, str(x.dtype))).add(x, y, count)
    return tuple(s.result() for s in sums.values())


def _same_names(a: Session, b: Session) -> None:
    for has, lacks in ((a, b), (b, a)):
        names = [o.name for o in lacks.outputs]
        for name in (o.name for o in has.outputs):
            if name not in names:
                raise VerifyError(f"{lacks.source} lacks it", where=f"output {name}", hint=f"it has {', '.join(names)}")


def _unread_inputs(a: Session, b: Session) -> tuple[str, ...]:
    return tuple(f"{b.source} has no input {i.name}" for i in a.inputs if i.name not in b.accepts)


def _leaves(path: str, a: Any, b: Any, unsupported: dict[str, str]) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Walk sequences and maps in parallel and yield the arrays in them; note what cannot be compared."""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            raise VerifyError(f"a sequence of {len(a)} against one of {len(b)}", where=f"output {path}")
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _leaves(f"{path}[{index}]", x, y, unsupported)
    elif isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            raise VerifyError("maps with different keys", where=f"output {path}")
        for key in a:
            yield from _leaves(f"{path}[{key!r}]", a[key], b[key], unsupported)
    elif a is None and b is None:
        return
    elif isinstance(a, np.ndarray | np.generic | float | int | str) and isinstance(b, type(a)):
        yield path, np.asarray(a), np.asarray(b)
    elif type(a) is not type(b):
        raise VerifyError(f"{_kind(a)} against {_kind(b)}", where=f"output {path}")
    else:
        unsupported[path] = f"{_kind(a)} cannot be compared"


def _kind(value: Any) -> str:
    return "nothing (empty optional)" if value is None else f"a {type(value).__name__}"


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


@dataclass
class _Sums:
    """What is kept of one output between batches."""

    name: str
    dtype: str
    elements: int = 0
    differing: int = 0
    nonfinite: int = 0
    is_float: bool = False
    max_abs: float = 0.0
    scale: float = 0.0
    power_a: float = 0.0
    power_b: float = 0.0
    power_error: float = 0.0
    product: float = 0.0
    rows: int = 0
    same_rows: int = 0

    def add(self, a: NDArray[Any], b: NDArray[Any], batch: int) -> None:
        where = f"output {self.name}"
        if a.shape != b.shape:
            raise VerifyError(f"shape {list(a.shape)} against {list(b.shape)} in batch {batch}", where=where)
        if _is_float(a.dtype) != _is_float(b.dtype):
            raise VerifyError(f"{a.dtype} against {b.dtype} in batch {batch}", where=where)
        self.elements += a.size
        if not _is_float(a.dtype):
            self.differing += int(np.count_nonzero(a != b))
            return
        self.is_float = True
        if a.ndim in (2, 3) and a.size:
            agree = np.argmax(a, axis=-1) == np.argmax(b, axis=-1)
            self.rows += agree.size
            self.same_rows += int(np.count_nonzero(agree))
        flat_a, flat_b = a.reshape(-1), b.reshape(-1)
        for start in range(0, a.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            self._add_floats(flat_a[part].astype(np.float64), flat_b[part].astype(np.float64))

    def _add_floats(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            odd_a, odd_b = a[~finite], b[~finite]
            mismatched = int(np.count_nonzero((odd_a != odd_b) & ~(np.isnan(odd_a) & np.isnan(odd_b))))
            self.nonfinite += mismatched
            self.differing += mismatched
            a, b = a[finite], b[finite]
        if not a.size:
            return
        error = b - a
        self.differing += int(np.count_nonzero(error))
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))
        self.scale = max(self.scale, float(np.abs(a).max()))
        self.power_a += float(a @ a)
        self.power_b += float(b @ b)
        self.power_error += float(error @ error)
        self.product += float(a @ b)

    def result(self) -> OutputDifference:
        if not self.is_float:
            return OutputDifference(self.name, self.dtype, self.elements, self.differing)
        return OutputDifference(
            name=self.name,
            dtype=self.dtype,
            elements=self.elements,
            differing=self.differing,
            nonfinite=self.nonfinite,
            max_abs=self.max_abs,
            scale=self.scale,
            max_rel_to_scale=_ratio(self.max_abs, self.scale),
            sqnr_db=_decibel(self.power_a, self.power_error),
            cosine=_cosine(self.product, self.power_a, self.power_b),
            argmax_agreement=self.same_rows / self.rows if self.rows else None,
        )


def _ratio(value: float, scale: float) -> float:
    if value == 0.0:
        return 0.0
    return value / scale if scale else math.inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def _cosine(product: float, power_a: float, power_b: float) -> float:
    if power_a == 0.0 or power_b == 0.0:
        return 1.0 if power_a == power_b else 0.0
    # Rounding of the sums may carry it past one.
    return min(1.0, max(-1.0, product / math.sqrt(power_a) / math.sqrt(power_b)))


def measure(metric: Metric, outputs: list[dict[str, Any]]) -> float:
    """Return what ``metric`` makes of the outputs on all batches. Raises UsageError when it fails."""
    name = getattr(metric, "__qualname__", repr(metric))
    try:
        value = metric(outputs)
    except GraphOptError:
        raise
    except Exception as error:  # the metric is the user's code and may raise anything
        raise UsageError(f"the metric failed: {type(error).__name__}: {error}", where=name) from error
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the metric returned {value!r:.80}, not a number", where=name) from error


def _row(o: OutputDifference) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        o.name,
        o.dtype,
        str(o.elements),
        str(o.differing),
        number(o.max_abs, ".3g"),
        number(o.max_rel_to_scale, ".3g"),
        number(o.sqnr_db, ".1f"),
        number(o.cosine, ".6f"),
        number(o.argmax_agreement, ".2%"),
        str(o.nonfinite),
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), cells[1].ljust(widths[1]), *numbers])


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
