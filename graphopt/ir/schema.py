"""What ONNX's operator schemas say, by operator, opset version and domain; every answer is cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import onnx

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


@lru_cache(maxsize=1024)
def input_types(operator: str, version: int) -> tuple[frozenset[str], ...]:
    """Return the types that each input of one of ONNX's own operators may have, such as ``tensor(float)``."""
    found = onnx.defs.get_schema(operator, version)
    constraints = {item.type_param_str: frozenset(item.allowed_type_strs) for item in found.type_constraints}
    return tuple(constraints.get(formal.type_str, frozenset({formal.type_str})) for formal in found.inputs)


def latest_opset() -> int:
    """Return the newest version of ONNX's own domain that the installed onnx package knows."""
    return onnx.defs.onnx_opset_version()
