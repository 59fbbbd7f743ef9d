"""Made-up inputs, for tests and timing where no data is at hand. Never used unless asked for by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import UsageError
from graphopt.runtime import InputInfo

# Axes of unknown size: (rank 4, axes 1..3) like an image of any layout, other axes like a short sequence.
_IMAGE_DIMS = (1, 3, 64, 64)
_OTHER_DIM = 8


def random_inputs(
    inputs: Sequence[InputInfo], seed: int, bindings: Mapping[str, int] | None = None
) -> dict[str, NDArray[Any]]:
    """Return one array for each input, the same for the same ``seed``.

    Floats are standard normal, integers 0 or 1 (so that they are valid as masks, token types and indices alike),
    strings a single letter. A symbolic axis has the size that ``bindings`` gives for its name; otherwise the first axis
    is 1, an axis of a rank-4 tensor 3 (channels) or 64, any other 8. Raises UsageError for an input that is not a
    tensor and for a binding whose name no input has.
    """
    sizes = dict(bindings or {})
    names = {d for i in inputs for d in i.shape if isinstance(d, str)}
    if unknown := sorted(set(sizes) - names):
        known = ", ".join(sorted(names)) or "none"
        raise UsageError(f"no input has a dimension named {unknown[0]!r}", hint=f"symbolic dimensions: {known}")
    rng = np.random.default_rng(seed)
    return {i.name: _draw(rng, i, tuple(_size(i, axis, sizes) for axis in range(len(i.shape)))) for i in inputs}


def _size(info: InputInfo, axis: int, sizes: dict[str, int]) -> int:
    dim = info.shape[axis]
    if isinstance(dim, int):
        return dim
    default = _IMAGE_DIMS[axis] if len(info.shape) == 4 else (1 if axis == 0 else _OTHER_DIM)
    # The first axis that bears a name decides its size for all the others.
    return default if dim is None else sizes.setdefault(dim, default)


def _draw(rng: np.random.Generator, info: InputInfo, shape: tuple[int, ...]) -> NDArray[Any]:
    if info.kind != "tensor":
        raise UsageError(f"no random {info.kind} can be made", where=f"input {info.name}", hint="give data")
    if info.dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if info.dtype.kind in "biu" or info.dtype.name.startswith(("int", "uint")):
        return rng.integers(0, 2, size=shape).astype(info.dtype)
    return np.asarray(rng.standard_normal(shape)).astype(info.dtype)
