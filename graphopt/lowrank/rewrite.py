"""Puts thin layers in the place of a layer."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir import Editor, Node, Value
from graphopt.ir import linear as layers
from graphopt.ir.build import Attribute
from graphopt.ir.linear import Linear
from graphopt.ir.query import Dim, attr, constant, shape_of
from graphopt.lowrank.forms import Split
from graphopt.lowrank.sites import Site

_Attributes = dict[str, Attribute]


def replace(edit: Editor, site: Site, split: Split) -> list[Node]:
    """Write the thin layers of every layer of the site; returns their nodes, in order, layer by layer.

    The last thin layer is the old node with other inputs: it keeps its name, its output and the bias (for a MatMul, the
    Add behind it). The layers of a shared weight share the thin weights. Names are derived from the old ones, shapes of
    the values between are annotated. The model is valid afterwards.
    """
    old = constant(site.layer.weight)
    assert old is not None
    name = site.layer.weight.name or site.name
    weights = [
        edit.constant(array.astype(old.dtype), f"{name}_{index}") for index, array in enumerate(split.weights, start=1)
    ]
    found = []
    for layer, bias in zip(site.layers, split.biases, strict=True):
        found += _chain(edit, layer, split, weights)
        if bias is not None:
            layers.write(edit, layer, None, bias.astype(old.dtype))
    return found


def _chain(edit: Editor, layer: Linear, split: Split, weights: Sequence[Value]) -> list[Node]:
    node = layer.node
    *firsts, last = _attributes(node, split)
    nodes: list[Node] = []
    value = node.inputs[0]
    for number, (weight, attributes) in enumerate(zip(weights, firsts, strict=False), start=1):
        base = f"{node.name or node.outputs[0].name}_{number}"
        thin = edit.insert_before(
            node, node.op_type, [value, weight], attributes, name=base, outputs=[f"{base}_output"]
        )
        value = thin.outputs[0]
        edit.annotate(value, weight.dtype, _shape(node, split, number))
        nodes.append(thin)
    edit.rewrite(node, node.op_type, [value, weights[-1], *node.inputs[2:]], last)
    return [*nodes, node]


def _attributes(node: Node, split: Split) -> list[_Attributes]:
    """Return the attributes of each thin layer."""
    own: _Attributes = dict(node.attributes)
    if node.op_type != "Conv":
        first = {name: value for name, value in own.items() if name in ("transA", "transB")}
        return [first, {name: value for name, value in own.items() if name != "transA"}]
    group = attr(node, "group", 1)
    ones: _Attributes = {"kernel_shape": [1] * (split.weights[0].ndim - 2)}
    if split.candidate.form == "spatial":
        return [_on_axis(node, split, axis) for axis in (0, 1)]
    if split.candidate.form == "tucker":
        return [ones, own, ones]
    return [own, {**ones, "group": group} if group > 1 else ones]


def _on_axis(node: Node, split: Split, axis: int) -> _Attributes:
    """Return the attributes of the half of a Conv whose kernel lies along a spatial axis, 0 or 1."""
    found: _Attributes = {"kernel_shape": split.weights[axis].shape[2:]}
    for name, neutral in (("strides", 1), ("dilations", 1), ("pads", 0)):
        values = attr(node, name)
        if values is not None:
            found[name] = [value if index % 2 == axis else neutral for index, value in enumerate(values)]
    if "auto_pad" in node.attributes:
        found["auto_pad"] = node.attributes["auto_pad"]
    return found


def _shape(node: Node, split: Split, number: int) -> list[Dim] | None:
    """Return the shape behind thin layer ``number``, from 1; None where those around the old layer are not known."""
    given, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if not given or not result or len(given) != len(result):
        return None
    ranks = split.candidate.ranks
    if node.op_type != "Conv":
        return [*result[:-1], ranks[0]]
    channels = len(split.weights[number - 1])
    if split.candidate.form == "tucker" and number == 1:
        return [given[0], channels, *given[2:]]
    if split.candidate.form == "spatial":
        return [result[0], channels, result[2], given[3]]
    return [result[0], channels, *result[2:]]
