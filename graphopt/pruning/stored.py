"""Arrays in files that nobody sees: what networks give on each batch of the data, so that memory does not grow with the
data."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Stored:
    """Arrays of any shape and dtype but objects, each under a number, all in one file that goes with ``close``.

    Opening a file takes longer than writing a small array, and a new one longer to write than one used again: see
    ``clear``.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="graphopt-")  # noqa: SIM115 - closed by close()
        self._end = 0
        self._places: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        self._lock = threading.Lock()

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def shape(self, number: int) -> tuple[int, ...]:
        """Return the shape of the array under ``number``. Raises KeyError."""
        return self._places[number][1]

    def write(self, number: int, array: NDArray[Any]) -> None:
        """Put an array under a number that has none. Raises OSError where there is no room."""
        plain = np.ascontiguousarray(array)
        with self._lock:
            self._file.seek(self._end)
            self._file.write(plain.reshape(-1).view(np.uint8).data)
            self._places[number] = self._end, array.shape, array.dtype
            self._end += plain.nbytes

    def read(self, number: int) -> NDArray[Any]:
        """Return a copy of the array under ``number``. Raises KeyError."""
        start, shape, dtype = self._places[number]
        return self._at(start, shape, dtype)

    def rows(self, number: int, indices: Sequence[int]) -> NDArray[Any]:
        """Return copies of those of an array at ``indices`` of its first axis. Raises KeyError."""
        start, (_, *inner), dtype = self._places[number]
        size = math.prod(inner) * dtype.itemsize
        return np.stack([self._at(start + index * size, tuple(inner), dtype) for index in indices])

    def _at(self, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        array = np.empty(math.prod(shape), dtype)
        with self._lock:
            self._file.seek(start)
            self._file.readinto(array.view(np.uint8).data)
        return array.reshape(shape)

    def clear(self) -> None:
        """Drop all arrays, to write others."""
        self._places.clear()
        self._end = 0

    def close(self) -> None:
        """Drop all arrays and the file."""
        self._file.close()
        self._places.clear()
