"""Takes the large weights out of a serialized model before protobuf parses it.

Protobuf copies every tensor once when it parses and once more each time Python asks for the bytes. The weights are most
of a model file, so they are cut out of the buffer first: the parser sees a small model whose tensors lack their data,
and each tensor becomes a view of the buffer that was read. Whatever looks unusual here is left to protobuf to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MIN_CUT = 512
"""Tensors with less data than this many bytes stay where they are."""

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}
# A tensor stored as unpacked numbers has a field an element; a tensor worth cutting has a handful and its dimensions.
_MAX_TENSOR_FIELDS = 64


class _MalformedError(Exception):
    """The buffer is no plain protobuf message, or uses features that ONNX files do not."""


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    payload: int
    end: int


def carve(data: bytes) -> tuple[bytes, dict[int, memoryview]]:
    """Return (model without its large raw data, that data by the position of its initializer in the main graph).

    The views keep ``data`` alive. When nothing can be cut the first item is ``data`` itself.
    """
    try:
        graphs = [f for f in _fields(data, 0, len(data)) if f.number == _MODEL_GRAPH]
        if len(graphs) != 1 or graphs[0].wire != _LENGTH_DELIMITED:
            return data, {}
        body, cuts = _carve_graph(data, graphs[0])
    except _MalformedError:
        return data, {}
    if not cuts:
        return data, {}
    field = graphs[0]
    return b"".join((data[: field.start], length_delimited(_MODEL_GRAPH, len(body)), body, data[field.end :])), cuts


def length_delimited(number: int, size: int) -> bytes:
    """Return the bytes in front of a length-delimited field: its key and the number of bytes that follow."""
    return _encode(number << 3 | _LENGTH_DELIMITED) + _encode(size)


def raw_data_prefix(size: int) -> bytes:
    """Return the bytes in front of the raw data of a tensor."""
    return length_delimited(_TENSOR_RAW_DATA, size)


def initializer_prefix(size: int) -> bytes:
    """Return the bytes in front of an initializer of ``size`` bytes in a graph."""
    return length_delimited(_GRAPH_INITIALIZER, size)


def graph_prefix(size: int) -> bytes:
    """Return the bytes in front of the graph of ``size`` bytes in a model."""
    return length_delimited(_MODEL_GRAPH, size)


def _carve_graph(data: bytes, graph: _Field) -> tuple[bytes, dict[int, memoryview]]:
    pieces: list[bytes] = []
    cuts: dict[int, memoryview] = {}
    kept_until = graph.payload
    position = -1
    for field in _fields(data, graph.payload, graph.end):
        if field.number != _GRAPH_INITIALIZER or field.wire != _LENGTH_DELIMITED:
            continue
        position += 1
        raw = _raw_data(data, field) if field.end - field.payload >= MIN_CUT else None
        if raw is None:
            continue
        tensor = data[field.payload : raw.start] + data[raw.end : field.end]
        pieces += (data[kept_until : field.start], initializer_prefix(len(tensor)), tensor)
        cuts[position] = memoryview(data)[raw.payload : raw.end]
        kept_until = field.end
    pieces.append(data[kept_until : graph.end])
    return b"".join(pieces), cuts


def _raw_data(data: bytes, tensor: _Field) -> _Field | None:
    found: _Field | None = None
    for count, field in enumerate(_fields(data, tensor.payload, tensor.end)):
        if count >= _MAX_TENSOR_FIELDS:
            return None
        if field.number != _TENSOR_RAW_DATA:
            continue
        if found is not None or field.wire != _LENGTH_DELIMITED:
            return None
        found = field
    return found if found is not None and found.end - found.payload >= MIN_CUT else None


def _fields(data: bytes, start: int, end: int) -> Iterator[_Field]:
    position = start
    while position < end:
        begin = position
        key, position = _decode(data, position, end)
        wire = key & 7
        payload = position
        if wire == _LENGTH_DELIMITED:
            size, payload = _decode(data, position, end)
            position = payload + size
        elif wire == 0:
            _, position = _decode(data, position, end)
        elif wire in _FIXED_SIZES:
            position += _FIXED_SIZES[wire]
        else:
            raise _MalformedError
        if position > end:
            raise _MalformedError
        yield _Field(key >> 3, wire, begin, payload, position)


def _decode(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _MalformedError


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
