"""What the facts of a target say of a model, before any toolchain is asked.

Toolchains take some things without a word and compute them in floats, or wrongly. What is known of that is named here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.backend.legalize import refused
from graphopt.backend.qdq import (
    dequantizes,
    integer_type,
    is_quantized,
    missing_pairs,
    other_forms,
)
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.ir import Editor, Model, constant, is_constant, nodes, opset, shape_of
from graphopt.targets import Target


def findings(model: Model, target: Target) -> list[Diagnostic]:
    """Return what is known to go wrong with ``model`` on ``target``; its types and shapes are inferred on the way."""
    AnalysisManager(Editor(model)).get(Shapes)
    found = [*_inputs(model, target), *_versions(model, target), *_rules(model, target)]
    if target.quantization is not None:
        found += [*_forms(model, target), *_weights(model, target), *_pairs(model, target), *_products(model, target)]
        found += _narrow(model, target)
    return list(dict.fromkeys(found))


def dynamic_axes(model: Model) -> dict[str, list[str]]:
    """Return the axes of each input that have no fixed size, as fix-shapes calls them: by name, or as INPUT.AXIS."""
    found: dict[str, list[str]] = {}
    for value in model.graph.inputs:
        shape = shape_of(value)
        open_axes = [(axis, dim) for axis, dim in enumerate(shape or ()) if not isinstance(dim, int)]
        if open_axes or shape is None:
            found[value.name or ""] = [
                dim if dim is not None and dim.isidentifier() else f"{value.name}.{axis}" for axis, dim in open_axes
            ]
    return found


def _inputs(model: Model, target: Target) -> Iterator[Diagnostic]:
    if not target.static_shapes:
        return
    for name, axes in dynamic_axes(model).items():
        text = f"its shape is not fixed ({', '.join(axes) or 'unknown rank'}); the target takes fixed shapes only"
        cure = "give the sizes: " + " ".join(f"--dim {axis}=1" for axis in axes)
        yield _error("CHK001", text, name, cure if axes else "the model has to state the rank of its inputs")


def _versions(model: Model, target: Target) -> Iterator[Diagnostic]:
    version = opset(model)
    if target.max_opset and version > target.max_opset:
        text = f"the model is of opset {version}; the target reads up to {target.max_opset}"
        yield _error("CHK002", text, None, f"convert-opset{{version={target.max_opset}}} where the model allows it")


def _rules(model: Model, target: Target) -> Iterator[Diagnostic]:
    for item in refused(model, target):
        node, rule = item.node, item.rule
        hint = "; ".join(text for text in (f"--pipeline '{rule.cure}'" if rule.cure else "", rule.advice) if text)
        if rule.wrong:
            yield _error("CHK004", f"{node.op_type} is computed wrongly: {rule.why}", node.name, hint)
        else:
            yield _warning("CHK003", f"{node.op_type} is not taken: {rule.why}", node.name, hint)


def _forms(model: Model, target: Target) -> Iterator[Diagnostic]:
    others = other_forms(model)
    if others and target.provider != "CPUExecutionProvider":
        kinds = ", ".join(sorted({node.op_type for node in others}))
        text = f"{len(others)} nodes hold quantized numbers without Q/DQ pairs ({kinds}); no NPU takes that form"
        yield _warning("CHK008", text, others[0].name, "strip-qdq turns what it knows back into floats; quantize anew")


def _weights(model: Model, target: Target) -> Iterator[Diagnostic]:
    """Name weights with a zero point for each channel."""
    if target.quantization is None or not target.quantization.weights_symmetric:
        return
    for node in nodes(model):
        if not dequantizes(node) or not is_constant(node.inputs[0]) or len(node.inputs) < 3:
            continue
        zeros = constant(node.inputs[2])
        if zeros is not None and zeros.size > 1 and np.any(zeros != 0):
            text = "the weights have a zero point of their own for each channel; the target takes symmetric ones"
            reader = next((use.node.name for use in node.outputs[0].uses()), node.name)
            yield _warning("CHK005", text, reader, "quantize them symmetrically: all zero points 0")


def _pairs(model: Model, target: Target) -> Iterator[Diagnostic]:
    wanted = target.quantization
    if wanted is None or not wanted.every_edge or not is_quantized(model):
        return
    for node, value in missing_pairs(model, wanted):
        text = f"{node.op_type} computes in float: there is no Q/DQ pair on {value.name!r}"
        yield _warning("CHK006", text, node.name, "a pair belongs on every edge")


def _products(model: Model, target: Target) -> Iterator[Diagnostic]:
    """Name products of two activations whose 16-bit operands are cut to 8 bits."""
    wanted = target.quantization
    if wanted is None or not wanted.wide_products or wanted.wide_products == wanted.wide_activations:
        return
    for node in nodes(model):
        if node.op_type != "MatMul" or node.domain:
            continue
        producers = [value.producer() if value is not None else None for value in node.inputs]
        pairs = [
            item for item in producers if item is not None and dequantizes(item) and not is_constant(item.inputs[0])
        ]
        if len(pairs) == 2 and all(integer_type(pair) == wanted.wide_activations for pair in pairs):
            text = f"a product of two {wanted.wide_activations}: the target cuts the second one to 8 bits"
            yield _warning("CHK007", text, node.name, f"give both operands {wanted.wide_products}")


def _narrow(model: Model, target: Target) -> Iterator[Diagnostic]:
    """Name operators with a bias that the target computes worse with 8 bits than 8 bits allow."""
    wanted = target.quantization
    for node in nodes(model):
        if wanted is None or node.op_type not in wanted.wide_biased or node.domain:
            continue
        if len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is not None and dequantizes(producer) and integer_type(producer) == wanted.activations:
            text = f"{node.op_type} in {wanted.activations} is rounded before its bias is added, and once more after"
            yield _warning("CHK009", text, node.name, f"compute it in {wanted.wide_activations}")


def _error(code: str, text: str, node: str | None, hint: str = "") -> Diagnostic:
    return Diagnostic(Severity.ERROR, code, text, node, hint or None, "check")


def _warning(code: str, text: str, node: str | None, hint: str = "") -> Diagnostic:
    return Diagnostic(Severity.WARNING, code, text, node, hint or None, "check")
