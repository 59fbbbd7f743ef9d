"""Decomposed activation functions as one operator.

Before::

    a = Div(x, 1.4142135)
    b = Erf(a)
    c = Add(b, 1.0)
    d = Mul(x, c)
    y = Mul(d, 0.5)

After (opset 20)::

    y = Gelu(x)

Recognised: Gelu by Erf and by Tanh, HardSigmoid and HardSwish (before opset 14 as HardSigmoid and Mul), Mish, Sigmoid,
Relu, LeakyRelu and Clip, in the orders that exporters write them. Time of the single operator against what onnxruntime
1.31's CPU provider makes of the parts (1x128x384, one thread): Gelu 1.00 (it fuses the Erf form itself), Gelu by Tanh
0.47, HardSigmoid 0.52, HardSwish 0.60, Mish 1.00, Relu 0.84. Before opset 20, Gelu by Erf becomes
``com.microsoft::Gelu`` where the target runs that domain. Not done unless asked for: Swish (1.30, because the parts
run as one fused operator) and Softplus (4.3; it also stays finite where ``exp(x)`` overflows, and the parts do not).

Where the parts overflow on the way to a finite result (|x| above 1e12 in ``x**3``, above 5e37 in ``6 * x``), the single
operator gives that result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isclose, isfinite, pi, sqrt
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, attr, opset
from graphopt.ir.match import Const, Match, OneOf, Op, Pattern, Wild, ahead, match, op, roots_of
from graphopt.ir.query import scalar
from graphopt.pipeline import Changes, Pass, PassContext, option

_SINGLE = (DataType.FLOAT, DataType.FLOAT16)
_FLOATS = (*_SINGLE, DataType.DOUBLE)
Attributes = dict[str, float | str]


@dataclass(frozen=True)
class Rule:
    """A pattern over ``x`` and what stands for it.

    ``anchor`` is an operator that every match holds; the root is at most ``steps`` behind it. ``read`` gives the new
    node's attributes, ``None`` when the constants do not fit. ``dtypes`` are those that onnxruntime has a kernel for.
    """

    operator: str
    since: int
    anchor: str
    steps: int
    pattern: Pattern
    read: Callable[[Match], Mapping[str, float | str] | None] = lambda found: {}
    dtypes: tuple[DataType, ...] = _SINGLE
    domain: str = ""


X = Wild("x")
_CLIP = Op("Clip", (op("Add", X, Const(name="b")),), "clip")


def _gated(gate: Pattern) -> Pattern:
    """Return the ways to write ``0.5 * x * gate``."""
    halves = [op("Mul", op("Mul", X, gate), Const(0.5)), op("Mul", op("Mul", X, Const(0.5)), gate)]
    return OneOf((*halves, op("Mul", X, op("Mul", gate, Const(0.5))), op("Div", op("Mul", X, gate), Const(2.0))))


def _tanh_gate() -> Pattern:
    square = OneOf((op("Mul", X, X), op("Pow", X, Const(2.0))))
    cube = OneOf((op("Pow", X, Const(3.0)), op("Mul", X, square)))
    summed = op("Add", X, op("Mul", cube, Const(0.044715)))
    product = op("Mul", X, op("Add", op("Mul", square, Const(0.044715)), Const(1.0)))
    inner = op("Mul", OneOf((summed, product)), Const(sqrt(2 / pi)))
    return op("Add", op("Tanh", inner), Const(1.0))


def _erf_gate() -> Pattern:
    return op("Add", op("Erf", OneOf((op("Div", X, Const(sqrt(2))), op("Mul", X, Const(sqrt(0.5)))))), Const(1.0))


def _bounds(node: Node) -> tuple[float, float] | None:
    """Return the bounds of a Clip, infinite where absent; ``None`` when one is computed."""
    found = []
    for index, (name, absent) in enumerate((("min", -inf), ("max", inf)), start=1):
        value = node.inputs[index] if len(node.inputs) > index else None
        bound = attr(node, name, absent) if value is None else scalar(value)
        if bound is None:
            return None
        found.append(float(bound))
    return found[0], found[1]


def _hard_sigmoid(found: Match) -> dict[str, float] | None:
    """Return slope and offset of ``clip(a * x + b, 0, h) * m``, given that the clip's height times m is 1."""
    numbers, bounds = found.numbers, _bounds(found.node("clip"))
    if bounds is None or bounds[0] != 0 or numbers.get("d") == 0:
        return None
    factor = numbers["m"] if "m" in numbers else 1 / numbers.get("d", 1.0)
    slope, offset = numbers.get("a", 1.0) * factor, numbers["b"] * factor
    if not (isfinite(bounds[1]) and isclose(bounds[1] * factor, 1.0, rel_tol=3e-7) and isfinite(slope + offset)):
        return None
    return {"alpha": slope, "beta": offset}


