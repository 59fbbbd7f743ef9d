"""Which rewrites bring a model into a form that a target takes, and what is left that it does not take.

What is to be done follows from the target's facts: its opset and its rules, each of which may name a cure. The steps
are returned as the text of pipelines; whoever runs pipelines runs them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.backend.qdq import activation_type, dequantizes, quantizes
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, Value, attr, constant, nodes, opset, shape_of
from graphopt.ir.edit import operator_key
from graphopt.ir.query import is_constant
from graphopt.ir.schema import defaults, schema
from graphopt.targets import Rule, Target

CLEAN = (
    "inline-functions,lift-constants,"
    "fixpoint(fold-shapes,fold-constants,inline-if,remove-identities,remove-reshapes,merge-chains,remove-dead)"
)
"""What lets the other steps see operators as they are."""
_DECOMPOSED = ("Gelu", "GroupNormalization", "HardSwish", "LayerNormalization", "Mish", "RMSNormalization", "Swish")
"""Operators that not every opset has, and that the pass decompose knows in simpler ones."""


@dataclass(frozen=True)
class Refused:
    """A node in a form that the target does not take, or takes and computes wrongly, and the rule that says so."""

    node: Node
    rule: Rule

    def diagnostic(self, target: Target) -> Diagnostic:
        """Return the warning about it, with the vendor's reason and what would help."""
        verdict = "computes it wrongly" if self.rule.wrong else "does not take it"
        text = f"{target.name} {verdict}: {self.rule.why}"
        help_text = self.rule.advice or (
            f"{self.rule.cure} turns it into a form that it takes" if self.rule.cure else None
        )
        name = self.node.name or next((value.name for value in self.node.outputs if value.name), None)
        return Diagnostic(Severity.WARNING, "LEGAL001", f"{self.node.op_type}: {text}", name, help_text)


def steps(model: Model, target: Target) -> list[str]:
    """Return the pipelines, as texts, that come before what the user asked for."""
    found = []
    version = opset(model)
    present = {operator_key(node) for node in nodes(model)}
    if target.opset > version:
        found += [*_written_out(present, target.opset), f"convert-opset{{version={target.opset},only_up=true}}"]
    cures = [rule.cure for rule in target.rules if rule.cure and rule.op in present]
    if found or cures:
        found = [CLEAN, *found, *dict.fromkeys(cures)]
    if target.quantization is not None and target.quantization.every_edge:
        found.append(f"{CLEAN},bound-masks" if not found else "bound-masks")
    if target.max_rank:
        found.append(f"lower-ranks{{rank={target.max_rank}}},remove-reshapes")
    if target.max_opset and max(version, target.opset) > target.max_opset:
        found += [*_written_out(present, target.max_opset), f"convert-opset{{version={target.max_opset}}}"]
    return found


def _written_out(present: Collection[str], version: int) -> list[str]:
    """Return the pass that writes out the operators that opset ``version`` has no more, or not yet."""
    known = {name: schema("", name, version) for name in _DECOMPOSED if name in present}
    absent = [name for name, found in known.items() if found is None or found.deprecated]
    return [f"decompose{{ops={'+'.join(absent)}}}"] if absent else []


def sizes(model: Model, target: Target, given: Mapping[str, int], found: list[Diagnostic]) -> dict[str, int]:
    """Return the sizes that open dimensions of the inputs get, by their name or as INPUT.AXIS.

    Those ``given`` are taken; where the target needs static shapes, an open first axis becomes 1, of which ``found`` is
    told. Raises UsageError for other open dimensions then.
    """
    chosen, missing = dict(given), dict[str, None]()
    for value in model.graph.inputs:
        for axis, dim in enumerate(shape_of(value) or ()):
            place = f"{value.name}.{axis}"
            name = dim if isinstance(dim, str) else place
            if isinstance(dim, int) or name in chosen or place in chosen or not target.static_shapes:
                continue
            if axis:
                missing[name] = None
                continue
            chosen[name] = 1
            text = f"{target.name} needs static shapes: the dimension {name} becomes 1"
            found.append(Diagnostic(Severity.WARNING, "LEGAL002", text, hint=f"--dim {name}=SIZE gives another size"))
    if missing:
        hint = " ".join(f"--dim {name}=SIZE" for name in missing)
        raise UsageError(f"{target.name} needs static shapes, and the size of {', '.join(missing)} is open", hint=hint)
    return chosen


def refused(model: Model, target: Target) -> list[Refused]:
    """Return the nodes that a rule of the target speaks against, as the model is now."""
    by_op: dict[str, list[Rule]] = {}
    for rule in target.rules:
        by_op.setdefault(rule.op, []).append(rule)
    version = opset(model)
    found = [
        Refused(node, rule)
        for node in nodes(model)
        for rule in by_op.get(operator_key(node), ())
        if _holds(rule, node, version)
    ]
    return found + [Refused(node, _too_many_axes(node, target.max_rank)) for node in _of_high_rank(model, target)]


def _of_high_rank(model: Model, target: Target) -> list[Node]:
    if not target.max_rank:
        return []
    return [
        node
        for node in nodes(model)
        if not quantizes(node)
        and not dequantizes(node)
        and any(_axes(node, value) > target.max_rank for value in (*node.inputs, *node.outputs))
    ]


def _axes(node: Node, value: Value | None) -> int:
    """Return how many axes count: toolchains that bound them leave out those of size 1 where data only moves."""
    shape = shape_of(value) or ()
    return len(shape) if node.op_type not in ("Reshape", "Transpose") else sum(dim != 1 for dim in shape)


def _too_many_axes(node: Node, most: int) -> Rule:
    advice = "axes of size 1, or that are never told apart, can be reshaped away"
    return Rule(op=node.op_type, why=f"a tensor has {most} axes at most: Failed to add node.", advice=advice)


def _holds(rule: Rule, node: Node, version: int) -> bool:
    if rule.types and activation_type(node) not in rule.types:
        return False
    if rule.constant >= 0 and not _is_constant(node, rule.constant):
        return False
    if len(node.inputs) < rule.operands or (rule.gates and not _meets(node, rule.gates)):
        return False
    if rule.other_than is not None and not _differs(node, rule.constant, rule.other_than):
        return False
    if rule.reader and not any(use.node.op_type == rule.reader for value in node.outputs for use in value.uses()):
        return False
    known = defaults(node.op_type, version) if node.domain == "" and rule.when else {}
    return all(_text(attr(node, name, known.get(name))) in values for name, values in rule.when.items())


def _meets(node: Node, operator: str) -> bool:
    """Tell whether what ``node`` makes and what it reads are both read by one node of ``operator``."""
    readers = [use.node for use in node.outputs[0].uses()]
    return any(reader.op_type == operator and node.inputs[0] in reader.inputs for reader in readers)


def _is_constant(node: Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    if producer is not None and dequantizes(producer):
        value = producer.inputs[0]
    return value is not None and is_constant(value)


def _differs(node: Node, index: int, number: int) -> bool:
    array = constant(node.inputs[index])
    return array is not None and bool((array != number).any())


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
