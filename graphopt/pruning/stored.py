"""Arrays in a file that nobody sees: what networks give on each batch of the data, so that memory does not grow with
the data."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Stored:
    """Arrays of any shape and dtype but objects, each under a number. All lie in one file, which goes with ``close``.

    Opening a file takes longer than writing a small array.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="graphopt-")  # noqa: SIM115 - closed by close()
        self._end = 0
        self._places: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def write(self, number: int, array: NDArray[Any]) -> None:
        """Put an array under a number that has none. Raises OSError where there is no room."""
        plain = np.ascontiguousarray(array)
        self._places[number] = self._end, array.shape, array.dtype
        self._file.seek(self._end)
        self._file.write(plain.reshape(-1).view(np.uint8).data)
        self._end += plain.nbytes

    def read(self, number: int) -> NDArray[Any]:
        """Return a copy of the array under ``number``. Raises KeyError."""
        start, shape, dtype = self._places[number]
        array = np.empty(math.prod(shape), dtype)
        self._file.seek(start)
        self._file.readinto(array.view(np.uint8).data)
        return array.reshape(shape)

    def close(self) -> None:
        """Drop all arrays."""
        self._file.close()
        self._places.clear()
