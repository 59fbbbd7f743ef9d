"""What constants alone decide: the nodes that could be computed now, and how many bytes that would take.

Sizes are known before anything is computed, from ONNX's inference on the constants themselves; what a file declares of
intermediate values is not believed, so that a lying one cannot make folding allocate more than its budget.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from graphopt.ir import DataType, Model, Node, Value, nodes, subgraphs
from graphopt.ir.infer import Known, infer_nodes
from graphopt.ir.query import is_constant, scalar, tensor_of, use_count
from graphopt.ir.tensors import SparseInitializer, UnresolvedTensor

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
"""Operators of ONNX that give something else each time; Dropout does too, in training."""


def decodes_codebook(node: Node) -> bool:
    """Tell whether ``node`` widens the places of constants in a codebook: a Cast of 8 bits or less for a Gather.

    Computing it would make a small file a large one again.
    """
    if node.op_type != "Cast" or not is_constant(node.inputs[0]) or node.inputs[0] is None:
        return False
    if node.inputs[0].dtype not in (DataType.UINT8, DataType.UINT4):
        return False
    uses = node.outputs[0].uses()
    return bool(uses) and all(use.node.op_type == "Gather" and use.idx == 1 for use in uses)


def is_deterministic(node: Node) -> bool:
    """Tell whether ``node``, of ONNX's own domain, gives equal outputs for equal inputs."""
    if node.op_type != "Dropout":
        return node.op_type not in RANDOM
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return training is None or scalar(training) is False


@dataclass
class ConstantCone:
    """The nodes whose inputs are constants or computed by such nodes.

    ``order`` holds them as they can run, ``facts`` the dtype and shape of their outputs. ``budget`` says for each how
    many bytes of constants it could replace: those that only the cone reads, shared evenly among their readers.
    """

    order: list[Node]
    facts: dict[Value, Known]
    budget: dict[Node, float] = field(default_factory=dict)

    @classmethod
    def build(cls, model: Model, excluded: Collection[Node], kept: Collection[str]) -> ConstantCone:
        """Find the cone, leaving out the ``excluded`` nodes and the operators in ``kept``, and infer its shapes."""
        order: list[Node] = []
        made: set[Value] = set()
        for node in nodes(model):
            if node.inputs and all(value is None or value in made or _usable(value) for value in node.inputs):
                if node in excluded or node.op_type in kept or not _computable(node, model):
                    continue
                order.append(node)
                made.update(node.outputs)
        cone = cls(order, infer_nodes(order, model) if order else {})
        cone.share()
        return cone

    def drop(self, nodes_out: Collection[Node]) -> None:
        """Take nodes out, and with them those that read them."""
        gone = {value for node in nodes_out for value in node.outputs}
        order: list[Node] = []
        for node in self.order:
            if node in nodes_out or any(value in gone for value in node.inputs):
                gone.update(node.outputs)
            else:
                order.append(node)
        self.order = order
        self.share()

    def share(self) -> None:
        """Compute ``budget`` anew."""
        inside = set(self.order)
        shares: dict[Value, float] = {}
        self.budget = {}
        for node in self.order:
            total = 0.0
            for value in node.inputs:
                if value is not None:
                    if value not in shares:
                        shares[value] = _leaf_share(value, inside)
                    total += shares[value]
            self.budget[node] = total
            for value in node.outputs:
                shares[value] = total / max(use_count(value), 1)

    def nbytes(self, node: Node) -> int | None:
        """Return how many bytes the outputs of ``node`` take at most, ``None`` when that cannot be told."""
        total = 0
        for value in node.outputs:
            if value.name:
                size = self._size(node, value)
                if size is None:
                    return None
                total += size
        return total

    def _size(self, node: Node, value: Value) -> int | None:
        dtype, shape = self.facts.get(value, (None, None))
        if dtype is None:
            return None
        # A string takes as many bytes as it has letters; what an object costs in memory stands for that.
        width = 64.0 if dtype.name == "STRING" else dtype.bitwidth / 8
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            return math.ceil(math.prod(dim for dim in shape if isinstance(dim, int)) * width)
        count = self._bound(node)
        return None if count is None else math.ceil(count * max(width, 8.0))

    def _bound(self, node: Node) -> int | None:
        """Return the largest number of elements where it depends on the content of the input."""
        if node.op_type not in ("NonZero", "Unique", "Compress"):
            return None
        value = node.inputs[0]
        tensor = tensor_of(value)
        shape = self.facts[value][1] if value in self.facts else None
        dims = tuple(tensor.shape) if tensor is not None else shape
        if dims is None or not all(isinstance(dim, int) for dim in dims):
            return None
        count = math.prod(dim for dim in dims if isinstance(dim, int))
        return count * max(len(dims), 1) if node.op_type == "NonZero" else count

    def frontier(self) -> list[Value]:
        """Return the values that something outside the cone reads, in order."""
        inside = set(self.order)
        return [
            value
            for node in self.order
            for value in node.outputs
            if value.is_graph_output() or any(use.node not in inside for use in value.uses())
        ]

    def behind(self, value: Value) -> list[Node]:
        """Return the nodes of the cone that ``value`` is computed by, in order."""
        needed = {value}
        found: list[Node] = []
        for node in reversed(self.order):
            if any(output in needed for output in node.outputs):
                found.append(node)
                needed.update(read for read in node.inputs if read is not None)
        return found[::-1]


def stored_bytes(value: Value) -> int:
    """Return how many bytes a constant takes in a file."""
    tensor = tensor_of(value)
    if tensor is None:
        return 0
    if isinstance(tensor, SparseInitializer):
        return tensor.sparse.values.nbytes + tensor.sparse.indices.nbytes
    return tensor.size if tensor.dtype.name == "STRING" else tensor.nbytes


def _usable(value: Value) -> bool:
    if not is_constant(value):
        return False
    tensor = tensor_of(value)
    # Making a sparse tensor dense is a matter of its own, and a tensor known by hash only has no data.
    return tensor is not None and not isinstance(tensor, SparseInitializer | UnresolvedTensor)


def _computable(node: Node, model: Model) -> bool:
    foreign = node.domain != "" or (node.op_identifier() in model.functions)
    return not (foreign or node.op_type == "Constant" or subgraphs(node)) and is_deterministic(node)


def _leaf_share(value: Value, inside: Collection[Node]) -> float:
    uses = value.uses()
    if not uses or value.is_graph_output() or any(use.node not in inside for use in uses):
        return 0.0
    return stored_bytes(value) / len(uses)
