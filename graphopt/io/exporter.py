"""Writes ONNX models: a tensor at a time, and either completely or not at all.

The weights are never gathered in one protobuf. The model without them is serialized, then each tensor is written from
where it lies: memory, the buffer of the loaded file, or the mapped data file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import onnx
import onnx_ir
from google.protobuf.message import EncodeError
from onnx_ir.serde import SerdeError

from graphopt.errors import GraphOptError, ModelError, UsageError
from graphopt.io import wire
from graphopt.io.atomic import StagedFiles, staged
from graphopt.io.importer import HAD_EXTERNAL_DATA
from graphopt.io.serialize import Serializer, Stored, keep_inside
from graphopt.io.tensors import DataFile, MappedTensor, raw_chunks
from graphopt.ir.tensors import SparseInitializer

ExternalData = Literal["auto", "never", "always"]

PROTOBUF_LIMIT = 2**31 - 1
"""Largest protobuf message in bytes that ONNX tools read."""

_ROOM_FOR_STRUCTURE = 64 << 20
_PAGE = 4096
_LINE = 64
_PAGE_ALIGNED_FROM = 64 << 10


def save(
    model: onnx_ir.Model,
    path: str | Path,
    *,
    provenance: Mapping[str, str] | None = None,
    external_data: ExternalData = "auto",
    size_threshold: int = 1024,
) -> None:
    """Write ``model`` to ``path``, replacing what is there only once everything is on disk. ``model`` stays as it is.

    ``provenance`` is added to the file's metadata (keys such as ``graphopt.version``). ``external_data`` says whether
    tensors of ``size_threshold`` bytes and more go to ``<name>.data`` beside the model: ``auto`` does when the input
    had external data or the model exceeds protobuf's 2 GB. Types of intermediate values are written when the input had
    some.
    Raises UsageError when the files cannot be written, ModelError when the model is no valid ONNX or too large.
    """
    path = Path(path)
    try:
        with staged() as files:
            _write(model, path, files, provenance or {}, _wants_data_file(model, external_data), size_threshold)
            files.commit()
    except OSError as error:
        raise UsageError(
            f"the model cannot be written: {(error.strerror or str(error)).lower()}",
            where=str(path),
            hint="nothing was changed; give another path with -o, or make room and check the folder's permissions",
        ) from error


def to_proto(model: onnx_ir.Model) -> onnx.ModelProto:
    """Return ``model`` as a protobuf with all data inside. Raises ModelError above 2 GB and for invalid ONNX."""
    if _data_size(model) > PROTOBUF_LIMIT - _ROOM_FOR_STRUCTURE:
        raise ModelError("the model is too large for one protobuf (2 GB)", hint="save it with external data instead")
    serializer = Serializer.of(model)
    with _invalid_model_reported():
        proto = serializer.model(model)
        serializer.main_graph(model, proto.graph)
        for name, tensor in _dense_initializers(model):
            serializer.tensor(proto.graph.initializer.add(), tensor, name)
    return proto


def _write(
    model: onnx_ir.Model,
    path: Path,
    files: StagedFiles,
    provenance: Mapping[str, str],
    with_data_file: bool,
    size_threshold: int,
) -> None:
    name = f"{path.name}.data"
    data = _DataWriter(name, files.open(path.with_name(name)), size_threshold) if with_data_file else None
    serializer = Serializer.of(model, keep_inside if data is None else data.place)
    with _invalid_model_reported():
        proto, graph = serializer.model(model), onnx.GraphProto()
        serializer.main_graph(model, graph)
        for key in provenance:
            _set_metadata(proto, key, provenance[key])
        initializers = [_Initializer.of(serializer, name, tensor) for name, tensor in _dense_initializers(model)]
        around, inside = proto.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True)
    size = len(inside) + sum(item.size for item in initializers)
    if len(around) + size > PROTOBUF_LIMIT:
        raise ModelError(
            f"the model takes {len(around) + size} bytes; a protobuf holds 2 GB at most",
            where=str(path),
            hint="save it with external data",
        )
    target = files.open(path)
    target.write(around + wire.graph_prefix(size) + inside)
    for item in initializers:
        item.write(target)


@dataclass(frozen=True)
class _Initializer:
    """An initializer ready to be written: all but its raw data in ``header``, and the tensor that has that data."""

    header: bytes
    tensor: onnx_ir.TensorProtocol | None

    @classmethod
    def of(cls, serializer: Serializer, name: str, tensor: onnx_ir.TensorProtocol) -> _Initializer:
        proto = onnx.TensorProto()
        stored = serializer.header(proto, tensor, name)
        complete = stored is not None or isinstance(tensor, onnx_ir.serde.TensorProtoTensor | onnx_ir.StringTensor)
        header = proto.SerializeToString(deterministic=True)
        size = len(header)
        if not complete:
            raw = wire.raw_data_prefix(tensor.nbytes)
            size += len(raw) + tensor.nbytes
            header += raw
        return cls(wire.initializer_prefix(size) + header, None if complete else tensor)

    @property
    def size(self) -> int:
        return len(self.header) + (0 if self.tensor is None else self.tensor.nbytes)

    def write(self, target: BinaryIO) -> None:
        target.write(self.header)
        if self.tensor is not None:
            _write_data(self.tensor, target)


@dataclass
class _DataWriter:
    """Writes tensors to the external data file as they are met; tensors that share their source share their place."""

    location: str
    file: BinaryIO
    threshold: int
    _end: int = 0
    _written: dict[tuple[DataFile, int, int], Stored] = field(default_factory=dict)

    def place(self, tensor: onnx_ir.TensorProtocol) -> Stored | None:
        if tensor.dtype == onnx_ir.DataType.STRING or tensor.nbytes < self.threshold:
            return None
        source = tensor.source if isinstance(tensor, MappedTensor) else None
        if source is not None and source in self._written:
            return self._written[source]
        alignment = _PAGE if tensor.nbytes >= _PAGE_ALIGNED_FROM else _LINE
        offset = -(-self._end // alignment) * alignment
        self.file.write(bytes(offset - self._end))
        _write_data(tensor, self.file)
        self._end = offset + tensor.nbytes
        stored = Stored(self.location, offset, tensor.nbytes)
        if source is not None:
            self._written[source] = stored
        return stored


def _write_data(tensor: onnx_ir.TensorProtocol, target: BinaryIO) -> None:
    written = sum(target.write(chunk) for chunk in raw_chunks(tensor))
    if written != tensor.nbytes:
        raise ModelError(f"it has {written} bytes of data and needs {tensor.nbytes}", where=f"tensor {tensor.name!r}")


def _dense_initializers(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.TensorProtocol]]:
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and not isinstance(value.const_value, SparseInitializer):
            yield name, value.const_value


def _data_size(model: onnx_ir.Model) -> int:
    # What nested graphs hold came through protobuf and is small, or is external, which the model remembers.
    return sum(t.nbytes for _, t in _dense_initializers(model) if t.dtype != onnx_ir.DataType.STRING)


def _wants_data_file(model: onnx_ir.Model, choice: ExternalData) -> bool:
    if choice != "auto":
        return choice == "always"
    if model.graph.meta.get(HAD_EXTERNAL_DATA):
        return True
    if any(isinstance(tensor, onnx_ir.ExternalTensor) for _, tensor in _dense_initializers(model)):
        return True
    return _data_size(model) > PROTOBUF_LIMIT - _ROOM_FOR_STRUCTURE


def _set_metadata(proto: onnx.ModelProto, key: str, value: str) -> None:
    for entry in proto.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    proto.metadata_props.add(key=key, value=value)


@contextmanager
def _invalid_model_reported() -> Iterator[None]:
    try:
        yield
    except GraphOptError:
        raise
    except (SerdeError, EncodeError, AttributeError, TypeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(f"the model cannot be written as ONNX: {cause}") from error
