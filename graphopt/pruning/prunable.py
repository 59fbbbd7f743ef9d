"""The constants whose single weights can be pruned, with the layers that read them and what these read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Gram, Request, Statistics
from graphopt.ir import DataType, Editor, Graph, Node, Value, constant
from graphopt.ir import linear as layers
from graphopt.ir.query import attr, constant_size, is_constant, rank_of, sole_use
from graphopt.pruning import sparse
from graphopt.pruning.sparse import Pattern
from graphopt.quantization.layers import WEIGHT, LayerMatrix
from graphopt.quantization.rounding import corrected_bias, output_error

Array = NDArray[np.float64]
Say = Callable[[Node, str], None]
"""Told why a layer is left alone."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE)

WIDEST = 4608
"""Layers with more inputs have no Gram matrix: it has the square of that many float64 numbers."""


@dataclass(frozen=True, eq=False)
class Weights:
    """One constant and the layers that read it, all in the same way; ``grams`` are of their inputs, if known."""

    value: Value
    readers: tuple[LayerMatrix, ...]
    grams: tuple[Gram, ...] = ()

    @cached_property
    def rows(self) -> Array:
        """The weights as float64[O, K]."""
        return np.asarray(self.readers[0].rows(self.readers[0].array), np.float64)

    @property
    def places(self) -> int:
        """How many weights an output has for each input channel: the size of a kernel."""
        first = self.readers[0]
        return int(np.prod(first.array.shape[2:])) if first.node.op_type == "Conv" else 1

    @property
    def name(self) -> str:
        """How reports call them: the first layer's name, or their own."""
        return str(self.readers[0].node.name or self.value.name)

    def moments(self) -> Array:
        """Return E[x xᵀ] of the inputs [groups, K, K], about their means where a bias can make up for these."""
        pairs = zip(self.readers, self.grams, strict=True)
        sums = [_centred(gram) if _biased(reader) is not None else gram.matrix for reader, gram in pairs]
        return np.asarray(sum(sums) / sum(gram.count for gram in self.grams))

    def scores(self, criterion: str) -> Array:
        """Return what each weight costs [O, K]: as a share of the outputs' power unless by magnitude."""
        if criterion == "magnitude" or not self.grams:
            return sparse.magnitudes(self.rows)
        moments = self.moments()
        of = sparse.refit_scores if criterion == "obs" else sparse.activation_scores
        found, power = of(self.rows, moments), self._power(moments)
        return found / power if power > 0 else found

    def pruned(self, pattern: Pattern, share: float, criterion: str, *, recover: bool) -> tuple[Array, float | None]:
        """Return the weights [O, K] with ``share`` of them zero, and their error as a share of the outputs' power.

        ``recover`` refits the other weights where the inputs are known; where these are not, the error is ``None``.
        """
        moments = self.moments() if self.grams else None
        if criterion == "obs" and moments is not None:
            kept = sparse.select(self.rows, moments, pattern, self.places, share)
        else:
            kept = pattern.chosen(self.scores(criterion), self.places, share)
        plain = self.rows * kept
        if moments is None:
            return plain, None
        found = sparse.refit_kept(self.rows, moments, kept) if recover else plain
        with np.errstate(over="ignore"):
            fits = np.isfinite(found.astype(self.readers[0].array.dtype)).all()
        found = found if fits else plain
        power = self._power(moments)
        return found, output_error(self.rows, found, moments) / power if power > 0 else 0.0

    def _power(self, moments: Array) -> float:
        return output_error(self.rows, np.zeros_like(self.rows), moments)

    def write(self, edit: Editor, found: Array, *, biases: bool) -> None:
        """Put ``found`` [O, K] in place; ``biases`` make up for the mean error where the layers' inputs are known."""
        first = self.readers[0]
        array = np.ascontiguousarray(first.shaped(found), first.array.dtype)
        if self.value.is_initializer():
            edit.set_weight(self.value, array)
        else:
            edit.replace_uses(self.value, edit.constant(array, str(self.value.name)))
            edit.drop_unread(self.value)
        for reader, gram in zip(self.readers, self.grams, strict=False):
            layer = _biased(reader) if biases else None
            if layer is None:
                continue
            written = first.rows(array).astype(np.float64)
            shift = corrected_bias(self.rows, written, gram.mean).astype(np.float64)
            both = layers.rescaled(layer, np.ones(layer.channels), shift) if shift.any() else None
            if both is not None:
                layers.write(edit, layer, None, both[1])