def _hard_swish(found: Match) -> Attributes | None:
    if "gate" in found.values:
        node = found.node("gate")
        slope, offset = attr(node, "alpha", 0.2), attr(node, "beta", 0.5)
    else:
        gate = _hard_sigmoid(found) or {"alpha": 0.0, "beta": 0.0}
        slope, offset = gate["alpha"], gate["beta"]
    return {} if isclose(slope, 1 / 6, rel_tol=3e-7) and isclose(offset, 0.5, rel_tol=3e-7) else None


def _clip(found: Match) -> Attributes | None:
    low, high = found.numbers.get("low", 0.0), found.numbers["high"]
    return {"min": low, "max": high} if low <= high else None


def _leaky(found: Match) -> Attributes | None:
    return {"alpha": found.numbers["a"]} if 0 < found.numbers["a"] < 1 else None


_HARD_GATE = OneOf((op("Div", _CLIP, Const(name="d")), op("Mul", _CLIP, Const(name="m"))))
_HARD_PRODUCT = op("Mul", X, _CLIP)
_LINE = op("Add", op("Mul", X, Const(name="a")), Const(name="b"))
_EXP = op("Add", op("Exp", op("Neg", X)), Const(1.0))
_SILU = Rule("Swish", 24, "Sigmoid", 1, op("Mul", X, op("Sigmoid", X)), dtypes=_FLOATS)
_SOFTPLUS = Rule("Softplus", 1, "Exp", 2, op("Log", op("Add", op("Exp", X), Const(1.0))), dtypes=_FLOATS)
_RULES = (
    Rule("Sigmoid", 6, "Exp", 2, OneOf((op("Reciprocal", _EXP), op("Div", Const(1.0), _EXP))), dtypes=_FLOATS),
    Rule("Clip", 6, "Max", 1, op("Min", op("Max", X, Const(name="low")), Const(name="high")), _clip, _FLOATS),
    Rule("Clip", 6, "Min", 1, op("Max", op("Min", X, Const(name="high")), Const(name="low")), _clip, _FLOATS),
    Rule("Clip", 6, "Relu", 1, op("Min", op("Relu", X), Const(name="high")), _clip, _FLOATS),
    Rule("Relu", 6, "Max", 0, op("Max", X, Const(0.0)), dtypes=_FLOATS),
    Rule("LeakyRelu", 6, "Max", 0, op("Max", X, op("Mul", X, Const(name="a"))), _leaky),
    Rule("HardSwish", 6, "Clip", 2, op("Mul", X, _HARD_GATE), _hard_swish),
    Rule("HardSwish", 6, "Clip", 2, op("Div", _HARD_PRODUCT, Const(name="d")), _hard_swish),
    Rule("HardSwish", 6, "Clip", 2, op("Mul", _HARD_PRODUCT, Const(name="m")), _hard_swish),
    Rule("HardSwish", 14, "HardSigmoid", 1, op("Mul", X, Op("HardSigmoid", (X,), "gate")), _hard_swish),
    Rule("HardSigmoid", 6, "Clip", 1, _HARD_GATE, _hard_sigmoid),
    Rule("HardSigmoid", 6, "Clip", 0, Op("Clip", (_LINE,), "clip"), _hard_sigmoid),
    Rule("Gelu", 20, "Erf", 3, _gated(_erf_gate()), domain="com.microsoft"),
    Rule("Gelu", 20, "Tanh", 3, _gated(_tanh_gate()), lambda found: {"approximate": "tanh"}, _FLOATS),
    Rule("Mish", 18, "Softplus", 2, op("Mul", X, op("Tanh", op("Softplus", X))), dtypes=_FLOATS),
)


