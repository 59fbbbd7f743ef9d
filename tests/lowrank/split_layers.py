"""Layers to split, in every shape that a layer comes in, and how well a split one does."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any, NamedTuple

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.analysis.patches import unfolded
from graphopt.analysis.statistics import Gram
from graphopt.ir import Editor, Model, Node, nodes, verify
from graphopt.lowrank.forms import Split
from graphopt.lowrank.rewrite import replace
from graphopt.lowrank.sites import Site, site_of
from tests.helpers import clone, model_of, run

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """A model of one layer, called w its weights and x its input."""

    operator: str
    data: tuple[int, ...]
    weights: tuple[int, ...]
    bias: bool = True


CASES = {
    "conv": Case("Conv<pads=[1,1,1,1]>", (3, 12, 10, 9), (16, 12, 3, 3)),
    "conv without bias": Case("Conv<pads=[1,1,1,1]>", (3, 12, 10, 9), (16, 12, 3, 3), bias=False),
    "conv strided": Case("Conv<pads=[1,0,2,1],strides=[2,3],kernel_shape=[3,3]>", (3, 12, 11, 13), (16, 12, 3, 3)),
    "conv dilated": Case("Conv<pads=[2,1,0,3],dilations=[2,3]>", (3, 12, 11, 13), (16, 12, 3, 3)),
    "conv wide": Case("Conv<pads=[1,2,1,2]>", (3, 8, 9, 12), (12, 8, 3, 5)),
    "conv same upper": Case('Conv<auto_pad="SAME_UPPER",strides=[2,2]>', (3, 12, 11, 12), (16, 12, 3, 4)),
    "conv same lower": Case('Conv<auto_pad="SAME_LOWER",strides=[1,2]>', (3, 12, 11, 12), (16, 12, 2, 4)),
    "conv valid": Case('Conv<auto_pad="VALID">', (3, 12, 11, 12), (16, 12, 3, 3)),
    "conv grouped": Case("Conv<group=2,pads=[1,1,1,1],strides=[1,2]>", (4, 16, 8, 9), (20, 8, 3, 3)),
    "conv 1d": Case("Conv<pads=[2,1],strides=[2]>", (8, 10, 40), (14, 10, 5)),
    "conv 3d": Case("Conv<pads=[1,0,1,0,1,1],dilations=[1,2,1]>", (2, 6, 6, 7, 6), (8, 6, 2, 3, 3)),
    "conv column": Case("Conv<pads=[1,0,1,0]>", (3, 10, 12, 9), (14, 10, 3, 1)),
    "conv 1x1": Case("Conv<strides=[2,2]>", (6, 20, 11, 13), (16, 20, 1, 1)),
    "conv 1x1 padded": Case("Conv<pads=[1,0,1,2]>", (6, 16, 9, 9), (24, 16, 1, 1)),
    "conv 1x1 grouped": Case("Conv<group=2>", (6, 16, 9, 9), (24, 8, 1, 1)),
    "gemm": Case("Gemm", (200, 20), (20, 16)),
    "gemm transposed": Case("Gemm<transB=1,alpha=0.5,beta=2.0>", (200, 20), (16, 20)),
    "gemm both transposed": Case("Gemm<transA=1,transB=1,alpha=-2.0>", (20, 200), (32, 20), bias=False),
    "matmul": Case("MatMul", (200, 20), (20, 32), bias=False),
    "matmul batched": Case("MatMul", (5, 4, 30, 20), (20, 16), bias=False),
}


def model(case: Case, *, dtype: str = "float") -> Model:
    """Return the model of a case, with weights whose singular values fall; shapes are annotated."""
    rng = np.random.default_rng(5)
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    weights = {"w": weights_of(case.weights, rng).astype(kind)}
    outputs = case.weights[1] if case.operator in ("Gemm", "MatMul") else case.weights[0]
    inputs = "x, w"
    if case.bias:
        weights["b"] = rng.normal(size=outputs).astype(kind)
        inputs = "x, w, b"
    shape = ",".join(map(str, case.data))
    found = model_of(
        f"agraph ({dtype}[{shape}] x) => ({dtype} y) {{ y = {case.operator} ({inputs}) }}", weights=weights
    )
    AnalysisManager(Editor(found)).get(Shapes)
    return found


def weights_of(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return random weights that vary less and less along every axis."""
    found = rng.normal(size=shape)
    for axis, size in enumerate(shape):
        turn = np.linalg.qr(rng.normal(size=(size, size)))[0] * np.geomspace(1, 0.05, size)
        found = np.moveaxis(np.tensordot(found, turn, (axis, 1)), -1, axis)
    return found


def data(case: Case) -> Array:
    """Return an input whose neighbouring numbers are alike, with a mean that is not zero."""
    rng = np.random.default_rng(6)
    found = rng.normal(size=case.data)
    for axis in range(1, len(case.data)):
        found = found + 0.7 * np.roll(found, 1, axis)
    return (found + 1).astype(np.float32)


def layer(found: Model) -> Node:
    """Return the last layer of the model that has weights."""
    return [node for node in nodes(found) if node.op_type in ("Conv", "Gemm", "MatMul")][-1]


def site(found: Model) -> Site:
    """Return the site of the model's layer."""
    taken = site_of(layer(found))
    assert isinstance(taken, Site), taken
    return taken


def gram(case: Case, values: Array) -> Gram:
    """Return the Gram matrix of all that the layer of a case reads of ``values``."""
    (request,) = site(model(case)).requests()
    if request.unfold is not None:
        rows = unfolded(values, changed(request.unfold, most=0)).astype(np.float64)
    else:
        turned = values.T if "transA" in case.operator else values
        rows = turned.reshape(-1, turned.shape[-1]).T[None].astype(np.float64)
    return Gram(rows @ rows.transpose(0, 2, 1), rows.sum(axis=2), rows.shape[2])


def apply(found: Model, split: Split) -> list[Node]:
    """Write a split of the model's layer; the model is verified."""
    editor = Editor(found)
    written = replace(editor, site(found), split)
    verify(found)
    return written


def outputs(case: Case, values: Array, split: Split) -> tuple[Array, Array]:
    """Return what the model of a case gives on onnxruntime and what it gives split, channels first, in float64."""
    before = model(case)
    after = clone(before)
    apply(after, split)
    (want,), (got,) = (run(each, {"x": values}) for each in (before, after))
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    axis = 1 if case.operator.startswith("Conv") else -1
    first, second = (
        np.moveaxis(each.astype(np.float64), axis, 0).reshape(want.shape[axis], -1) for each in (want, got)
    )
    return first, second


def error(case: Case, values: Array, split: Split) -> float:
    """Return the error of a split as Candidate.error has it, but by onnxruntime."""
    want, got = outputs(case, values, split)
    mean = want.mean(axis=1, keepdims=True) if split.biases[0] is not None else 0.0
    return float(np.square(want - got).sum() / np.square(want - mean).sum())