def _centred(gram: Gram) -> Array:
    return gram.matrix - gram.total[:, :, None] * gram.total[:, None, :] / gram.count


def _biased(reader: LayerMatrix) -> layers.Linear | None:
    """Return the layer with the place for its bias; ``None`` where there is none."""
    node = reader.node
    if node.op_type != "MatMul":
        return layers.linear_of(node)
    add = sole_use(node.outputs[0])
    found = layers.linear_behind(add.outputs[0]) if add is not None and add.op_type == "Add" else None
    return found if found is not None and found.node is node else None


def prunable(nodes: Sequence[Node], pattern: Pattern, ignored: Collection[Node], say: Say) -> list[Weights]:
    """Return what of the layers among ``nodes`` can be pruned, each constant once; ``say`` hears of the rest."""
    readers: dict[Value, list[LayerMatrix]] = {}
    for node in nodes:
        weight = node.inputs[WEIGHT]
        if node in ignored or (not layers.is_overridable(node) and not _has_weights(node)):
            continue
        why = _refusal(node)
        layer = None if why is not None else LayerMatrix.of(node)
        why = why if layer is None else _misfit(layer, pattern)
        if why is not None:
            say(node, why)
        elif layer is not None and weight is not None:
            readers.setdefault(weight, []).append(layer)
    found = []
    for value, group in readers.items():
        same = len({(reader.axis, reader.groups, reader.node.op_type == "Conv") for reader in group}) == 1
        if not same or value.is_graph_output() or len(list(value.uses())) > len(group):
            say(group[0].node, "others read its weights too, or it is not pruned everywhere that they are read")
        else:
            found.append(Weights(value, tuple(group)))
    return found


def requests(weights: Weights, graph: Graph, say: Say) -> list[Request]:
    """Return what must be known of the inputs of the weights' readers.

    None where that cannot be, of which ``say`` hears: outside the main ``graph``, and for very many inputs.
    """
    found = []
    for reader in weights.readers:
        why = None if reader.node.graph is graph else "it is in a branch or a loop"
        why = f"{reader.width} inputs are too many for a Gram matrix" if reader.width > WIDEST else why
        try:
            found.append(reader.gram())
        except ValueError:
            why = "auto_pad needs the size of its input"
        if why is not None:
            say(reader.node, f"pruned by magnitude, and nothing makes up for it: {why}")
            return []
    return found


def known(weights: Weights, wanted: Sequence[Request], statistics: Statistics) -> Weights:
    """Return the weights with the Gram matrices that were asked for."""
    return Weights(weights.value, weights.readers, tuple(statistics[request] for request in wanted))


def _has_weights(node: Node) -> bool:
    """Tell whether a computed value is multiplied by constant floats."""
    data, weight = node.inputs[0], node.inputs[WEIGHT]
    return weight is not None and bool(constant_size(weight)) and weight.dtype in FLOATS and not is_constant(data)


def _refusal(node: Node) -> str | None:
    weight = node.inputs[WEIGHT]
    if layers.is_overridable(node):
        return "its weights are listed as inputs of the model, which callers may override"
    if node.op_type == "ConvTranspose":
        return "weights of ConvTranspose are not pruned"
    if node.op_type != "Conv" and rank_of(weight) != 2:
        return f"its weights have rank {rank_of(weight)}, not 2"
    if node.op_type == "Gemm" and (attr(node, "alpha", 1.0) != 1.0 or attr(node, "transA", 0)):
        return "its product is scaled, or its input transposed"
    array = constant(weight)
    return "its weights are not finite" if array is None or not np.isfinite(array).all() else None


def _misfit(layer: LayerMatrix, pattern: Pattern) -> str | None:
    channels = layer.array.shape[1] if layer.node.op_type == "Conv" else layer.width
    why = pattern.refusal(layer.outputs // layer.groups, channels)
    return None if why is None else f"{pattern} does not fit: {why}"
