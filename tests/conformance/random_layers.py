"""Layers and the chains around them, as exporters write them, for random models."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.random_graphs import SIZES, Builder, Item, Shape, padded


def image(b: Builder) -> Item | None:
    return b.pick(
        lambda i: i.rank == 4 and i.dtype == "float32" and len({s[1:] for s in i.shapes}) == 1 and min(i.shape[2:]) >= 3
        and i.level < 3 and i.shape[1] <= 16
    )  # fmt: skip


def conv(b: Builder) -> bool:
    """A convolution, sometimes behind a Pad, sometimes followed by what exporters put behind it."""
    x = image(b)
    if x is None:
        return False
    if b.rng.random() < 0.3:
        x = padded(b, x, [0, 0, b.rng.randint(0, 1), 1, 0, 0, 1, b.rng.randint(0, 1)], b.rng.choice([0.0, 0.0, 1.0]))
    channels, group = x.shape[1], b.rng.choice([1, 1, x.shape[1]])
    out = group * b.rng.choice([1, 2])
    kernel, stride = b.rng.choice([1, 3]), b.rng.choice([1, 1, 2])
    pads = [b.rng.randint(0, 1) if kernel == 3 else 0 for _ in range(4)]
    sides = [(x.shape[a] + pads[a - 2] + pads[a] - kernel) // stride + 1 for a in (2, 3)]
    inputs: list[Item | None] = [x, b.const(b.weights(out, channels // group, kernel, kernel))]
    if b.rng.random() < 0.5:
        inputs.append(b.const(b.weights(out)))
    shapes = [(s[0], out, *sides) for s in x.shapes]
    options: dict[str, Any] = {"pads": pads, "strides": [stride, stride], "group": group}
    y = b.op("Conv", inputs, shapes, level=x.level + 1, **options)
    after(b, y, out)
    return True


def conv_transpose(b: Builder) -> bool:
    x = image(b)
    if x is None or x.shape[2] > 8:
        return False
    group = b.rng.choice([1, x.shape[1]])
    out = group * b.rng.choice([1, 2])
    inputs: list[Item | None] = [x, b.const(b.weights(x.shape[1], out // group, 2, 2))]
    shapes = [(s[0], out, 2 * s[2], 2 * s[3]) for s in x.shapes]
    y = b.op("ConvTranspose", inputs, shapes, level=x.level + 1, strides=[2, 2], group=group)
    after(b, y, out)
    return True


def after(b: Builder, y: Item, channels: int) -> None:
    for _ in range(b.rng.randint(0, 2)):
        kind = b.rng.choice(["bn", "mul", "add", "relu", "neg", "div"])
        vector = b.weights(channels, 1, 1) if b.rng.random() < 0.6 else b.weights(1, channels, 1, 1)
        if kind == "bn":
            y = batch_norm(b, y, channels)
        elif kind in ("mul", "add"):
            pair: list[Item | None] = [y, b.const(vector)]
            b.rng.shuffle(pair)
            y = b.op(kind.capitalize(), pair, y.shapes, level=y.level + 1, dtype="float32")
        elif kind == "div":
            y = b.op("Div", [y, b.const(np.abs(vector) + 0.5)], y.shapes, level=y.level + 1, exact=False)
        else:
            y = b.op(kind.capitalize(), [y], y.shapes)


def batch_norm(b: Builder, x: Item, channels: int) -> Item:
    arrays = [b.weights(channels), b.weights(channels), b.weights(channels), np.abs(b.weights(channels)) + 0.25]
    operands: list[Item | None] = [b.const(array) for array in arrays]
    return b.op("BatchNormalization", [x, *operands], x.shapes, epsilon=1e-3, exact=False, level=x.level + 1)


def lone_batch_norm(b: Builder) -> bool:
    x = b.pick(lambda i: i.rank >= 2 and i.dtype == "float32" and len({s[1] for s in i.shapes}) == 1 and i.level < 3)
    if x is None:
        return False
    batch_norm(b, x, x.shape[1])
    return True


def pool(b: Builder) -> bool:
    x = image(b)
    if x is None:
        return False
    operator = b.rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool"])
    if operator == "GlobalAveragePool":
        b.op(operator, [x], [(*s[:2], 1, 1) for s in x.shapes], exact=False)
        return True
    if b.rng.random() < 0.4:
        if b.rng.random() < 0.5:
            x = b.op("Relu", [x], x.shapes)
        x = padded(b, x, [0, 0, 1, 0, 0, 0, 0, 1], b.rng.choice([0.0, -np.inf]) if operator == "MaxPool" else 0.0)
    kernel, stride = b.rng.choice([1, 2, 3]), b.rng.choice([1, 2])
    options: dict[str, Any] = {"kernel_shape": [kernel, kernel], "strides": [stride, stride]}
    if operator == "AveragePool":
        options["count_include_pad"] = b.rng.randint(0, 1)
    side = [(x.shape[a] - kernel) // stride + 1 for a in (2, 3)]
    b.op(operator, [x], [(*s[:2], *side) for s in x.shapes], exact=x.exact and operator == "MaxPool", **options)
    return True


def matmul(b: Builder) -> bool:
    """A product by weights, with what makes it a Gemm, an affine chain or an attention score."""
    x = b.pick(lambda i: i.rank >= 2 and i.dtype == "float32" and len({s[-1] for s in i.shapes}) == 1 and i.level < 3)
    if x is None or x.shape[-1] > 64:
        return False
    inner, out = x.shape[-1], b.rng.choice([1, 3, 4])
    shapes = [(*s[:-1], out) for s in x.shapes]
    if x.rank == 2 and b.rng.random() < 0.4:
        turned = b.rng.randint(0, 1)
        weight = b.const(b.weights(*((out, inner) if turned else (inner, out))))
        bias = (
            [b.const(b.weights(*b.rng.choice([(out,), (1, out), (1,), ()])))]
            if b.version < 11 or b.rng.random() < 0.6
            else []
        )
        alpha, beta = b.rng.choice([1.0, 0.5, 2.0]), b.rng.choice([1.0, 0.5])
        y = b.op("Gemm", [x, weight, *bias], shapes, level=x.level + 1, transB=turned, alpha=alpha, beta=beta)
    else:
        weight = b.const(b.weights(inner, out))
        if b.rng.random() < 0.3:
            flat = b.const(b.weights(out, inner))
            weight = b.op("Transpose", [flat], [(inner, out)] * len(SIZES), perm=[1, 0])
        y = b.op("MatMul", [x, weight], shapes, level=x.level + 1)
    for _ in range(b.rng.randint(0, 2)):
        kind = b.rng.choice(["Add", "Mul", "Div", "Sub"])
        array = np.abs(b.weights(out)) + 0.5 if kind == "Div" else b.weights(*b.rng.choice([(out,), (1, out), ()]))
        pair: list[Item | None] = [y, b.const(array)]
        if kind != "Div":
            b.rng.shuffle(pair)
        y = b.op(kind, pair, shapes, level=y.level + 1, exact=False, dtype="float32")
    return True


def attention(b: Builder) -> bool:
    x = b.pick(lambda i: i.rank == 3 and i.dtype == "float32" and len({s[-1] for s in i.shapes}) == 1 and i.level < 3)
    if x is None or x.shape[-1] > 16:
        return False
    inner = x.shape[-1]
    query = b.op("MatMul", [x, b.const(b.weights(inner, 4))], [(*s[:-1], 4) for s in x.shapes], exact=False)
    key = b.op("MatMul", [x, b.const(b.weights(inner, 4))], [(*s[:-1], 4) for s in x.shapes], exact=False)
    turned = b.op("Transpose", [key], [(s[0], 4, s[1]) for s in x.shapes], perm=[0, 2, 1])
    scores = b.op("MatMul", [query, turned], [(s[0], s[1], s[1]) for s in x.shapes], level=x.level + 2)
    scaled = b.op(b.rng.choice(["Div", "Mul"]), [scores, b.const(2.0)], scores.shapes)
    weights = b.op("Softmax", [scaled], scores.shapes, axis=2)
    b.op("MatMul", [weights, x], x.shapes)
    return True


def layer_norm(b: Builder) -> bool:
    x = b.pick(lambda i: i.rank >= 1 and i.dtype == "float32" and len({s[-1] for s in i.shapes}) == 1 and i.level < 2)
    if x is None or x.shape[-1] < 2:
        return False
    kept = [(*s[:-1], 1) for s in x.shapes]
    centred: Item = x
    if b.rng.random() < 0.8:
        mean = mean_of(b, x, kept)
        centred = b.op("Sub", [x, mean], x.shapes, exact=False)
    squares = [centred, centred] if b.rng.random() < 0.5 else [centred, b.const(2.0)]
    square = b.op("Mul" if squares[1] is centred else "Pow", list(squares), x.shapes, exact=False)
    # Level 3: nothing sums the result up, which is 0 but for rounding.
    spread = b.op("Add", [mean_of(b, square, kept), b.const(0.01)], kept)
    root = b.op("Sqrt", [spread], kept)
    if b.rng.random() < 0.6:
        y = b.op("Div", [centred, root], x.shapes, level=3)
    else:
        y = b.op("Mul", [centred, b.op("Reciprocal", [root], kept)], x.shapes, level=3)
    if b.rng.random() < 0.7:
        y = b.op("Mul", [y, b.const(b.weights(x.shape[-1]))], x.shapes)
        y = b.op("Add", [y, b.const(b.weights(*b.rng.choice([(x.shape[-1],), ()])))], x.shapes)
    return True


def mean_of(b: Builder, x: Item, kept: list[Shape]) -> Item:
    inputs, options = b.axes(x, [x.rank - 1], "ReduceMean", 18)
    return b.op("ReduceMean", [x, *inputs], kept, exact=False, keepdims=1, **options)


def activation(b: Builder) -> bool:
    """Gelu, HardSwish, HardSigmoid, SiLU and Mish as exporters write them out."""
    x = b.floats(dtype="float32")
    if x is None or x.level > 2:
        return False
    kind = b.rng.choice(["gelu", "tanh", "hard", "silu", "leaky", "sigmoid", "square"])
    s = x.shapes
    if kind == "gelu":
        gate = b.op("Erf", [b.op("Div", [x, b.const(np.sqrt(2.0))], s)], s, exact=False)
        product = b.op("Mul", [x, b.op("Add", [gate, b.const(1.0)], s)], s)
        b.op("Mul", [product, b.const(0.5)], s)
    elif kind == "tanh":
        cube = b.op("Pow", [x, b.const(3.0)], s, exact=False)
        inner = b.op("Add", [x, b.op("Mul", [cube, b.const(0.044715)], s)], s)
        gate = b.op("Tanh", [b.op("Mul", [inner, b.const(np.sqrt(2 / np.pi))], s)], s)
        half = b.op("Mul", [x, b.const(0.5)], s)
        b.op("Mul", [half, b.op("Add", [gate, b.const(1.0)], s)], s)
    elif kind == "hard":
        shifted = b.op("Add", [x, b.const(3.0)], s, exact=False)
        bounds: list[Item | None] = [] if b.version < 11 else [b.const(0.0), b.const(6.0)]
        gate = b.op("Clip", [shifted, *bounds], s, **({"min": 0.0, "max": 6.0} if b.version < 11 else {}))
        if b.rng.random() < 0.5:
            b.op("Mul", [x, b.op("Div", [gate, b.const(6.0)], s)], s)
        else:
            b.op("Div", [b.op("Mul", [x, gate], s), b.const(6.0)], s)
    elif kind == "silu":
        b.op("Mul", [x, b.op("Sigmoid", [x], s, exact=False)], s)
    elif kind == "leaky":
        b.op("Max", [x, b.op("Mul", [x, b.const(b.rng.choice([0.5, 0.0, 1.0, -1.0, 2.0]))], s)], s)
    elif kind == "sigmoid":
        exponential = b.op("Exp", [b.op("Neg", [x], s)], s, exact=False)
        b.op("Reciprocal", [b.op("Add", [exponential, b.const(1.0)], s)], s)
    else:
        b.op("Mul", [x, x], s, level=2 * x.level + 2)
    return True


STEPS = (conv, conv_transpose, lone_batch_norm, pool, matmul, attention, layer_norm, activation)
