"""Tensors as they lie in files: mapped from a data file, viewed in the buffer of a model, sparse."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from stat import S_ISREG
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir
from onnx_ir.serde import TensorProtoTensor, deserialize_tensor

from graphopt.errors import ModelError
from graphopt.ir.tensors import SparseTensor

Array = np.ndarray[Any, Any]

_CHUNK = 16 << 20


def view_tensor(data: memoryview | bytes, like: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    """Return a tensor with name, dtype, shape and metadata of ``like`` whose content is ``data``, in ONNX's raw form.

    No byte is copied: the array is a read-only view, for dtypes below 8 bits of the packed bytes.
    """
    common: dict[str, Any] = {
        "dtype": like.dtype,
        "shape": like.shape,
        "name": like.name,
        "doc_string": like.doc_string,
        "metadata_props": dict(like.metadata_props) or None,
    }
    if like.dtype.bitwidth in (2, 4):
        packed = np.frombuffer(data, dtype=np.uint8)
        return onnx_ir.PackedTensor(packed, **common)
    if like.dtype.bitwidth < 8:
        proto = onnx.TensorProto(data_type=int(like.dtype.value), dims=like.shape.numpy(), raw_data=bytes(data))
        return TensorProtoTensor(proto)
    dtype = like.dtype.numpy().newbyteorder("<")
    return onnx_ir.Tensor(np.frombuffer(data, dtype=dtype).reshape(like.shape.numpy()), **common)


class MappedTensor(onnx_ir.ExternalTensor):
    """A tensor in a data file that was checked and mapped when the model was loaded.

    All tensors of a file share one mapping, which outlives the file's name: a model may be saved over the files it came
    from. Pages are read when touched and belong to the file, not to the process.
    """

    __slots__ = ("_file", "_view")

    def __init__(self, file: DataFile, offset: int, length: int, like: onnx_ir.ExternalTensor):
        super().__init__(
            like.location,
            offset,
            length,
            like.dtype,
            shape=onnx_ir.Shape(like.shape),
            name=like.name,
            doc_string=like.doc_string,
            metadata_props=dict(like.metadata_props) or None,
            base_dir=file.folder,
        )
        self._file = file
        self._view: onnx_ir.TensorProtocol | None = None

    @property
    def data(self) -> memoryview:
        """The tensor's bytes in ONNX's raw form, as a view of the mapping."""
        start = self.offset or 0
        return self._file.view[start : start + (self.length or 0)]

    @property
    def source(self) -> tuple[DataFile, int, int]:
        """The data file, and offset and length in bytes in it."""
        return self._file, self.offset or 0, self.length or 0

    def numpy(self) -> Array:
        """Return a read-only array, a view of the mapped file for dtypes of 8 bits and more."""
        if self._view is None:
            self._view = view_tensor(self.data, self)
        return self._view.numpy()

    def __array__(self, dtype: Any = None) -> Array:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def tobytes(self) -> bytes:
        """Return a copy of the bytes."""
        return bytes(self.data)

    def tofile(self, file: Any) -> None:
        """Write the bytes to ``file``, a chunk at a time."""
        for chunk in raw_chunks(self):
            file.write(chunk)

    def release(self) -> None:
        """Forget the array; the mapping stays with the other tensors of the file."""
        self._view = None


@dataclass(eq=False)
class DataFile:
    """An external data file in ``folder``, ``size`` bytes, mapped as a whole."""

    folder: str
    size: int
    view: memoryview


@dataclass
class DataFolder:
    """The folder of a model: opens the data files that its tensors name, each once, and none outside the folder."""

    folder: Path | None
    _files: dict[str, DataFile] = field(default_factory=dict)

    def tensor(self, tensor: onnx_ir.ExternalTensor) -> MappedTensor:
        """Return ``tensor`` mapped. Raises ModelError, naming it, when its place is missing, too short or forbidden."""
        where = f"tensor {tensor.name!r}"
        location = os.fspath(tensor.location)
        file = self._files.get(location)
        if file is None:
            file = self._files[location] = self._open(location, where)
        offset = tensor.offset or 0
        if offset + tensor.nbytes > file.size:
            raise ModelError(
                f"its data ends at byte {offset + tensor.nbytes} of {location!r}, which has {file.size} bytes",
                where=where,
                hint="the data file is truncated or belongs to another model; copy both files again",
            )
        return MappedTensor(file, offset, tensor.nbytes, tensor)

    def _open(self, location: str, where: str) -> DataFile:
        if self.folder is None:
            raise ModelError(
                f"its data is in the file {location!r}, but the model came without a folder",
                where=where,
                hint="load the model by its path",
            )
        _refuse_outside(location, where)
        path = self.folder / location
        try:
            # Non-blocking, so that a named pipe is refused below instead of being waited for.
            handle = os.fdopen(
                os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)), "rb"
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"its data file {location!r} cannot be opened: {getattr(error, 'strerror', None) or error}",
                where=where,
                hint=f"put it beside the model, at {path}",
            ) from error
        with handle:
            self._check_opened(handle, path, location, where)
            size = os.fstat(handle.fileno()).st_size
            view = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
        return DataFile(os.fspath(self.folder), size, view)

    def _check_opened(self, handle: BinaryIO, path: Path, location: str, where: str) -> None:
        # The file that is open is compared with the one that the resolved path names, so that exchanging a link between
        # the check and the opening gains nothing.
        assert self.folder is not None
        opened = os.fstat(handle.fileno())
        if not S_ISREG(opened.st_mode):
            raise ModelError(f"its data file {location!r} is not a regular file", where=where)
        resolved = path.resolve()
        inside = resolved.is_relative_to(self.folder.resolve())
        if not inside or not os.path.samestat(opened, os.lstat(resolved)):
            raise ModelError(
                f"its data file {location!r} is a link that leaves the model's folder",
                where=where,
                hint="copy the file itself into the model's folder",
            )


def _refuse_outside(location: str, where: str) -> None:
    hint = "external data has to lie in the model's folder; move it there and correct the location"
    windows = PureWindowsPath(location)
    if not location or "\0" in location:
        raise ModelError(f"its data file has the unusable name {location!r}", where=where)
    if os.path.isabs(location) or windows.drive or windows.root:
        raise ModelError(f"its data file {location!r} is an absolute path", where=where, hint=hint)
    if ".." in Path(location).parts or ".." in windows.parts:
        raise ModelError(f"its data file {location!r} leaves the model's folder", where=where, hint=hint)


def sparse_tensor(proto: onnx.SparseTensorProto) -> SparseTensor:
    """Return ``proto`` as an IR value. It is read on demand and must stay unchanged."""
    return SparseTensor(deserialize_tensor(proto.values), deserialize_tensor(proto.indices), tuple(proto.dims))


def raw_chunks(tensor: onnx_ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """Yield the bytes of ``tensor`` in ONNX's raw form, without a copy where memory holds them in that form already."""
    if isinstance(tensor, MappedTensor):
        data = tensor.data
        yield from (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
        return
    if isinstance(tensor, onnx_ir.Tensor) and tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
        little = array.dtype.newbyteorder("<") == array.dtype
        if array.size and array.flags.c_contiguous and little:
            yield array.reshape(-1).view(np.uint8).data
            return
    yield tensor.tobytes()
