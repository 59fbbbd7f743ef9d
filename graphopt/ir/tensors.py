"""What onnx-ir has no class for (tensors known by hash only or sparse, map types), and the content hash of tensors."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.serde import TensorProtoTensor

from graphopt.errors import ModelError

_CACHE_KEY = "graphopt.sha256"
_QUANTIZATION_KEY = "quant_parameter_tensor_names"

TYPE_KEY = "graphopt.type_proto"
"""Key in a value's ``meta`` of a type that onnx-ir cannot hold (maps, opaque types), as an onnx.TypeProto."""


class UnresolvedTensor(ir.LazyTensor):
    """A tensor known by dtype, shape and content hash only, as a text dump without its weights leaves it.

    It has a :func:`tensor_hash` and so a place in a :func:`fingerprint`; asking for its data raises ModelError.
    """

    def __init__(self, dtype: ir.DataType, dims: Iterable[int], content_hash: str, *, name: str | None = None):
        super().__init__(self._refuse, dtype, ir.Shape(dims, frozen=True), name=name)
        self.meta[_CACHE_KEY] = content_hash

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"the data of tensor {self.name!r} is not here, only its hash sha256-{tensor_hash(self)}",
            hint="parse the text with resolve=..., or take the tensor from the model that was dumped",
        )


class ProtoTensor(TensorProtoTensor):
    """A tensor in a protobuf whose dtype and shape are read once: passes ask for them again and again."""

    __slots__ = ("_dtype", "_shape")

    def __init__(self, proto: onnx.TensorProto):
        super().__init__(proto)
        self._dtype = super().dtype
        self._shape: ir.Shape | None = None

    # onnx-ir's protocol declares these as attributes and its own tensors override them with properties, as here.
    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """The element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """The dimensions."""
        if self._shape is None:
            self._shape = super().shape
        return self._shape


def size_of(tensor: ir.TensorProtocol) -> int:
    """Return the number of elements; ``tensor.size`` builds a shape first."""
    return math.prod(tensor.raw.dims) if type(tensor) in _IN_PROTOBUFS else tensor.size


def dims_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return the dimensions; ``tensor.shape`` of a tensor in a protobuf builds a shape first."""
    return tuple(tensor.raw.dims) if type(tensor) in _IN_PROTOBUFS else tuple(tensor.shape.numpy())


# Looked up by exact type: isinstance goes through the abstract base class, which takes far longer than the rest.
_IN_PROTOBUFS = (TensorProtoTensor, ProtoTensor)


def light(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return ``tensor`` in the form that is cheapest to ask, without copying its data."""
    return ProtoTensor(tensor.raw) if type(tensor) is TensorProtoTensor else tensor


@dataclass(frozen=True)
class SparseTensor:
    """A sparse tensor: ``values`` (NNZ), ``indices`` (int64, linear (NNZ) or by axis (NNZ, rank)), dense ``dims``."""

    values: ir.TensorProtocol
    indices: ir.TensorProtocol
    dims: tuple[int, ...]

    def dense(self) -> np.ndarray[Any, Any]:
        """Return the dense array."""
        array = np.zeros(self.dims, dtype=self.values.dtype.numpy())
        indices = self.indices.numpy()
        if indices.ndim == 2:
            array[tuple(indices.T)] = self.values.numpy()
        else:
            array.reshape(-1)[indices] = self.values.numpy()
        return array


class SparseInitializer(ir.LazyTensor):
    """A sparse initializer. Passes see a dense constant, computed when asked for; unchanged, it is written sparse."""

    def __init__(self, sparse: SparseTensor, *, name: str | None = None):
        super().__init__(
            lambda: ir.Tensor(sparse.dense(), dtype=sparse.values.dtype),
            sparse.values.dtype,
            ir.Shape(sparse.dims, frozen=True),
            name=name or sparse.values.name,
        )
        self.sparse = sparse


def tensor_hash(tensor: ir.TensorProtocol) -> str:
    """Return the hex sha256 over dtype, shape and content of ``tensor``; its name does not count.

    The bytes are those of ONNX's raw form (little endian, packed below one byte an element). An external tensor is read
    in chunks, a sparse one is not made dense. The result is kept on the tensor, whose content never changes. Raises
    OSError or ValueError when external data is missing or lies outside the model's folder.
    """
    known = tensor.meta.get(_CACHE_KEY)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256(f"{tensor.dtype.name}{list(tensor.shape.dims)}\n".encode())
    if isinstance(tensor, SparseInitializer):
        digest.update(f"sparse {tensor_hash(tensor.sparse.values)} {tensor_hash(tensor.sparse.indices)}".encode())
    elif tensor.dtype == ir.DataType.STRING:
        for item in string_items(tensor):
            digest.update(struct.pack("<q", len(item)) + item)
    elif isinstance(tensor, ir.ExternalTensor | ir.LazyTensor) and tensor.size and not _padding_bits(tensor):
        tensor.tofile(_DigestFile(digest))
    else:
        digest.update(_mask_padding(tensor, tensor.tobytes()))
    result = digest.hexdigest()
    tensor.meta[_CACHE_KEY] = result
    return result


def string_items(tensor: ir.TensorProtocol) -> list[bytes]:
    """Return the elements of a string tensor, in order, as bytes."""
    items = tensor.string_data() if isinstance(tensor, ir.StringTensor) else tensor.numpy().reshape(-1).tolist()
    return [item.encode() if isinstance(item, str) else bytes(item) for item in items]


def quantization_annotation(value: ir.Value) -> dict[str, str]:
    """Return the names of the tensors that hold the quantization parameters of ``value``, by role."""
    return dict(value.meta.get(_QUANTIZATION_KEY) or {})


def set_quantization_annotation(value: ir.Value, names: Mapping[str, str]) -> None:
    """Record the names of the tensors that hold the quantization parameters of ``value``, by role."""
    value.meta[_QUANTIZATION_KEY] = dict(names)


def kept_type(value: ir.Value) -> onnx.TypeProto | None:
    """Return the type of ``value`` where onnx-ir cannot hold it (maps, opaque types)."""
    kept = value.meta.get(TYPE_KEY) if value.type is None else None
    return kept if isinstance(kept, onnx.TypeProto) else None


class _DigestFile:
    """A file to write to, which keeps only the hash."""

    def __init__(self, digest: Any):
        self._digest = digest

    def write(self, data: bytes) -> None:
        self._digest.update(data)


def _padding_bits(tensor: ir.TensorProtocol) -> int:
    return -tensor.size * tensor.dtype.bitwidth % 8


def _mask_padding(tensor: ir.TensorProtocol, data: bytes) -> bytes:
    # ONNX leaves the unused high bits of the last byte of a tensor of 2, 4 or 6 bits an element open: no content.
    unused = _padding_bits(tensor)
    if not unused or not data:
        return data
    return data[:-1] + bytes([data[-1] & (0xFF >> unused)])
