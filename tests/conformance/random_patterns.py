"""What random models are made of: single operators, and the chains that exporters write and passes look for."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tests.conformance.random_graphs import SIZES, Builder, Item, Shape, broadcast, kind_of, padded

SMOOTH = {
    "Abs": 6, "Relu": 6, "Neg": 6, "Identity": 1, "LeakyRelu": 6, "Sigmoid": 6, "Tanh": 6, "Elu": 6, "HardSigmoid": 6,
    "Softplus": 1, "Erf": 9, "Softsign": 1, "HardSwish": 14, "Mish": 18, "Gelu": 20, "Dropout": 7,
}  # fmt: skip
"""Continuous operators of one input, and the operator set that they are in from."""

EXACT = ("Abs", "Relu", "Neg", "Identity", "Dropout")
STEPPED = {"Floor": 6, "Ceil": 6, "Round": 11, "Sign": 9}


def unary(b: Builder) -> bool:
    x = b.floats()
    operator = b.rng.choice([name for name, since in SMOOTH.items() if since <= b.version])
    if x is None or (x.dtype != "float32" and operator not in EXACT):
        return False
    b.op(operator, [x], x.shapes, exact=x.exact and operator in EXACT)
    return True


def stepped(b: Builder) -> bool:
    x = b.floats(exact=True, dtype="float32")
    operator = b.rng.choice([name for name, since in STEPPED.items() if since <= b.version])
    if x is None:
        return False
    b.op(operator, [x], x.shapes)
    return True


def scalar_number(b: Builder) -> float:
    return b.rng.choice([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 0.25, -3.0])


def operand(b: Builder, x: Item) -> Item | None:
    """Return something that broadcasts with ``x``: a constant of fewer or more dimensions, or another value."""
    if b.rng.random() < 0.4:
        return b.pick(lambda other: other.dtype == x.dtype and broadcast([x, other]) is not None)
    shape = tuple(size if b.rng.random() < 0.5 else 1 for size in x.shape) if x.fixed else (1,) * x.rank
    for axis in range(x.rank):
        same = {shapes[axis] for shapes in x.shapes}
        if len(same) == 1 and b.rng.random() < 0.4:
            shape = (*shape[:axis], same.pop(), *shape[axis + 1 :])
    shape = shape[b.rng.randint(0, len(shape)) :] if shape else ()
    if b.rng.random() < 0.1:
        shape = (1, *shape)
    if np.dtype(x.dtype).kind == "i":
        return b.const(np.full(shape, b.rng.randint(0, 3)), x.dtype)
    return b.const(b.weights(*shape) if b.rng.random() < 0.5 else np.full(shape, scalar_number(b)), x.dtype)


def binary(b: Builder) -> bool:
    x = b.pick(kind="fi")
    other = None if x is None else operand(b, x)
    shapes = None if x is None or other is None else broadcast([x, other])
    if x is None or other is None or shapes is None:
        return False
    operator = b.rng.choice(["Add", "Sub", "Mul", "Add", "Mul"])
    level = x.level + other.level + 1 if operator == "Mul" else max(x.level, other.level)
    if level > 4:
        return False
    pair = [x, other] if b.rng.random() < 0.7 else [other, x]
    b.op(operator, list(pair), shapes, level=level, dtype=x.dtype)
    return True


def divide(b: Builder) -> bool:
    x = b.floats()
    if x is None:
        return False
    b.op("Div", [x, b.const(b.rng.choice([1.0, 2.0, 4.0, -0.5]), x.dtype)], x.shapes, level=x.level + 1)
    return True


def power(b: Builder) -> bool:
    x = b.floats(dtype="float32")
    if x is None or x.level > 1:
        return False
    b.op("Pow", [x, b.const(b.rng.choice([1.0, 2.0, 2.0, 3.0]))], x.shapes, level=2 * x.level + 2)
    return True


def extreme(b: Builder) -> bool:
    x = b.floats(dtype="float32")
    other = None if x is None else operand(b, x)
    shapes = None if x is None or other is None else broadcast([x, other])
    if x is None or other is None or shapes is None:
        return False
    low = b.op(b.rng.choice(["Max", "Min"]), [x, other], shapes)
    if b.rng.random() < 0.5:
        b.op(b.rng.choice(["Max", "Min"]), [low, b.const(1.0)], shapes)
    return True


def clip(b: Builder) -> bool:
    x = b.floats(dtype="float32")
    if x is None:
        return False
    low, high = b.rng.choice([(0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 1.0), (1.0, 2.0), (-np.inf, np.inf)])
    if b.version < 11:
        bounds = {name: value for name, value in (("min", low), ("max", high)) if value is not None}
        b.op("Clip", [x], x.shapes, **bounds)
    else:
        b.op("Clip", [x, *(None if value is None else b.const(value) for value in (low, high))], x.shapes)
    return True


def cast(b: Builder) -> bool:
    x = b.pick(lambda item: item.exact and item.level < 2, kind="fib")
    if x is None:
        return False
    targets = ["float32", "float16", "float64", "int32", "int64", "bool"]
    target = b.rng.choice(targets)
    b.op("Cast", [x], x.shapes, dtype=target, to=kind_of(target))
    return True


def compare(b: Builder) -> bool:
    x = b.floats(exact=True, dtype="float32")
    other = None if x is None else operand(b, x)
    shapes = None if x is None or other is None or not other.exact else broadcast([x, other])
    if x is None or other is None or shapes is None or other.level > 1:
        return False
    operators = ["Less", "Greater"] + (["Equal"] if b.version >= 11 else [])
    operators += ["LessOrEqual", "GreaterOrEqual"] if b.version >= 12 else []
    test = b.op(b.rng.choice(operators), [x, other], shapes, dtype="bool")
    if b.rng.random() < 0.4:
        test = b.op("Not", [test], shapes)
    if b.rng.random() < 0.3:
        test = b.op(b.rng.choice(["And", "Or", "Xor"]), [test, b.const(b.rng.random() < 0.5, "bool")], shapes)
    yes, no = b.floats(dtype="float32"), b.const(scalar_number(b))
    shapes = None if yes is None else broadcast([test, yes, no])
    if yes is not None and shapes is not None:
        b.op("Where", [test, yes, b.rng.choice([no, yes])], shapes, dtype="float32", level=yes.level, exact=yes.exact)
    return True


def transpose(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 2, kind="fi")
    if x is None:
        return False
    perm = list(range(x.rank))
    b.rng.shuffle(perm)
    if b.rng.random() < 0.15:
        perm = list(range(x.rank))[::-1]
        b.op("Transpose", [x], [shape[::-1] for shape in x.shapes])
    else:
        b.op("Transpose", [x], [tuple(shape[axis] for axis in perm) for shape in x.shapes], perm=perm)
    return True


def squeeze(b: Builder) -> bool:
    x = b.pick(kind="fi")
    if x is None:
        return False
    ones = [axis for axis in range(x.rank) if all(shape[axis] == 1 for shape in x.shapes)]
    if ones and b.rng.random() < 0.6:
        gone = sorted(b.rng.sample(ones, b.rng.randint(1, len(ones))))
        inputs, options = b.axes(x, gone, "Squeeze", 13)
        shapes = [tuple(size for axis, size in enumerate(shape) if axis not in gone) for shape in x.shapes]
        b.op("Squeeze", [x, *inputs], shapes, dtype=x.dtype, **options)
        return True
    if x.rank > 4:
        return False
    new = sorted(b.rng.sample(range(x.rank + 1), 1) if b.rng.random() < 0.7 else [0, x.rank + 1])
    shapes = []
    for shape in x.shapes:
        rest = iter(shape)
        shapes.append(tuple(1 if axis in new else next(rest) for axis in range(x.rank + len(new))))
    if b.version < 13:
        b.op("Unsqueeze", [x], shapes, axes=new)
    else:
        b.op("Unsqueeze", [x, b.const(np.array(new), "int64")], shapes)
    return True


def reshape(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 1 and all(min(shape) > 0 for shape in item.shapes), kind="fi")
    if x is None:
        return False
    kind = b.rng.choice(["flatten", "merge", "split", "copy", "ones"])
    sizes = [{shape[axis] for shape in x.shapes} for axis in range(x.rank)]
    if kind == "flatten":
        axis = b.rng.randint(0, x.rank)
        shapes = [(int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))) for shape in x.shapes]
        b.op("Flatten", [x], shapes, axis=axis)
        return True
    if kind == "merge" and x.rank >= 2:
        target = [0] * (x.rank - 2) + [-1]
    elif kind == "split":
        even = [a for a in range(x.rank) if len(sizes[a]) == 1 and min(sizes[a]) % 2 == 0]
        if not even:
            return False
        axis = b.rng.choice(even)
        if any(len(item) > 1 for item in sizes[axis + 1 :]):
            return False
        target = [0] * axis + [2, min(sizes[axis]) // 2] + [min(item) for item in sizes[axis + 1 :]]
    elif kind == "ones":
        target = [1, -1] if x.rank == 1 else [-1, 1, *[min(item) for item in sizes[1:]]]
        if any(len(item) > 1 for item in sizes[1:]):
            return False
    else:
        target = [0] * x.rank
    shapes = [reshaped(shape, target) for shape in x.shapes]
    b.op("Reshape", [x, b.const(np.array(target), "int64")], shapes)
    return True


def reshaped(shape: Shape, target: list[int]) -> Shape:
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    rest = int(np.prod([size for size in sizes if size != -1]))
    return tuple(int(np.prod(shape)) // rest if size == -1 else size for size in sizes)


def dynamic_reshape(b: Builder) -> bool:
    """Reshape by sizes computed from Shape, the way exporters write ``x.view(x.size(0), -1)``."""
    x = b.pick(lambda item: item.rank >= 2, kind="f")
    if x is None:
        return False
    shape = b.op("Shape", [x], [(x.rank,)] * len(SIZES), dtype="int64", level=9)
    axis = b.rng.randint(0, x.rank - 1)
    scalar = b.rng.random() < 0.5
    index = b.const(axis if scalar else [axis], "int64")
    size = b.op("Gather", [shape, index], [() if scalar else (1,)] * len(SIZES), dtype="int64", axis=0)
    if scalar:
        size = unsqueezed(b, size)
    if b.rng.random() < 0.3:
        size = b.op("Mul", [size, b.const([1], "int64")], [(1,)] * len(SIZES))
    rest = b.const([-1], "int64")
    if b.rng.random() < 0.5:
        whole = b.op("Size", [x], [()] * len(SIZES), dtype="int64", level=9) if b.rng.random() < 0.3 else None
        product = whole or b.op("ReduceProd", [shape], [()] * len(SIZES), keepdims=0)
        rest = b.op("Div", [product, size], [(1,)] * len(SIZES), dtype="int64")
    target = b.op("Concat", [size, rest], [(2,)] * len(SIZES), axis=0)
    b.op(
        "Reshape", [x, target], [(s[axis], int(np.prod(s)) // s[axis]) for s in x.shapes], dtype=x.dtype, level=x.level
    )
    return True


def unsqueezed(b: Builder, size: Item) -> Item:
    if b.version < 13:
        return b.op("Unsqueeze", [size], [(1,)] * len(SIZES), axes=[0])
    return b.op("Unsqueeze", [size, b.const([0], "int64")], [(1,)] * len(SIZES))


def expand_like(b: Builder) -> bool:
    x, other = b.floats(), b.floats()
    shapes = None if x is None or other is None else broadcast([x, other])
    if x is None or other is None or shapes is None:
        return False
    shape = b.op("Shape", [other], [(other.rank,)] * len(SIZES), dtype="int64", level=9, exact=True)
    b.op("Expand", [x, shape], shapes, dtype=x.dtype, level=x.level, exact=x.exact)
    return True


def slice_by_shape(b: Builder) -> bool:
    """Slice to a size that is computed: half of a dimension, or all of it."""
    x = b.pick(lambda item: item.rank >= 1 and all(min(s) > 1 for s in item.shapes), kind="f")
    if x is None or b.version < 10:
        return False
    axis = b.rng.randint(0, x.rank - 1)
    shape = b.op("Shape", [x], [(x.rank,)] * len(SIZES), dtype="int64", level=9)
    size = b.op("Gather", [shape, b.const([axis], "int64")], [(1,)] * len(SIZES), axis=0)
    divisor = b.rng.choice([1, 2])
    size = b.op("Div", [size, b.const(divisor, "int64")], [(1,)] * len(SIZES))
    inputs: list[Item | None] = [x, b.const([0], "int64"), size, b.const([axis], "int64")]
    if b.rng.random() < 0.3:
        inputs[1], inputs[2] = size, b.const([np.iinfo(np.int64).max], "int64")
        shapes = [(*s[:axis], s[axis] - s[axis] // divisor, *s[axis + 1 :]) for s in x.shapes]
    else:
        shapes = [(*s[:axis], s[axis] // divisor, *s[axis + 1 :]) for s in x.shapes]
    if any(0 in shape for shape in shapes):
        return False
    b.op("Slice", inputs, shapes, dtype=x.dtype, level=x.level)
    return True


def slice_(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 1, kind="fi")
    if x is None:
        return False
    axis = b.rng.randint(0, x.rank - 1)
    start, end, step = b.rng.choice(
        [(0, 2, 1), (1, 1 << 40, 1), (0, 1 << 62, 1), (-2, 1 << 31, 1), (0, -1, 1), (-1, -99, -1), (0, 99, 2)]
    )
    if b.version < 10 and step != 1:
        return False
    places = [range(s[axis])[start:end:step] for s in x.shapes]
    if not all(places):
        return False
    shapes = [(*s[:axis], len(p), *s[axis + 1 :]) for s, p in zip(x.shapes, places, strict=True)]
    if b.version < 10:
        b.op("Slice", [x], shapes, starts=[start], ends=[min(end, 1 << 31)], axes=[axis])
        return True
    numbers: list[Item | None] = [b.const([number], "int64") for number in (start, end, axis)]
    b.op("Slice", [x, *numbers, *([b.const([step], "int64")] if step != 1 else [])], shapes)
    return True


def gather(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 1, kind="fi")
    if x is None:
        return False
    axis = b.rng.randint(0, x.rank - 1)
    least = min(shape[axis] for shape in x.shapes)
    if least < 1:
        return False
    indices = b.rng.choice([0, [0], [-1], list(range(least)), [0, 0], [[0, -1]], least - 1])
    places = b.const(indices, "int64")
    shapes = [(*s[:axis], *places.shape, *s[axis + 1 :]) for s in x.shapes]
    b.op("Gather", [x, places], shapes, axis=axis, dtype=x.dtype)
    return True


def concat(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 1, kind="fi")
    if x is None:
        return False
    axis = b.rng.randint(0, x.rank - 1)

    def fits(item: Item) -> bool:
        if item.dtype != x.dtype or item.rank != x.rank:
            return False
        return all(
            a[:axis] + a[axis + 1 :] == c[:axis] + c[axis + 1 :] for a, c in zip(x.shapes, item.shapes, strict=True)
        )

    others = [b.pick(fits, kind="fi") for _ in range(b.rng.randint(0, 2))]
    items = [x, *(item for item in others if item is not None)]
    if x.fixed and b.rng.random() < 0.4:
        shape = list(x.shape)
        shape[axis] = b.rng.choice([0, 1, 2])
        items.append(b.const(np.zeros(shape), x.dtype))
    b.rng.shuffle(items)
    sizes = [sum(item.shapes[index][axis] for item in items) for index in range(len(SIZES))]
    shapes = [(*s[:axis], size, *s[axis + 1 :]) for s, size in zip(x.shapes, sizes, strict=True)]
    if max(np.prod(shape) for shape in shapes) > 4096:
        return False
    b.op("Concat", list(items), shapes, axis=axis if b.version < 11 or b.rng.random() < 0.7 else axis - x.rank)
    return True


def split(b: Builder) -> bool:
    x = b.pick(lambda item: any(len({s[a] for s in item.shapes}) == 1 and item.shape[a] > 1 for a in range(item.rank)))
    if x is None:
        return False
    axis = next(a for a in range(x.rank) if len({s[a] for s in x.shapes}) == 1 and x.shape[a] > 1)
    first = b.rng.randint(1, x.shape[axis] - 1)
    parts = [first, x.shape[axis] - first]
    items = []
    for size in parts:
        shapes = tuple((*s[:axis], size, *s[axis + 1 :]) for s in x.shapes)
        items.append(Item(b.name(), x.dtype, shapes, x.level, x.exact))
    inputs, options = [x.name], {}
    if b.version < 13:
        options["split"] = parts
    else:
        inputs.append(b.const(parts, "int64").name)
    b.nodes.append(helper.make_node("Split", inputs, [item.name for item in items], axis=axis, **options))
    b.items.extend(items)
    if b.rng.random() < 0.4:
        b.op("Concat", list(items), x.shapes, axis=axis)
    return True


def reduce(b: Builder) -> bool:
    x = b.pick(lambda item: item.rank >= 1 and item.level < 3, kind="f")
    if x is None or x.dtype == "float16":
        return False
    operator = b.rng.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1"])
    chosen = sorted(b.rng.sample(range(x.rank), b.rng.randint(1, x.rank)))
    keep = b.rng.random() < 0.5
    inputs, options = b.axes(x, chosen, operator, 13 if operator == "ReduceSum" else 18)
    shapes = [
        tuple(1 if axis in chosen else size for axis, size in enumerate(s) if keep or axis not in chosen)
        for s in x.shapes
    ]
    exact = x.exact and operator != "ReduceMean"
    b.op(operator, [x, *inputs], shapes, keepdims=int(keep), level=x.level + 1, exact=exact, **options)
    return True


def arg_max(b: Builder) -> bool:
    x = b.floats(exact=True, dtype="float32")
    if x is None or x.rank < 1:
        return False
    axis, keep = b.rng.randint(0, x.rank - 1), b.rng.random() < 0.5
    shapes = [(*s[:axis], *([1] if keep else []), *s[axis + 1 :]) for s in x.shapes]
    b.op(b.rng.choice(["ArgMax", "ArgMin"]), [x], shapes, axis=axis, keepdims=int(keep), dtype="int64")
    return True


def softmax(b: Builder) -> bool:
    x = b.floats(dtype="float32")
    if x is None or x.rank < 1:
        return False
    axis = b.rng.randint(0, x.rank - 1)
    b.op(b.rng.choice(["Softmax", "LogSoftmax"]), [x], x.shapes, axis=axis, exact=False)
    return True


def pad(b: Builder) -> bool:
    x = b.pick(lambda item: 1 <= item.rank <= 4 and item.dtype == "float32")
    if x is None:
        return False
    amounts = [b.rng.choice([0, 0, 1]) if axis >= x.rank - 2 else 0 for axis in range(x.rank)] * 2
    if b.rng.random() < 0.5:
        amounts = [*amounts[: x.rank], *(b.rng.choice([0, 1, 2]) if a >= x.rank - 2 else 0 for a in range(x.rank))]
    padded(b, x, amounts, b.rng.choice([0.0, 0.0, 1.0]))
    return True


def duplicate(b: Builder) -> bool:
    """The same node again."""
    made = {item.name: item for item in b.items}
    found = [node for node in b.nodes if len(node.output) == 1 and node.input and node.output[0] in made]
    found = [node for node in found if node.op_type not in ("If", "Loop", "Scan")]
    if not found:
        return False
    node = onnx.NodeProto()
    node.CopyFrom(b.rng.choice(found))
    old = made[node.output[0]]
    node.output[0] = b.name()
    node.name = ""
    b.nodes.append(node)
    b.items.append(Item(node.output[0], old.dtype, old.shapes, old.level, old.exact))
    return True


def expression_of_constants(b: Builder) -> bool:
    """Something to fold, added to a value."""
    x = b.floats(dtype="float32")
    if x is None:
        return False
    c = b.const(b.weights(*(x.shape if x.fixed and b.rng.random() < 0.5 else ())))
    for operator in b.rng.sample(["Neg", "Abs", "Sigmoid", "Identity", "Relu"], 2):
        c = b.op(operator, [c], c.shapes, exact=False)
    shapes = broadcast([x, c])
    if shapes is None:
        return False
    b.op(b.rng.choice(["Add", "Mul"]), [x, c], shapes, level=x.level + 1)
    return True


STEPS = (
    unary, stepped, binary, divide, power, extreme, clip, cast, compare, transpose, squeeze, reshape, dynamic_reshape,
    expand_like, slice_by_shape, slice_, gather, concat, split, reduce, arg_max, softmax, pad, duplicate,
    expression_of_constants,
)  # fmt: skip
