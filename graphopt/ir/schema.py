"""What ONNX's operator schemas say, by operator, opset version and domain; every answer is cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import onnx
import onnx_ir

# The first look registers every operator, which takes longer than a small model: better on import than then.
onnx.defs.has("Identity")


@dataclass(frozen=True)
class Schema:
    """The signature of an operator at one version: counts of inputs and outputs, attributes, and since when.

    ``required`` are attributes that must be there, ``types`` the protobuf type of each, ``needed`` the positions of
    inputs that must be there.
    """

    since: int
    deprecated: bool
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    required: tuple[str, ...]
    types: dict[str, int]
    needed: frozenset[int]


@lru_cache(maxsize=4096)
def schema(domain: str, operator: str, version: int) -> Schema | None:
    """Return the operator's schema at an opset version, ``None`` for an operator that ONNX does not define there."""
    try:
        found = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    attributes = found.attributes  # each look copies all of them out of the library
    return Schema(
        found.since_version,
        found.deprecated,
        found.min_input,
        found.max_input,
        found.min_output,
        found.max_output,
        tuple(name for name, attribute in attributes.items() if attribute.required),
        {name: cast("Any", attribute.type).value for name, attribute in attributes.items()},
        frozenset(index for index, formal in enumerate(found.inputs) if formal.option == single),
    )


@lru_cache(maxsize=1024)
def defaults(operator: str, version: int) -> dict[str, Any]:
    """Return the default values of the attributes of one of ONNX's own operators that have one."""
    found = onnx.defs.get_schema(operator, version)
    return {
        name: onnx.helper.get_attribute_value(attribute.default_value)
        for name, attribute in found.attributes.items()
        if attribute.default_value.name
    }


Types = tuple[frozenset[str], ...]


@lru_cache(maxsize=1024)
def formal_types(operator: str, version: int) -> tuple[Types, Types]:
    """Return the types, such as ``tensor(float)``, that inputs and outputs of one of ONNX's operators may have."""
    found = onnx.defs.get_schema(operator, version)
    constraints = {item.type_param_str: frozenset(item.allowed_type_strs) for item in found.type_constraints}
    inputs, outputs = (
        tuple(constraints.get(formal.type_str, frozenset({formal.type_str})) for formal in formals)
        for formals in (found.inputs, found.outputs)
    )
    return inputs, outputs


def misfit(node: onnx_ir.Node, version: int) -> str | None:
    """Say why a node of ONNX's own domain has inputs or outputs that its operator at an opset version does not take."""
    found = schema("", node.op_type, version)
    if found is None:
        return f"there is no {node.op_type}"
    if len(node.inputs) > found.max_inputs or len(node.outputs) > found.max_outputs:
        return f"{node.op_type} has fewer inputs or outputs"
    given = [*node.inputs, *[None] * (found.min_inputs - len(node.inputs))]
    missing = sorted(index for index in found.needed if index < found.min_inputs and given[index] is None)
    return f"input {missing[0]} of {node.op_type} is not optional" if missing else _refused_type(node, version)


def _refused_type(node: onnx_ir.Node, version: int) -> str | None:
    sides = zip(("input", "output"), (node.inputs, node.outputs), formal_types(node.op_type, version), strict=True)
    for side, values, accepted in sides:
        for index, value in enumerate(values):
            text = None if value is None or value.type is None else type_text(value.type)
            if text is not None and text not in accepted[min(index, len(accepted) - 1)]:
                return f"{side} {index} of {node.op_type} cannot be {text}"
    return None


def type_text(kind: onnx_ir.TypeProtocol) -> str:
    """Return a type as ONNX's schemas write it: ``tensor(float)``, ``seq(tensor(int64))``."""
    if isinstance(kind, onnx_ir.SequenceType):
        return f"seq({type_text(kind.elem_type)})"
    if isinstance(kind, onnx_ir.OptionalType):
        return f"optional({type_text(kind.elem_type)})"
    name = {"FLOAT": "float", "DOUBLE": "double"}.get(kind.dtype.name, kind.dtype.name.lower())
    return f"{'sparse_tensor' if isinstance(kind, onnx_ir.SparseTensorType) else 'tensor'}({name})"


def latest_opset() -> int:
    """Return the newest version of ONNX's own domain that the installed onnx package knows."""
    return onnx.defs.onnx_opset_version()
