"""Which nodes of a model compute with integers on a target, and so which values need Q/DQ pairs.

Layers with constant weights (Conv, Gemm, MatMul) are the anchors. Other operators join where the chain stays in
integers: an integer node makes one of the inputs, and an integer node reads the output. Whatever only moves data
joins likewise and shares its input's grid.

Where a target asks for pairs on every edge, each operator that it has an integer kernel for is an integer node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from graphopt.ir import DataType, Model, Node, Value
from graphopt.ir.query import is_constant, rank_of, scalar, sole_use
from graphopt.quantization.layers import WEIGHT
from graphopt.targets import Quantization

LINEAR = ("Conv", "Gemm", "MatMul")
"""The operators with weights."""

Declined = Callable[[Node, str], None]


@dataclass(frozen=True)
class Placement:
    """``nodes`` compute with integers, in graph order; ``values`` maps each value that gets a Q/DQ pair to the one
    whose grid it shares, mostly itself; ``made`` holds those of them that integer nodes produce, so that whoever reads
    them reads rounded numbers.
    """

    nodes: tuple[Node, ...]
    values: dict[Value, Value]
    made: frozenset[Value]

    @property
    def layers(self) -> tuple[Node, ...]:
        """The nodes with weights."""
        return tuple(node for node in self.nodes if is_layer(node))


def place(
    model: Model, facts: Quantization, floats: Collection[Node] = (), declined: Declined | None = None
) -> Placement:
    """Choose the integer nodes of ``model``'s main graph; ``floats`` are nodes that stay in float.

    ``declined`` is told of each layer that cannot be quantized, and why.
    """
    say = declined or (lambda node, why: None)
    kept = frozenset(floats)
    order = [node for node in model.graph if node.domain == "" and node not in kept]
    if facts.every_edge:
        return _everywhere(order, facts, say)
    anchors = [node for node in order if node.op_type in LINEAR and node.op_type in facts.kernels]
    chosen = {node for node in anchors if _quantizable(node, say)}
    joining = {node for node in order if node not in chosen and _may_join(node, facts, chosen)}
    chosen |= _supported(order, chosen, joining, facts)
    nodes = tuple(node for node in order if node in chosen)
    values, made = _values(nodes, facts)
    return Placement(nodes, values, made)


def written(node: Node, facts: Quantization) -> Value:
    """Return what an integer node writes: its output, or that of the activation its kernel does too."""
    value = node.outputs[0]
    reader = sole_use(value)
    if reader is None or reader.domain != "" or reader.op_type not in facts.absorbed.get(node.op_type, ()):
        return value
    bounds = reader.inputs[1:] if reader.op_type == "Clip" else ()
    constant = all(bound is None or scalar(bound) is not None for bound in bounds)
    return reader.outputs[0] if constant else value


def writes(node: Node, facts: Quantization) -> list[Value]:
    """Return all values of floats that an integer node writes, :func:`written` first."""
    if not _is_float(node.outputs[0]):
        return []
    return [written(node, facts), *(value for value in node.outputs[1:] if _is_float(value))]


def operands(node: Node, facts: Quantization) -> dict[int, Value]:
    """Return what an integer node reads as integers, constants included, by index of its inputs."""
    if node.op_type in facts.moves:
        indices: Sequence[int] = (0,)
    else:
        indices = facts.kernels[node.op_type] or range(len(node.inputs))
    found = {index: node.inputs[index] for index in indices if index < len(node.inputs)}
    return {index: value for index, value in found.items() if value is not None}


def read(node: Node, facts: Quantization) -> list[Value]:
    """Return the computed values that an integer node reads as integers."""
    return [value for value in operands(node, facts).values() if not is_constant(value)]


def is_layer(node: Node) -> bool:
    """Tell whether a node multiplies a computed value by constant weights in a form that is rounded as a matrix."""
    return node.op_type in LINEAR and _quantizable(node, lambda node, why: None)


def _everywhere(order: list[Node], facts: Quantization, say: Declined) -> Placement:
    """Return the placement of all that the target has integer kernels for."""
    chosen = dict.fromkeys(node for node in order if _has_kernel(node, facts))
    absorbed: set[Node | None] = set()
    for node in chosen:
        last = written(node, facts).producer()
        if node not in absorbed and last is not node:
            absorbed.add(last)
    for node in order:
        computed = any(value is not None and not is_constant(value) and _is_float(value) for value in node.inputs)
        if computed and node not in chosen and node not in absorbed and node.op_type != "Cast":
            say(node, f"the target has no integer kernel for {node.op_type} of this form")
    nodes = tuple(node for node in chosen if node not in absorbed)
    values, made = _values(nodes, facts)
    return Placement(nodes, _joined(nodes, values, made, facts), made)


def _joined(
    nodes: tuple[Node, ...], values: dict[Value, Value], made: frozenset[Value], facts: Quantization
) -> dict[Value, Value]:
    """Let what only a Concat reads share the grid of its result, so that nothing is rounded there once more."""
    moving = {node for node in nodes if node.op_type in facts.moves}
    members: dict[Value, list[Value]] = {}
    for value, root in values.items():
        members.setdefault(root, []).append(value)
    parents: dict[Value, Value] = {}
    for node in nodes:
        if node.op_type != "Concat":
            continue
        for value in read(node, facts):
            root = values[value]
            readers = {use.node for member in members[root] for use in member.uses()}
            seen = any(member.is_graph_output() for member in members[root])
            maker = root.producer()
            if root in made and not seen and readers - moving == {node} and maker is not None and not is_product(maker):
                parents[root] = values[written(node, facts)]
    found = {}
    for value, root in values.items():
        while root in parents:
            root = parents[root]
        found[value] = root
    return found


def is_product(node: Node) -> bool:
    """Tell whether a node multiplies two computed matrices."""
    return node.op_type == "MatMul" and not any(value is None or is_constant(value) for value in node.inputs)


def _is_float(value: Value) -> bool:
    return value.dtype == DataType.FLOAT


def _has_kernel(node: Node, facts: Quantization) -> bool:
    if node.op_type not in facts.kernels and node.op_type not in facts.moves:
        return False
    inputs = operands(node, facts).values()
    if not inputs or not all(_is_float(value) for value in inputs):
        return False
    # A table that rows are taken of is constant itself, and what is taken is not.
    return any(not is_constant(value) for value in node.inputs if value is not None)


def _quantizable(node: Node, say: Declined) -> bool:
    data, weight = node.inputs[0], node.inputs[WEIGHT]
    if data is None or weight is None:
        return False
    if not is_constant(weight):
        # Attention multiplies two computed values: that is no layer, and nobody expects it to be one.
        if node.op_type != "MatMul":
            say(node, "its weights are computed")
        return False
    if is_constant(data) or weight.dtype != DataType.FLOAT:
        say(node, "its input is constant" if is_constant(data) else f"its weights are {weight.dtype}, not FLOAT")
        return False
    if node.op_type != "Conv" and rank_of(weight) != 2:
        say(node, f"its weights have rank {rank_of(weight)}, not 2")
        return False
    attributes = {name: node.attributes[name].value for name in ("alpha", "beta", "transA") if name in node.attributes}
    if node.op_type == "Gemm" and (attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0):
        say(node, "alpha or beta is not 1")
        return False
    if node.op_type == "Gemm" and attributes.get("transA", 0):
        say(node, "its input is transposed")
        return False
    return True


def _may_join(node: Node, facts: Quantization, chosen: Collection[Node]) -> bool:
    if node.op_type in LINEAR or (node.op_type not in facts.kernels and node.op_type not in facts.moves):
        return False
    values = [value for value in read(node, facts) if value is not None]
    floats = all(value.dtype == DataType.FLOAT for value in [*values, node.outputs[0]])
    constants = [v for v in node.inputs if v is not None and is_constant(v) and v.dtype == DataType.FLOAT]
    if node.op_type == "Pad" and any(scalar(value) != 0 for value in constants):
        return False  # zero is on every grid, other numbers are not
    return floats and bool(values) and len(node.outputs) == 1 and not (constants and node.op_type == "Concat")


def _supported(order: list[Node], anchors: Collection[Node], joining: set[Node], facts: Quantization) -> set[Node]:
    """Return the largest part of ``joining`` whose members are each fed and read by integer nodes."""
    wanted = {value for node in anchors for value in read(node, facts)}
    for node in reversed(order):  # a reader comes after what it reads, so one sweep settles who is read
        if node not in joining:
            continue
        if written(node, facts) in wanted:
            wanted.update(read(node, facts))
        else:
            joining.discard(node)
    made = {written(node, facts) for node in anchors if node.op_type in facts.needs_output}
    for node in order:
        if node not in joining:
            continue
        if any(value in made for value in read(node, facts)):
            made.add(written(node, facts))
        else:
            joining.discard(node)
    # Losing its feeder may leave a node without a reader again; each round removes at least one.
    readable = {value for node in (*anchors, *joining) for value in read(node, facts)}
    orphans = {node for node in joining if written(node, facts) not in readable}
    return _supported(order, anchors, joining - orphans, facts) if orphans else joining


def _values(nodes: tuple[Node, ...], facts: Quantization) -> tuple[dict[Value, Value], frozenset[Value]]:
    values: dict[Value, Value] = {}
    made = set()
    for node in nodes:
        inputs = read(node, facts)
        for value in inputs:
            values.setdefault(value, value)
        for output in writes(node, facts):
            if node.op_type in facts.moves:
                values[output] = values[inputs[0]] if inputs else output
                made.add(output)
            elif facts.every_edge or node.op_type in facts.needs_output:
                values.setdefault(output, output)
                made.add(output)
    return values, frozenset(made)
