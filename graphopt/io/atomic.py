"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class StagedFiles:
    """Files being written under temporary names in the folders of their final ones; see :func:`staged`."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self._pending: list[tuple[BinaryIO, Path, Path]] = []

    def open(self, path: Path) -> BinaryIO:
        """Return a new file that will be ``path``. Raises OSError, also when ``path`` must not be replaced."""
        target = path.resolve() if path.is_symlink() else path
        mode = _mode(target)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        # Registered first: an interrupt between creating the file and remembering it must not leave it behind.
        self._stack.callback(_remove, temporary)
        handle = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "w+b")
        self._stack.callback(_close, handle)
        if mode is not None:
            os.chmod(temporary, mode)
        self._pending.append((handle, temporary, target))
        return handle

    def commit(self) -> None:
        """Finish all files and give them their names, in the order opened. On failure the old files are back."""
        for handle, _, _ in self._pending:
            handle.close()
        with ExitStack() as undo:
            for _, temporary, target in self._pending[:-1]:
                self._keep_old(target, temporary, undo)
                os.replace(temporary, target)
            for _, temporary, target in self._pending[-1:]:
                os.replace(temporary, target)
            undo.pop_all()

    def _keep_old(self, target: Path, temporary: Path, undo: ExitStack) -> None:
        if not target.exists():
            undo.callback(_remove, target)
            return
        old = temporary.with_suffix(".old")
        self._stack.callback(_remove, old)
        try:
            os.link(target, old)
        except OSError:  # a file system without hard links
            os.rename(target, old)
        undo.callback(os.replace, old, target)


@contextmanager
def staged() -> Iterator[StagedFiles]:
    """Collect files to write; whatever was not committed is gone when the block ends, however it ends."""
    with ExitStack() as stack:
        yield StagedFiles(stack)


def _mode(target: Path) -> int | None:
    """Return the permissions of the file to be replaced, ``None`` when there is none."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(status.st_mode)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _close(handle: BinaryIO) -> None:
    # Closing flushes, which fails again when the disk is full; the file is thrown away all the same.
    with suppress(OSError):
        handle.close()
