"""What an array must be before a model may be fed with it; what is wrong is said with what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.errors import UsageError
from graphopt.runtime import InputInfo


def remark(sink: DiagnosticSink, code: str, message: str, node: str | None = None, *, loss: bool = False) -> None:
    """Add a remark, or a warning where data is lost."""
    severity = Severity.WARNING if loss else Severity.REMARK
    sink.add(Diagnostic(severity, code, message, node, origin="dataset"))


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether ``dtype`` is a floating-point type, ml_dtypes' included."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" or dtype.name.startswith(("int", "uint"))


def check_names(given: Iterable[str], inputs: Iterable[InputInfo], where: str, sink: DiagnosticSink) -> None:
    """Raise UsageError when an input has no array; remark on arrays that no input is named after (labels, say)."""
    names = list(given)
    wanted = [i.name for i in inputs if i.kind != "optional"]
    missing = [name for name in wanted if name not in names]
    if missing:
        expected, found = ", ".join(wanted), ", ".join(names) or "none"
        raise UsageError(f"no array for input {missing[0]!r}; expected {expected}; found {found}", where=where)
    for name in names:
        if name not in {i.name for i in inputs}:
            remark(sink, "DATA003", f"array {name!r} is no input of the model and is not used")


def check_dims(info: InputInfo, shape: tuple[int, ...], where: str, *, skip: int = 0, lead: int = 0) -> None:
    """Raise UsageError unless ``shape`` has the sizes that the model fixes.

    The input's first ``skip`` axes are free; its axes begin at axis ``lead`` of the array.
    """
    for axis in range(skip, len(info.shape)):
        expected, found = info.shape[axis], shape[axis + lead]
        if isinstance(expected, int) and expected != found:
            raise UsageError(f"expected {info}, found shape {list(shape)}", where=f"{where}: input {info.name}")


def check_dtype(info: InputInfo, dtype: np.dtype[Any], where: str, sink: DiagnosticSink) -> None:
    """Raise UsageError when ``dtype`` cannot become the input's without changing what it means; remark on a cast."""
    target = info.dtype
    if dtype == target or (target.kind == "O" and dtype.kind in "OUS"):
        return
    to_float = is_float(target) and (is_float(dtype) or _is_integer(dtype) or dtype.kind == "b")
    to_integer = _is_integer(target) and (_is_integer(dtype) or dtype.kind == "b")
    if not (to_float or to_integer):
        name = "string" if target.kind == "O" else str(target)
        raise UsageError(f"expected {name}, found {dtype}", where=f"{where}: input {info.name}")
    remark(sink, "DATA001", f"{dtype} is cast to {target}", info.name)


def fit(info: InputInfo, array: NDArray[Any], where: str, first: int) -> NDArray[Any]:
    """Return ``array`` contiguous and of the input's dtype; ``first`` is the index of its first sample, for messages.

    Raises UsageError for NaN or infinity, and for numbers that the dtype cannot hold.
    """
    target = info.dtype
    place = f"{where}: input {info.name}"
    if target.kind == "O":
        return array.astype(object)
    if _is_integer(target) and array.dtype != target and array.size:
        back = array.astype(target).astype(array.dtype)
        _raise_at(back != array, first, place, f"a number that {target} cannot hold")
    with np.errstate(over="ignore"):
        result = np.asarray(array, dtype=target, order="C")
    if is_float(target):
        finite = np.isfinite(result)
        if not finite.all():
            was_finite = np.isfinite(array) if is_float(array.dtype) else np.ones(array.shape, bool)
            _raise_at(~finite & was_finite, first, place, f"a number that {target} cannot hold")
            _raise_at(~finite, first, place, "NaN or infinity")
    return result


def _raise_at(bad: NDArray[np.bool_], first: int, where: str, what: str) -> None:
    if not bad.any():
        return
    index = np.argwhere(bad)[0] if bad.ndim else [0]
    inner = f" at {[int(i) for i in index[1:]]}" if len(index) > 1 else ""
    raise UsageError(f"sample {first + int(index[0])} holds {what}{inner}", where=where)
