"""Random networks whose channels depend on each other in every way that layers, moves and attention make them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
OPSETS = (11, 13, 17, 18, 21, 23)
SIDE = 4
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "HardSigmoid", "Softplus", "Abs", "Elu", "Identity", "Neg")


@dataclass
class Net:
    """A network as it grows, by choices of ``rng``: images [1, channels, SIDE, SIDE], tokens [1, count, width]."""

    rng: random.Random
    version: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    biases: dict[int, list[str]] = field(default_factory=dict)
    weights: dict[Shape, list[str]] = field(default_factory=dict)
    counter: int = 0

    def name(self, kind: str) -> str:
        self.counter += 1
        return f"{kind}{self.counter}"

    def op(self, operator: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        return self.ops(operator, inputs, [shape], **attributes)[0]

    def ops(self, operator: str, inputs: list[str], shapes: list[Shape], **attributes: Any) -> list[str]:
        names = [self.name("v") for _ in shapes]
        self.nodes.append(helper.make_node(operator, inputs, names, name=self.name(operator), **attributes))
        self.shapes.update(zip(names, shapes, strict=True))
        return names

    def constant(self, array: np.ndarray) -> str:
        name = self.name("c")
        if self.rng.random() < 0.8:
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        self.shapes[name] = array.shape
        return name

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        seeded = np.random.default_rng(self.rng.randrange(1 << 30))
        return (seeded.standard_normal(shape) * scale).astype(np.float32)

    def weight(self, *shape: int, fan_in: int) -> str:
        """Return a weight, sometimes one that another layer has already."""
        known = self.weights.setdefault(shape, [])
        if not known or self.rng.random() < 0.8:
            known.append(self.constant(self.normal(*shape, scale=fan_in**-0.5)))
        return self.rng.choice(known)

    def bias(self, size: int) -> str:
        """Return a bias, sometimes one that another layer has already."""
        known = self.biases.setdefault(size, [])
        if not known or self.rng.random() < 0.6:
            known.append(self.constant(self.normal(size)))
        return self.rng.choice(known)

    def scale(self, size: int) -> str:
        return self.constant(np.abs(self.normal(size)) + np.float32(0.5))

    def reduced(self, operator: str, x: str, axes: list[int], shape: Shape, keepdims: int) -> str:
        first = 13 if operator == "ReduceSum" else 18
        if self.version >= first:
            return self.op(operator, [x, self.ints(*axes)], shape, keepdims=keepdims)
        return self.op(operator, [x], shape, axes=axes, keepdims=keepdims)


# -- images ----------------------------------------------------------------------------------------------------------


def conv(net: Net, x: str, out: int | None = None, group: int = 1) -> str:
    channels = net.shapes[x][1]
    out = out or net.rng.choice((4, 6, 8, 12))
    size = net.rng.choice((1, 3))
    width = channels // group
    inputs = [x, net.weight(out, width, size, size, fan_in=width * size * size)]
    inputs += [net.bias(out)] if net.rng.random() < 0.7 else []
    return net.op("Conv", inputs, (1, out, SIDE, SIDE), group=group, pads=[size // 2] * 4)


def grouped(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    kinds = [group for group in (2, 3) if channels % group == 0]
    if not kinds or net.rng.random() < 0.5:
        return conv(net, x, channels * net.rng.choice((1, 2)), channels)
    group = net.rng.choice(kinds)
    return conv(net, x, group * net.rng.choice((2, 4)), group)


def transposed(net: Net, x: str) -> str:
    channels, out = net.shapes[x][1], net.rng.choice((4, 6))
    group = channels if net.rng.random() < 0.3 else 1
    out = channels if group > 1 else out
    inputs = [x, net.weight(channels, out // group, 3, 3, fan_in=9 * channels // group)]
    inputs += [net.bias(out)] if net.rng.random() < 0.7 else []
    return net.op("ConvTranspose", inputs, (1, out, SIDE, SIDE), group=group, pads=[1] * 4)


def normalized(net: Net, x: str) -> str:
    size = net.shapes[x][1]
    kind = net.rng.choice(("batch", "batch", "instance", "group"))
    if kind == "group" and net.version >= 21 and size % 2 == 0:
        return net.op("GroupNormalization", [x, net.scale(size), net.bias(size)], net.shapes[x], num_groups=size // 2)
    if kind == "instance":
        return net.op("InstanceNormalization", [x, net.scale(size), net.bias(size)], net.shapes[x], epsilon=0.1)
    inputs = [x, net.scale(size), net.bias(size), net.bias(size), net.scale(size)]
    return net.op("BatchNormalization", inputs, net.shapes[x])


def activated(net: Net, x: str) -> str:
    kind = net.rng.choice((*ACTIVATIONS, "PRelu", "Clip", "Swish"))
    shape = net.shapes[x]
    if kind == "PRelu":
        return net.op("PRelu", [x, net.constant(net.normal(shape[1], *[1] * (len(shape) - 2)))], shape)
    if kind == "Clip":
        return net.op("Clip", [x, net.constant(np.float32(-0.5)), net.constant(np.float32(2))], shape)
    if kind == "Swish":
        return net.op("Mul", [x, net.op("Sigmoid", [x], shape)], shape)
    return net.op(kind, [x], shape)


def shifted(net: Net, x: str) -> str:
    """Arithmetic with a constant for each channel, or with one of another shape."""
    channels = net.shapes[x][1]
    sides = net.rng.choice(((channels, 1, 1), (1, channels, 1, 1), (1, 1), (channels, 1, SIDE), ()))
    inputs = [x, net.constant(np.asarray(net.normal(*sides)))]
    net.rng.shuffle(inputs)
    return net.op(net.rng.choice(("Add", "Mul", "Sub", "Max")), inputs, net.shapes[x])


def selected(net: Net, x: str) -> str:
    """Where, by a mask of the channels."""
    channels = net.shapes[x][1]
    mask = net.constant(net.normal(channels, 1, 1) > 0)
    other = net.constant(np.float32(0.5)) if net.rng.random() < 0.5 else net.op("Tanh", [x], net.shapes[x])
    return net.op("Where", [mask, x, other], net.shapes[x])


def residual(net: Net, x: str) -> str:
    inner = conv(net, activated(net, conv(net, x)), net.shapes[x][1])
    operands = [x, inner]
    net.rng.shuffle(operands)
    return net.op(net.rng.choice(("Add", "Add", "Mul", "Sub")), operands, net.shapes[x])


def dense(net: Net, x: str) -> str:
    parts = [x, conv(net, x), *([activated(net, conv(net, x))] if net.rng.random() < 0.3 else [])]
    net.rng.shuffle(parts)
    return net.op("Concat", parts, (1, sum(net.shapes[p][1] for p in parts), SIDE, SIDE), axis=1)


def divided(net: Net, x: str) -> str:
    """Split, something with one part, and Concat or a product of the parts."""
    size = net.shapes[x][1]
    if size == 1:
        return x
    first = size // 2 if net.rng.random() < 0.6 else max(1, size // 3)
    sizes = [first, size - first]
    shapes = [(1, part, SIDE, SIDE) for part in sizes]
    given, attributes = [x], {}
    if sizes[0] != sizes[1] or net.rng.random() < 0.5:
        given += [net.ints(*sizes)] if net.version >= 13 else []
        attributes = {} if net.version >= 13 else {"split": sizes}
    elif net.version >= 18:
        attributes = {"num_outputs": 2}
    left, right = net.ops("Split", given, shapes, axis=net.rng.choice((1, -3)), **attributes)
    if sizes[0] == sizes[1] and net.rng.random() < 0.5:
        return net.op("Mul", [left, net.op("Sigmoid", [right], shapes[1])], shapes[0])
    parts = [left, conv(net, right)]
    return net.op("Concat", parts, (1, sum(net.shapes[p][1] for p in parts), SIDE, SIDE), axis=1)


def sliced(net: Net, x: str) -> str:
    size = net.shapes[x][1]
    if size == 1:
        return x
    start = net.rng.randrange(size - 1)
    end = net.rng.randrange(start + 1, size + 1)
    numbers = (
        start - size if net.rng.random() < 0.3 else start,
        end if net.rng.random() < 0.7 or end < size else 1 << 40,
    )
    axis = net.rng.choice((1, -3))
    return net.op("Slice", [x, *(net.ints(number) for number in (*numbers, axis))], (1, end - start, SIDE, SIDE))


def gathered(net: Net, x: str) -> str:
    order = list(range(net.shapes[x][1]))
    net.rng.shuffle(order)
    order = order[: net.rng.randint(max(1, len(order) // 2), len(order))]
    return net.op("Gather", [x, net.ints(*order)], (1, len(order), SIDE, SIDE), axis=1)


def padded(net: Net, x: str) -> str:
    before, after = net.rng.randint(0, 3), net.rng.randint(0, 3)
    shape = (1, net.shapes[x][1] + before + after, SIDE, SIDE)
    fill = [net.constant(np.float32(net.rng.choice((0.0, 0.0, 1.0))))] if net.rng.random() < 0.5 else []
    return net.op("Pad", [x, net.ints(0, before, 0, 0, 0, after, 0, 0), *fill], shape)


def shuffled(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    group = next((g for g in (2, 3) if channels % g == 0), 1)
    split = (1, group, channels // group, SIDE, SIDE)
    parts = net.op("Reshape", [x, net.ints(*split)], split)
    turned = (1, channels // group, group, SIDE, SIDE)
    turned_name = net.op("Transpose", [parts], turned, perm=[0, 2, 1, 3, 4])
    shape = net.rng.choice(((1, channels, SIDE, SIDE), (1, -1, SIDE, SIDE), (0, channels, SIDE, SIDE)))
    return net.op("Reshape", [turned_name, net.ints(*shape)], net.shapes[x])


def squeezed(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    pooled = net.op("GlobalAveragePool", [x], (1, channels, 1, 1))
    if net.rng.random() < 0.5:
        pooled = net.reduced("ReduceMean", x, [2, 3], (1, channels, 1, 1), 1)
    inner = net.op("Conv", [pooled, net.weight(4, channels, 1, 1, fan_in=channels)], (1, 4, 1, 1))
    inner = net.op("Relu", [inner], (1, 4, 1, 1))
    outer = net.op("Conv", [inner, net.weight(channels, 4, 1, 1, fan_in=4), net.bias(channels)], (1, channels, 1, 1))
    return net.op("Mul", [x, net.op("Sigmoid", [outer], (1, channels, 1, 1))], net.shapes[x])


def pooled(net: Net, x: str) -> str:
    kind = net.rng.choice(("MaxPool", "AveragePool", "Resize"))
    if kind == "Resize" and net.version >= 13:
        return net.op("Resize", [x, "", "", net.ints(*net.shapes[x])], net.shapes[x], mode="nearest")
    kind = "MaxPool" if kind == "Resize" else kind
    return net.op(kind, [x], net.shapes[x], kernel_shape=[3, 3], pads=[1] * 4)


def moved_in_space(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    deep = (1, channels * 4, SIDE // 2, SIDE // 2)
    y = net.op("SpaceToDepth", [x], deep, blocksize=2)
    if net.rng.random() < 0.5:
        y = net.op("Relu", [y], deep)
    return net.op("DepthToSpace", [y], net.shapes[x], blocksize=2, mode="DCR")


def expanded(net: Net, x: str) -> str:
    one = net.reduced("ReduceSum", x, [2, 3], (1, net.shapes[x][1], 1, 1), 1)
    return net.op("Expand", [one, net.ints(*net.shapes[x])], net.shapes[x])


def measured(net: Net, x: str) -> str:
    """Divided by its norm over the channels."""
    norm = net.reduced("ReduceL2", x, [1], (1, 1, SIDE, SIDE), 1)
    least = net.op("Add", [norm, net.constant(np.float32(0.5))], (1, 1, SIDE, SIDE))
    return net.op("Div", [x, least], net.shapes[x])


def averaged(net: Net, x: str) -> str:
    """A mean over the channels, which pins them."""
    mean = net.reduced("ReduceMean", x, [1], (1, 1, SIDE, SIDE), 1)
    return net.op("Sub", [x, mean], net.shapes[x])


IMAGE_STEPS: tuple[Callable[[Net, str], str], ...] = (
    *[conv, residual, normalized, activated] * 2,
    grouped,
    transposed,
    shifted,
    selected,
    dense,
    divided,
    sliced,
    gathered,
    padded,
    shuffled,
    squeezed,
    pooled,
    moved_in_space,
    expanded,
    measured,
    averaged,
)


# -- tokens ----------------------------------------------------------------------------------------------------------


def linear(net: Net, x: str, out: int | None = None) -> str:
    """Tokens [1, count, width] through MatMul and, mostly, a bias."""
    _, count, width = net.shapes[x]
    out = out or net.rng.choice((4, 8, 12))
    y = net.op("MatMul", [x, net.weight(width, out, fan_in=width)], (1, count, out))
    if net.rng.random() < 0.7:
        inputs = [y, net.bias(out)]
        net.rng.shuffle(inputs)
        y = net.op("Add", inputs, (1, count, out))
    return y


def token_normalized(net: Net, x: str) -> str:
    width = net.shapes[x][2]
    if net.version >= 23 and net.rng.random() < 0.5:
        return net.op("RMSNormalization", [x, net.scale(width)], net.shapes[x], epsilon=0.1)
    if net.version >= 17:
        return net.op("LayerNormalization", [x, net.scale(width), net.bias(width)], net.shapes[x], epsilon=0.1)
    return net.op("Mul", [x, net.scale(width)], net.shapes[x])


def gated(net: Net, x: str) -> str:
    width, hidden = net.shapes[x][2], net.rng.choice((8, 12))
    gate = net.op("Sigmoid", [linear(net, x, hidden)], (1, net.shapes[x][1], hidden))
    product = net.op("Mul", [gate, linear(net, x, hidden)], (1, net.shapes[x][1], hidden))
    return net.op("Add", [x, linear(net, product, width)], net.shapes[x])


def attention(net: Net, x: str) -> str:
    """Heads of queries, keys and values from one product or from three; the result added or not."""
    _, count, width = net.shapes[x]
    heads, depth = net.rng.choice(((2, 3), (3, 2), (4, 2)))
    inner = heads * depth
    shape = (1, heads, count, depth)
    if net.rng.random() < 0.5:
        packed = linear(net, x, 3 * inner)
        parts = net.op("Reshape", [packed, net.ints(1, count, 3, heads, depth)], (1, count, 3, heads, depth))
        turned = net.op("Transpose", [parts], (3, 1, heads, count, depth), perm=[2, 0, 3, 1, 4])
        each = [net.op("Gather", [turned, net.constant(np.array(i))], shape, axis=0) for i in range(3)]
    else:
        each = [_heads(net, linear(net, x, inner), heads, depth) for _ in range(3)]
    keys = net.op("Transpose", [each[1]], (1, heads, depth, count), perm=[0, 1, 3, 2])
    scores = net.op("MatMul", [each[0], keys], (1, heads, count, count))
    scores = net.op("Mul", [scores, net.constant(np.float32(depth**-0.5))], (1, heads, count, count))
    shares = net.op("Softmax", [scores], (1, heads, count, count), axis=-1 if net.version >= 13 else 3)
    mixed = net.op("MatMul", [shares, each[2]], shape)
    back = net.op("Transpose", [mixed], (1, count, heads, depth), perm=[0, 2, 1, 3])
    joined = net.op("Reshape", [back, net.ints(1, count, net.rng.choice((inner, -1)))], (1, count, inner))
    y = linear(net, joined, width)
    return net.op("Add", [x, y], net.shapes[x]) if net.rng.random() < 0.7 else y


def _heads(net: Net, x: str, heads: int, depth: int) -> str:
    count = net.shapes[x][1]
    parts = net.op("Reshape", [x, net.ints(0, 0, heads, depth)], (1, count, heads, depth))
    return net.op("Transpose", [parts], (1, heads, count, depth), perm=[0, 2, 1, 3])


def recurrent(net: Net, x: str) -> str:
    """LSTM, GRU or RNN over the tokens, forwards or in both directions."""
    _, count, width = net.shapes[x]
    kind, gates = net.rng.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    hidden, ways = 4, net.rng.choice((1, 2))
    steps = net.op("Transpose", [x], (count, 1, width), perm=[1, 0, 2])
    weights = [
        net.constant(net.normal(ways, gates * hidden, width, scale=width**-0.5)),
        net.constant(net.normal(ways, gates * hidden, hidden, scale=0.5)),
    ]
    weights += [net.constant(net.normal(ways, 2 * gates * hidden))] if net.rng.random() < 0.7 else []
    direction = "bidirectional" if ways == 2 else "forward"
    y = net.op(kind, [steps, *weights], (count, ways, 1, hidden), hidden_size=hidden, direction=direction)
    turned = net.op("Transpose", [y], (1, count, ways, hidden), perm=[2, 0, 1, 3])
    return net.op("Reshape", [turned, net.ints(0, 0, -1)], (1, count, ways * hidden))


def token_activated(net: Net, x: str) -> str:
    return net.op(net.rng.choice(ACTIVATIONS), [x], net.shapes[x])


TOKEN_STEPS: tuple[Callable[[Net, str], str], ...] = (
    linear,
    linear,
    token_activated,
    token_normalized,
    token_normalized,
    gated,
    attention,
    attention,
    recurrent,
)


def random_net(rng: random.Random) -> onnx.ModelProto:
    """Return a model from x[1, 3, SIDE, SIDE] to one vector, in some cases with inner values as outputs too."""
    net = Net(rng, rng.choice(OPSETS))
    net.shapes["x"] = (1, 3, SIDE, SIDE)
    x = conv(net, "x")
    for _ in range(rng.randint(1, 6)):
        x = rng.choice(IMAGE_STEPS)(net, x)
    extra = [x] if rng.random() < 0.15 else []
    x = conv(net, x) if extra else x
    y = _as_tokens(net, x) if rng.random() < 0.5 else _flat(net, x)
    if len(net.shapes[y]) == 3:
        for _ in range(rng.randint(1, 4)):
            y = rng.choice(TOKEN_STEPS)(net, y)
        y = net.reduced("ReduceMean", y, [1], (1, net.shapes[y][2]), 0)
    y = _classified(net, y)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, net.shapes[name]) for name in (y, *extra)]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, net.shapes["x"])
    graph = helper.make_graph(net.nodes, "random", [given], infos, net.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.version)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _as_tokens(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    flat = net.op("Reshape", [x, net.ints(1, channels, SIDE * SIDE)], (1, channels, SIDE * SIDE))
    return net.op("Transpose", [flat], (1, SIDE * SIDE, channels), perm=[0, 2, 1])


def _flat(net: Net, x: str) -> str:
    channels = net.shapes[x][1]
    kind = net.rng.choice(("flatten", "reshape", "mean", "pool"))
    if kind == "flatten":
        return net.op("Flatten", [x], (1, channels * SIDE * SIDE))
    if kind == "reshape":
        return net.op("Reshape", [x, net.ints(net.rng.choice((0, 1)), -1)], (1, channels * SIDE * SIDE))
    if kind == "mean":
        return net.reduced("ReduceMean", x, [2, 3], (1, channels), 0)
    pool = net.op("GlobalMaxPool", [x], (1, channels, 1, 1))
    if net.version >= 13:
        return net.op("Squeeze", [pool, net.ints(2, 3)], (1, channels))
    return net.op("Squeeze", [pool], (1, channels), axes=[2, 3])


def _classified(net: Net, y: str) -> str:
    """One or two linear layers."""
    for out in (6, 5) if net.rng.random() < 0.5 else (5,):
        width = net.shapes[y][1]
        turned = net.rng.random() < 0.5
        weight = net.weight(*((out, width) if turned else (width, out)), fan_in=width)
        y = net.op("Gemm", [y, weight, net.bias(out)], (1, out), transB=int(turned))
        y = net.op("Relu", [y], (1, out)) if out == 6 else y
    return y
