"""Tensors and attributes made from plain arrays and Python values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from graphopt.ir.tensors import light

Attribute = (
    int | float | str | bytes | np.ndarray[Any, Any] | Sequence[int] | Sequence[float] | Sequence[str] | onnx_ir.Attr
)
"""What an attribute can be made from."""


def as_tensor(array: np.ndarray[Any, Any] | onnx_ir.TensorProtocol, name: str | None) -> onnx_ir.TensorProtocol:
    """Return ``array`` as a tensor called ``name``, strings included; a tensor keeps its data where it is."""
    if not isinstance(array, np.ndarray | np.generic):
        return light(array)
    if array.dtype.kind in "OSU":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in np.asarray(array).reshape(-1)]
        return onnx_ir.StringTensor(texts, shape=onnx_ir.Shape(array.shape), name=name)
    return onnx_ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)


def as_attr(name: str, value: Attribute) -> onnx_ir.Attr:
    """Return a plain Python value as the attribute ``name``, an array as a tensor; an attribute is renamed where
    needed."""
    if isinstance(value, onnx_ir.Attr):
        return value if value.name == name else onnx_ir.Attr(name, value.type, value.value)
    if isinstance(value, bool | int | np.integer):
        return onnx_ir.AttrInt64(name, int(value))
    if isinstance(value, float | np.floating):
        return onnx_ir.AttrFloat32(name, float(value))
    if isinstance(value, str):
        return onnx_ir.AttrString(name, value)
    if isinstance(value, bytes):
        return onnx_ir.AttrString(name, value.decode())
    if isinstance(value, np.ndarray):
        return onnx_ir.AttrTensor(name, as_tensor(value, None))
    return _as_list_attr(name, list(value))


def _as_list_attr(name: str, items: list[Any]) -> onnx_ir.Attr:
    if all(isinstance(item, int | np.integer) for item in items):
        return onnx_ir.AttrInt64s(name, [int(item) for item in items])
    if all(isinstance(item, str) for item in items):
        return onnx_ir.AttrStrings(name, items)
    return onnx_ir.AttrFloat32s(name, [float(item) for item in items])
