"""What ONNX's operator schemas say, by operator, opset version and domain; every answer is cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import onnx


@dataclass(frozen=True)
class Schema:
    """The signature of an operator at one version: counts of inputs and outputs, attributes, and since when.

    ``required`` are attributes that must be there, ``types`` the protobuf type of each, ``defaults`` their default
    values where there is one, ``needed`` the positions of inputs that must be there, and ``dtypes`` the types that each
    input may have, as protobuf names such as ``tensor(float)``.
    """

    since: int
    deprecated: bool
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    required: tuple[str, ...]
    types: dict[str, int]
    defaults: dict[str, Any]
    needed: frozenset[int]
    dtypes: tuple[frozenset[str], ...]


@lru_cache(maxsize=4096)
def schema(domain: str, operator: str, version: int) -> Schema | None:
    """Return the operator's schema at an opset version, ``None`` for an operator that ONNX does not define there."""
    try:
        found = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    constraints = {item.type_param_str: frozenset(item.allowed_type_strs) for item in found.type_constraints}
    return Schema(
        found.since_version,
        found.deprecated,
        found.min_input,
        found.max_input,
        found.min_output,
        found.max_output,
        tuple(name for name, attribute in found.attributes.items() if attribute.required),
        {name: cast("Any", attribute.type).value for name, attribute in found.attributes.items()},
        {
            name: onnx.helper.get_attribute_value(attribute.default_value)
            for name, attribute in found.attributes.items()
            if attribute.default_value.name
        },
        frozenset(index for index, formal in enumerate(found.inputs) if formal.option == single),
        tuple(constraints.get(formal.type_str, frozenset({formal.type_str})) for formal in found.inputs),
    )


def latest_opset() -> int:
    """Return the newest version of ONNX's own domain that the installed onnx package knows."""
    return onnx.defs.onnx_opset_version()
