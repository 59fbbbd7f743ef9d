"""Which layers of a pruned network are to be refit, in what order, and what each is to give.

A layer's result often goes through a normalisation, and into a sum with a shortcut, before anything reads it. It is fit
there: to what the original network had behind them, less what the pruned network adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Unfold
from graphopt.ir import Model, Node, Value, attr, constant
from graphopt.ir import linear as layers
from graphopt.ir.query import (
    is_constant,
    rank_of,
    reads,
    same_shape,
    scalar,
    shape_of,
    sole_use,
    static_shape,
    subgraphs,
)
from graphopt.pruning.matrices import WIDEST, layer_of, width_of
from graphopt.quantization.layers import unfold_of

Array = NDArray[np.float64]

_FAITHFUL = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Elu", "Mish", "Softplus"}
    | {"Erf", "PRelu", "BatchNormalization", "Identity", "Dropout", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Where"}
    | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Pad", "Resize", "Upsample"}
    | {"Concat", "Split", "Slice", "Gather", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"}
    | {"Cast"}
)
"""Operators that do with the channels kept what they did with all: nothing is lost here by removing some."""


_NO_GRAM = {
    "ConvTranspose": "transposed convolutions have no Gram matrix here",
    "LSTM": "recurrent layers have no Gram matrix here",
    "GRU": "recurrent layers have no Gram matrix here",
    "RNN": "recurrent layers have no Gram matrix here",
    "Attention": "they are those of a fused operator",
    "Einsum": "an Einsum is not taken apart",
    "Gemm": "its input is transposed, or its bias no row",
    "MatMul": "they are no matrix behind its input",
    "Conv": "its bias is computed",
}
"""Operators that may have weights, and why these are not refit in a node that is no layer here."""


@dataclass(frozen=True, eq=False)
class Job:
    """A layer to refit. ``result`` = ``scale`` * (its output) + ``shift`` + the sum of ``others``."""

    layer: layers.Linear
    result: Value
    scale: Array
    shift: Array
    others: tuple[Value, ...] = ()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Between which numbers anybody who reads the result can tell it apart; None for all."""
        found = {clipping(use.node) for use in self.result.uses()}
        return found.pop() if len(found) == 1 and not self.result.is_graph_output() else None

    @property
    def data(self) -> Value:
        """What the layer reads."""
        return data_of(self.layer)

    @property
    def unfold(self) -> Unfold | None:
        """How a convolution reads its input."""
        return unfold_of_layer(self.layer)


def data_of(layer: layers.Linear) -> Value:
    """Return what a layer reads."""
    value = layer.node.inputs[0]
    assert value is not None
    return value


def unfold_of_layer(layer: layers.Linear) -> Unfold | None:
    """Return how a convolution reads its input, None for other layers."""
    if layer.node.op_type != "Conv":
        return None
    weight = constant(layer.weight)
    assert weight is not None
    return unfold_of(layer.node, weight.shape)


def clipping(node: Node) -> tuple[float, float] | None:
    """Return between which numbers a Relu or a Clip lets pass, None for other nodes."""
    if node.op_type == "Relu" and not node.domain:
        return 0.0, math.inf
    if node.op_type != "Clip" or node.domain:
        return None
    limits = [scalar(value) for value in node.inputs[1:3]] + [None, None]
    low, high = attr(node, "min", limits[0]), attr(node, "max", limits[1])
    known = all(value is None or is_constant(value) for value in node.inputs[1:3])
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high)) if known else None


Declined = Callable[[Node, str], None]
"""Told of each layer that cannot be refit, and why."""


def find_jobs(
    model: Model, shrunk: frozenset[str], declined: Declined | None = None, starts: frozenset[str] = frozenset()
) -> list[Job]:
    """Return the layers, in the order of the graph, whose inputs are not those of the original any more.

    ``shrunk`` names the values that lost channels, ``starts`` the outputs of layers to refit in any case.
    """
    say = declined or (lambda node, why: None)
    changed: set[Value] = set()
    upstream: dict[Value, int] = {}
    jobs: list[Job] = []
    for index, node in enumerate(model.graph):
        inputs = reads(node)
        latest = max((upstream.get(value, -1) for value in inputs), default=-1)
        faithful = node.op_type in _FAITHFUL or is_depthwise(node)
        lossy = any(value in changed or (not faithful and value.name in shrunk) for value in inputs[:1]) or any(
            value in changed or (not faithful and value.name in shrunk and not is_constant(value))
            for value in inputs[1:]
        )
        if lossy or any(value.name in starts for value in node.outputs):
            changed.update(node.outputs)
            layer = refittable(node, say)
            if layer is not None:
                latest = index
                jobs.append(_start(layer))
        upstream.update(dict.fromkeys(node.outputs, latest))
    order = {node: index for index, node in enumerate(model.graph)}
    return [_followed(job, upstream, order[job.layer.node]) for job in jobs]


def is_depthwise(node: Node) -> bool:
    """Tell whether a node is a convolution in which channels do not meet."""
    shape = shape_of(node.inputs[1]) if node.op_type == "Conv" else None
    return shape is not None and shape[1] == 1 and int(attr(node, "group", 1)) > 1


def refittable(node: Node, say: Declined) -> layers.Linear | None:
    """Return the layer that a node is, None where it is none that can be refit; ``say`` is told why."""
    layer = layer_of(node)
    if layer is None:
        why = _NO_GRAM.get(node.op_type)
        if why is not None and any(is_constant(value) and (rank_of(value) or 0) > 1 for value in node.inputs):
            say(node, why)
        for nested in (nested for graph in subgraphs(node) for nested in graph if layer_of(nested) is not None):
            say(nested, "it is in a branch or a loop")
        return None
    if layers.is_shared(layer.weight):
        say(node, "they are shared with another layer")
        return None
    if width_of(layer) > WIDEST:
        say(node, f"{width_of(layer)} inputs are too many for a Gram matrix")
        return None
    try:
        if node.op_type == "Conv":
            unfold_of(node, static_shape(layer.weight) or ())
    except ValueError as error:
        say(node, str(error))
        return None
    return layer


def _start(layer: layers.Linear) -> Job:
    return Job(layer, layer.output, np.ones(layer.channels), np.zeros(layer.channels))


def _followed(job: Job, upstream: Mapping[Value, int], index: int) -> Job:
    """Follow the result through what can be taken back, as far as that goes."""
    while (reader := sole_use(job.result)) is not None:
        further = _through(job, reader, upstream, index)
        if further is None:
            return job
        job = further
    return job


def _through(job: Job, node: Node, upstream: Mapping[Value, int], index: int) -> Job | None:
    if node.op_type == "BatchNormalization" and not job.others and job.layer.axis == 1:
        arrays = [constant(value) for value in node.inputs[1:5]]
        if attr(node, "training_mode", 0) or any(array is None for array in arrays):
            return None
        gamma, beta, mean, var = (np.asarray(array, np.float64) for array in arrays)
        scale = gamma / np.sqrt(var + attr(node, "epsilon", 1e-5))
        return replace(job, result=node.outputs[0], scale=job.scale * scale, shift=(job.shift - mean) * scale + beta)
    if node.op_type != "Add" or node.domain:
        return None
    other = node.inputs[1] if node.inputs[0] is job.result else node.inputs[0]
    if other is None or is_constant(other) or not same_shape(other, job.result) or rank_of(other) is None:
        return None
    # What a later layer will still change is no ground to build on.
    if upstream.get(other, -1) >= index:
        return None
    return replace(job, result=node.outputs[0], others=(*job.others, other))
