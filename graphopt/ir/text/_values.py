"""Read types and tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde
from onnx_ir.serde import TensorProtoTensor

from graphopt.ir.tensors import SparseTensor, UnresolvedTensor, tensor_hash
from graphopt.ir.text._lexer import Cursor, Source, nearest
from graphopt.ir.text._print import COMPOSITE_TYPES, KEPT_TYPES, SIGNED_PACKED, TYPE_NAMES, VALUE_DTYPES

Resolver = Callable[[str], ir.TensorProtocol]

DTYPES = {text: dtype for dtype, text in TYPE_NAMES.items()}
SPECIAL_FLOATS = ("inf", "infinity", "nan")

_FLOAT_LIMIT = 2.0**128


class ValueParser(Cursor):
    """Reads types, tensors and the notes behind them; ``resolve`` finds tensors that are given by hash."""

    def __init__(self, source: Source, resolve: Resolver | None):
        super().__init__(source)
        self.resolve = resolve

    def notes(self) -> dict[str, Any]:
        if self.kinds[self.i] != "@" or self.kinds[self.i + 1] != "{":
            return {}
        self.i += 2
        known: dict[str, Callable[[], Any]] = {
            "doc_string": self.string,
            "metadata_props": self.strings,
            "quantization_annotation": self.strings,
            "device_configurations": self.plain,
        }
        return self.fields(known, "}")

    def is_type(self) -> bool:
        word = self.words[self.i]
        if self.kinds[self.i] == "?":
            return True
        if self.kinds[self.i] != "word":
            return False
        # A name stands where a type may: a second name behind it shows which of the two this is.
        follows = self.kinds[self.i + 1] in ("word", "string", "hex", "[")
        composite = word in COMPOSITE_TYPES or word in KEPT_TYPES
        if follows and word not in DTYPES and not composite:
            raise self.error(f"unknown type {word!r}", hint=nearest(word, [*DTYPES, *COMPOSITE_TYPES, *KEPT_TYPES]))
        return word in DTYPES or (composite and self.kinds[self.i + 1] == "(")

    def holds_kept_type(self) -> bool:
        """Whether the type at the cursor is, or has inside, one that onnx-ir cannot hold."""
        at = self.i
        while self.words[at] in COMPOSITE_TYPES and self.kinds[at + 1] == "(":
            at += 2
        return self.words[at] in KEPT_TYPES

    def kept_type(self) -> onnx.TypeProto:
        proto = onnx.TypeProto()
        if not self.holds_kept_type():
            kind, shape = self.type()
            if kind is not None:
                serde.serialize_type_into(proto, kind)
                if shape is not None:
                    serde.serialize_shape_into(proto, shape)
            return proto
        word = self.expect("word")
        self.expect("(")
        if word == "opaque":
            proto.opaque_type.domain = self.string()
            self.expect(",")
            proto.opaque_type.name = self.string()
        elif word == "map":
            proto.map_type.key_type = int(self.dtype())
            self.expect(",")
            proto.map_type.value_type.CopyFrom(self.kept_type())
        else:
            outer = proto.sequence_type if word == "seq" else proto.optional_type
            outer.elem_type.CopyFrom(self.kept_type())
        self.expect(")")
        if denotation := self.denotation():
            proto.denotation = denotation
        return proto

    def denotation(self) -> str | None:
        if self.kinds[self.i] != "@" or self.kinds[self.i + 1] not in ("string", "hex"):
            return None
        self.i += 1
        return self.string()

    def type(self) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        if self.accept("?"):
            return None, None
        kind: ir.TypeProtocol
        if self.words[self.i] in COMPOSITE_TYPES:
            word = self.expect("word")
            self.expect("(")
            at = self.i
            element, shape = self.type()
            self.expect(")")
            if element is None or (word == "sparse_tensor" and not isinstance(element, ir.TensorType)):
                raise self.error(f"{word}(...) needs another type of element", at)
            composite = COMPOSITE_TYPES[word]
            kind = composite(element.dtype if composite is ir.SparseTensorType else element)
        else:
            kind = ir.TensorType(self.dtype())
            shape = self.shape()
        kind.denotation = self.denotation()
        return kind, shape

    def dtype(self) -> ir.DataType:
        word = self.expect("word")
        if word not in DTYPES:
            raise self.error(f"unknown type {word!r}", self.i - 1, nearest(word, DTYPES))
        return DTYPES[word]

    def shape(self) -> ir.Shape | None:
        if not self.accept("["):
            return ir.Shape(())
        dims = self.several(self.dim, "]")
        return ir.Shape([dim for dim, _ in dims], denotations=[text for _, text in dims]) if dims else None

    def dim(self) -> tuple[int | str | None, str | None]:
        return self.size(), self.denotation()

    def size(self) -> int | str | None:
        if self.accept("?"):
            return None
        return self.integer() if self.kinds[self.i] == "int" else self.name().text

    def tensor_after(
        self, kind: ir.TypeProtocol | None, shape: ir.Shape | None, at: int
    ) -> tuple[ir.AttributeType, ir.TensorProtocol | SparseTensor]:
        # x"..." can be the data or the name; behind a name comes the data, so the next token tells.
        named = self.kinds[self.i] in ("word", "string") or (
            self.kinds[self.i] == "hex" and self.kinds[self.i + 1] in ("{", "=", "hex")
        )
        name = self.name().text if named else ""
        self.accept("=")
        data = self.tensor_data(kind, shape, name, at)
        is_sparse = isinstance(data, SparseTensor)
        return ir.AttributeType.SPARSE_TENSOR if is_sparse else ir.AttributeType.TENSOR, data

    def float32(self) -> float:
        if self.kinds[self.i] == "hex":
            data = self.data()
            if len(data) != 4:
                raise self.error("a float in hexadecimal has 4 bytes", self.i - 1)
            return float(np.frombuffer(data, "<f4")[0])
        at = self.i
        value = float(self.number())
        if abs(value) >= _FLOAT_LIMIT and self.words[at].lstrip("-") not in SPECIAL_FLOATS:
            raise self.error("this number does not fit a float", at)
        return value

    def number(self) -> str:
        if self.kinds[self.i] not in ("float", "int") and self.words[self.i] not in SPECIAL_FLOATS:
            raise self.error(f"expected a number, found {self.words[self.i]!r}")
        self.i += 1
        return self.words[self.i - 1]

    def tensor(self) -> ir.TensorProtocol:
        at = self.i
        kind, shape = self.type()
        _, tensor = self.tensor_after(kind, shape, at)
        if isinstance(tensor, SparseTensor):
            raise self.error("expected a dense tensor", at)
        return tensor

    def tensor_data(
        self, kind: ir.TypeProtocol | None, shape: ir.Shape | None, name: str, at: int
    ) -> ir.TensorProtocol | SparseTensor:
        if not isinstance(kind, ir.TensorType | ir.SparseTensorType) or shape is None or not shape.is_static():
            raise self.error("the type of a tensor with data must be a tensor of known shape", at)
        if isinstance(kind, ir.SparseTensorType):
            self.expect("(")
            values = self.tensor()
            self.expect(",")
            indices = self.tensor()
            self.expect(")")
            return SparseTensor(values, indices, shape.numpy())
        if self.kinds[self.i] == "[":
            return self.with_notes(self.by_hash(kind.dtype, shape, name))
        if kind.dtype == ir.DataType.STRING:
            self.expect("{")
            strings = self.several(self.data, "}")
            self.check_count(len(strings), shape, at)
            return self.with_notes(ir.StringTensor(strings, shape=ir.Shape(shape.numpy()), name=name))
        data = self.data() if self.kinds[self.i] == "hex" else self.elements(kind.dtype, shape, at)
        proto = onnx.TensorProto(data_type=int(kind.dtype), dims=shape.numpy(), raw_data=data)
        if name:
            proto.name = name
        return self.with_notes(TensorProtoTensor(proto))

    def with_notes(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        notes = self.notes()
        if not notes:
            return tensor
        tensor.metadata_props.update(notes.get("metadata_props", {}))
        if doc := notes.get("doc_string"):
            if isinstance(tensor, TensorProtoTensor):
                tensor.raw.doc_string = doc
            else:
                tensor.doc_string = doc
        return tensor

    def check_count(self, count: int, shape: ir.Shape, at: int) -> None:
        wanted = int(np.prod(shape.numpy(), dtype=np.int64))
        if count != wanted:
            raise self.error(f"a tensor of shape {list(shape.numpy())} has {wanted} elements, here are {count}", at)

    def elements(self, dtype: ir.DataType, shape: ir.Shape, at: int) -> bytes:
        self.expect("{")
        items = self.several(self.number, "}")
        complex_parts = 2 if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1
        self.check_count(len(items) // complex_parts, shape, at)
        layout = np.dtype(VALUE_DTYPES.get(dtype, f"<u{max(1, dtype.bitwidth // 8)}"))
        try:
            if layout.kind == "f":
                return _reals(items, layout)
            numbers = [int(item) for item in items]
        except (ValueError, FloatingPointError) as error:
            raise self.error(f"an element is no {TYPE_NAMES[dtype]}", at) from error
        signed = layout.kind == "i" or dtype in SIGNED_PACKED
        low, high = (-1 << (dtype.bitwidth - 1), 1 << (dtype.bitwidth - 1)) if signed else (0, 1 << dtype.bitwidth)
        if any(not low <= number < high for number in numbers):
            raise self.error(f"the elements of {TYPE_NAMES[dtype]} lie between {low} and {high - 1}", at)
        if dtype.bitwidth < 8:
            return _pack(numbers, dtype.bitwidth)
        return np.array(numbers, dtype=layout).tobytes()

    def by_hash(self, dtype: ir.DataType, shape: ir.Shape, name: str) -> ir.TensorProtocol:
        at = self.i
        location = self.strings().get("location", "")
        if not re.fullmatch(r"sha256-[0-9a-f]{64}", location):
            raise self.error('the data of a tensor is given here as ["location": "sha256-<64 hex digits>"]', at)
        content = location.removeprefix("sha256-")
        if self.resolve is None:
            return UnresolvedTensor(dtype, shape.numpy(), content, name=name)
        try:
            found = self.resolve(content)
        except KeyError as error:
            raise self.error("no tensor with this hash is at hand", at) from error
        if tensor_hash(found) != content:
            raise self.error(f"the tensor found for {location} has another content", at)
        if (found.name or "") == name:
            return found
        return ir.LazyTensor(lambda: found, dtype, ir.Shape(shape.numpy()), name=name)


def _reals(items: list[str], layout: np.dtype[Any]) -> bytes:
    values = np.array([float(item) for item in items])
    if any(
        item.lstrip("-") not in SPECIAL_FLOATS for item, is_inf in zip(items, np.isinf(values), strict=True) if is_inf
    ):
        raise FloatingPointError
    with np.errstate(over="raise"):
        return values.astype(layout).tobytes()


def _pack(numbers: list[int], width: int) -> bytes:
    bits = (np.array(numbers, dtype=np.int64)[:, None] >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