@dataclass(frozen=True, kw_only=True)
class RecognizeActivations(Pass):
    """Replace decomposed Gelu, HardSwish, HardSigmoid, Mish, Sigmoid, Relu, LeakyRelu and Clip by one operator."""

    name: ClassVar[str] = "recognize-activations"
    preserves: ClassVar = (Shapes,)
    swish: bool = option(False, "make Swish of x * Sigmoid(x) (opset 24); slower on onnxruntime's CPU provider")
    softplus: bool = option(False, "make Softplus of Log(1 + Exp(x)); slower on onnxruntime's CPU provider")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Apply the rules in their order: Clip comes before what is built on it."""
        changes = Changes()
        optional = ((self.softplus, _SOFTPLUS), (self.swish, _SILU))
        out_of_reach: dict[str, list[Node]] = {}
        for rule in (*(rule for wanted, rule in optional if wanted), *_RULES):
            anchors = ctx.nodes(rule.anchor)
            if anchors:
                ctx.get(Shapes)
            kinds = roots_of(rule.pattern)
            reached = (root for anchor in anchors if anchor.graph is not None for root in ahead(anchor, rule.steps))
            roots = {root: None for root in reached if root.op_type in kinds}
            for root in roots:
                found = match(rule.pattern, root) if root.graph is not None else None
                attributes = None if found is None else _attributes(rule, found)
                if found is None or attributes is None:
                    continue
                domain = _domain(rule, found, ctx)
                if domain is None:
                    out_of_reach.setdefault(f"{rule.operator} (opset {rule.since})", []).append(root)
                elif ctx.may_rewrite(root, f"it ends a decomposed {rule.operator}"):
                    ctx.edit.replace(root, [_emit(rule.operator, domain, found.values["x"], attributes, root, ctx)])
                    changes[rule.operator] += 1
        for operator, roots_left in out_of_reach.items():
            why = f"{len(roots_left)} decomposed {operator} stay: the model has opset {opset(model)}"
            ctx.missed("ACT001", roots_left[0], why, "convert-opset raises it")
        return changes


def _attributes(rule: Rule, found: Match) -> Mapping[str, float | str] | None:
    if found.values["x"].dtype not in rule.dtypes or not found.keeps_shape_of("x"):
        return None
    return rule.read(found)


def _domain(rule: Rule, found: Match, ctx: PassContext) -> str | None:
    """Return the domain to take the operator from, ``None`` where neither the model's opset nor the target has it."""
    if opset(ctx.edit.model) >= rule.since:
        return ""
    runs = ctx.target is not None and rule.domain in ctx.target.domains
    return rule.domain if runs and found.values["x"].dtype == DataType.FLOAT else None


def _emit(
    operator: str, domain: str, x: Value, attributes: Mapping[str, float | str], root: Node, ctx: PassContext
) -> Value:
    like, version = root.outputs[0], opset(ctx.edit.model)
    if operator == "HardSwish" and version < 14:
        gate = ctx.edit.insert_before(root, "HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5}, like=like)
        return ctx.edit.insert_before(root, "Mul", [x, gate.outputs[0]], like=like).outputs[0]
    if operator == "Clip" and version >= 11 and x.dtype is not None:
        dtype = x.dtype.numpy()
        bounds = [ctx.edit.constant(np.array(attributes[key], dtype), f"{like.name}.{key}") for key in ("min", "max")]
        return ctx.edit.insert_before(root, "Clip", [x, *bounds], like=like).outputs[0]
    if domain and domain not in ctx.edit.model.opset_imports:
        ctx.edit.set_opset(1, domain)
    return ctx.edit.insert_before(root, operator, [x], dict(attributes), domain=domain, like=like).outputs[0]
