"""Random models, nested graphs included, put together from the patterns."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
from onnx import helper

from tests.conformance import random_layers as layers
from tests.conformance import random_patterns as patterns
from tests.conformance.random_graphs import OPSETS, Builder, Item, finish, kind_of
from tests.conformance.random_patterns import binary, clip, duplicate, expression_of_constants, transpose, unary

Step = Callable[[Builder], bool]
"""Adds nodes to a builder; returns whether it found inputs to do so."""


def child(b: Builder) -> Builder:
    return Builder(b.rng, b.version, outer=b, counter=b.counter)


def graph_of(b: Builder, inputs: list[onnx.ValueInfoProto], outputs: list[tuple[str, str, int]]) -> onnx.GraphProto:
    infos = [helper.make_tensor_value_info(name, kind_of(dtype), [None] * rank) for name, dtype, rank in outputs]
    return helper.make_graph(b.nodes, b.name("graph"), inputs, infos, b.initializers)


def if_(b: Builder) -> bool:
    x = b.floats(dtype="float32")
    if x is None or depth(b) > 1:
        return False
    condition = b.pick(lambda item: item.rank == 0, kind="b")
    if condition is None or b.rng.random() < 0.3:
        condition = b.const(b.rng.random() < 0.5, "bool")
    branches = [branch(b, x), branch(b, x)]
    if b.rng.random() < 0.15:
        branches[1].CopyFrom(branches[0])
    graphs = {"then_branch": branches[0], "else_branch": branches[1]}
    b.op("If", [condition], x.shapes, dtype=x.dtype, level=x.level, exact=False, **graphs)
    return True


def branch(b: Builder, x: Item) -> onnx.GraphProto:
    """Return a graph that reads ``x``, and perhaps more, and gives something of its shape."""
    inner = child(b)
    y = inner.op(b.rng.choice(["Relu", "Neg", "Identity", "Sigmoid"]), [x], x.shapes, exact=False)
    for _ in range(b.rng.randint(0, 2)):
        b.rng.choice([unary, binary, transpose, clip, if_, expression_of_constants])(inner)
    if b.rng.random() < 0.5:
        y = inner.op(b.rng.choice(["Relu", "Abs", "Identity"]), [y], x.shapes)
    return graph_of(inner, [], [(y.name, y.dtype, y.rank)])


def depth(b: Builder) -> int:
    return 0 if b.outer is None else 1 + depth(b.outer)


def loop(b: Builder) -> bool:
    """A Loop that carries one value and, sometimes, collects another."""
    x = b.floats(dtype="float32")
    if x is None or x.level > 2 or depth(b) > 1:
        return False
    trips = b.rng.randint(1, 3)
    limit = b.const(trips, "int64")
    inner = child(b)
    carried = Item(b.name(), "float32", x.shapes, x.level + 1, False)
    inner.items.append(carried)
    count, go = b.name(), b.name()
    go_on = b.name()
    inner.nodes.append(helper.make_node("Identity", [go], [go_on]))
    for _ in range(b.rng.randint(0, 2)):
        b.rng.choice([unary, expression_of_constants, clip, duplicate])(inner)
    y = inner.op("Tanh", [inner.op("Add", [carried, b.const(0.25)], x.shapes)], x.shapes, exact=False)
    infos = [
        helper.make_tensor_value_info(count, onnx.TensorProto.INT64, []),
        helper.make_tensor_value_info(go, onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info(carried.name, onnx.TensorProto.FLOAT, [None] * x.rank),
    ]
    outputs = [(go_on, "bool", 0), (y.name, "float32", x.rank)]
    collected = b.rng.random() < 0.5
    if collected:
        scanned = inner.op("Neg", [y], x.shapes)
        outputs.append((scanned.name, "float32", x.rank))
    names = [b.name() for _ in range(1 + collected)]
    body = graph_of(inner, infos, outputs)
    b.nodes.append(helper.make_node("Loop", [limit.name, b.const(True, "bool").name, x.name], names, body=body))
    b.items.append(Item(names[0], "float32", x.shapes, x.level, False))
    if collected:
        b.items.append(Item(names[1], "float32", tuple((trips, *s) for s in x.shapes), x.level, False))
    return True


def scan(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 2 and item.dtype == "float32" and item.level < 3)
    if x is None or depth(b) > 0:
        return False
    inner = child(b)
    piece = Item(b.name(), "float32", tuple(s[1:] for s in x.shapes), x.level, False)
    inner.items.append(piece)
    y = inner.op("Neg", [inner.op("Add", [piece, b.const(0.5)], piece.shapes)], piece.shapes, exact=False)
    for _ in range(b.rng.randint(0, 2)):
        b.rng.choice([unary, clip])(inner)
    info = helper.make_tensor_value_info(piece.name, onnx.TensorProto.FLOAT, [None] * piece.rank)
    body = graph_of(inner, [info], [(y.name, "float32", piece.rank)])
    b.op("Scan", [x], x.shapes, exact=False, body=body, num_scan_inputs=1)
    return True


PATTERNS: dict[str, Step] = {
    step.__name__: step
    for step in (
        *patterns.STEPS, *layers.STEPS, if_, loop, scan,
    )
}  # fmt: skip

DIMS: tuple[tuple[list[int | str], ...], ...] = (
    (["N", 4, 6, 6], ["N", 3, "M"], [2, 4, 5, 5]),
    (["N", "M", 8], ["N", 8], [8], []),
    (["N", 6], [3, 4], ["M", 1, 4], [1, 8, 1]),
    (["N", "M"], ["M", "N", 4], [2, 2, 2]),
)


def random_model(rng: random.Random, length: int | None = None) -> tuple[onnx.ModelProto, Builder]:
    """Return a model of ``length`` random steps (3 to 18) and its builder, which knows its inputs."""
    builder = Builder(rng, rng.choice(OPSETS))
    for dims in rng.choice(DIMS):
        builder.add_input("float32", list(dims))
    builder.add_input(rng.choice(("float16", "float64", "int64", "int32", "float32")), ["N", 4])
    if rng.random() < 0.5:
        builder.add_input("bool", [])
    wanted, names = length or rng.randint(3, 18), list(PATTERNS)
    for _ in range(10 * wanted):
        if wanted and PATTERNS[rng.choice(names)](builder):
            wanted -= 1
    return finish(builder, rng), builder
