"""Arrays in .npy and .npz files, opened without reading them.

A .npy file is mapped into memory. So is a member of a .npz file that was stored uncompressed (``np.savez``), at its
place inside the archive; a compressed one (``np.savez_compressed``) is read whole when asked for.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from graphopt.errors import UsageError

# Mapping a smaller array costs more than reading it.
_MAP_BYTES = 1 << 20
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file (``member`` of an archive), of known ``shape`` and ``dtype``, read by :meth:`load`."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False
    #: Where the data begins in the file; None when it is compressed.
    offset: int | None = None

    def load(self) -> NDArray[Any]:
        """Return the array, mapped where possible. Raises UsageError when it cannot be read."""
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        try:
            if self.offset is not None and size >= _MAP_BYTES and not self.dtype.hasobject:
                flat = np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape[::-1])
                return np.asarray(flat).T if self.fortran else np.asarray(flat).reshape(self.shape)
            if not self.member:
                return np.asarray(np.load(self.path, allow_pickle=False))
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[self.member])
        except _UNREADABLE as error:
            raise _unreadable(self.path, self.member, error) from error


def open_npy(path: Path) -> StoredArray:
    """Read the header of a .npy file. Raises UsageError when it is not one."""
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _header(file)
            return StoredArray(path, "", shape, dtype, fortran, file.tell())
    except _UNREADABLE as error:
        raise _unreadable(path, "", error) from error


def open_npz(path: Path) -> dict[str, StoredArray]:
    """Read the headers of all arrays of a .npz file, by name. Raises UsageError when it is not one."""
    arrays = {}
    member = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                member = entry.filename.removesuffix(".npy")
                with archive.open(entry) as file:
                    shape, fortran, dtype = _header(file)
                    offset = _data_offset(path, entry, file.tell())
                arrays[member] = StoredArray(path, member, shape, dtype, fortran, offset)
    except _UNREADABLE as error:
        raise _unreadable(path, member, error) from error
    return arrays


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds python objects, not numbers or fixed-width text")
    return shape, fortran, dtype


def _data_offset(path: Path, entry: zipfile.ZipInfo, header: int) -> int | None:
    """Return where the array's numbers begin in the archive: behind the member's local header and its own header."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + int(name) + int(extra) + header


def _unreadable(path: Path, member: str, error: Exception) -> UsageError:
    what = f"array {member!r} of the file" if member else "the file"
    return UsageError(f"{what} cannot be read: {error}", where=str(path))
