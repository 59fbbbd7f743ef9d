"""Random valid models: every value is tracked with its sizes under two choices of the dynamic dimensions.

Inputs and constants are multiples of 1/4, so that sums and short products are exact in float32 and reassociation
changes nothing; what is discontinuous (Floor, comparisons, ArgMax) is only applied to such values.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

SIZES = ({"N": 2, "M": 4}, {"N": 3, "M": 1})
"""The dynamic dimensions under the two choices; 1 is where a careless rewrite takes a dimension for a broadcast one."""

OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
MOST_ELEMENTS = 4096
MOST_LEVEL = 3


@dataclass(frozen=True)
class Item:
    """A value: its name, dtype and shape under each choice of sizes.

    ``level`` counts the factors that it is a product of, and ``exact`` says that it is a short sum of multiples of 1/4.
    """

    name: str
    dtype: str
    shapes: tuple[Shape, ...]
    level: int = 0
    exact: bool = True
    array: Array | None = None

    @property
    def rank(self) -> int:
        return len(self.shapes[0])

    @property
    def fixed(self) -> bool:
        """Whether the shape is the same under every choice."""
        return len(set(self.shapes)) == 1

    @property
    def shape(self) -> Shape:
        return self.shapes[0]


@dataclass
class Builder:
    """Grows one graph node by node. ``rng`` makes every choice, so equal ones give equal models."""

    rng: random.Random
    version: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[tuple[Item, list[int | str]]] = field(default_factory=list)
    outer: Builder | None = None
    counter: list[int] = field(default_factory=lambda: [0])

    def name(self, kind: str = "v") -> str:
        self.counter[0] += 1
        return f"{kind}{self.counter[0]}"

    def add_input(self, dtype: str, dims: list[int | str]) -> Item:
        shapes = tuple(tuple(sizes[dim] if isinstance(dim, str) else dim for dim in dims) for sizes in SIZES)
        item = Item(self.name("in"), dtype, shapes)
        self.inputs.append((item, dims))
        self.items.append(item)
        return item

    def const(self, array: Any, dtype: str = "float32") -> Item:
        """Return a constant, as an initializer or a Constant node, sometimes one that is there already."""
        array = np.asarray(array, dtype)
        name = self.name("c")
        item = Item(name, str(array.dtype), (array.shape,) * len(SIZES), array=array)
        tensor = onnx.numpy_helper.from_array(array, name)
        if self.rng.random() < 0.7:
            self.initializers.append(tensor)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return item

    def weights(self, *shape: int, dtype: str = "float32") -> Array:
        """Return multiples of 1/4 between -1 and 1."""
        count = int(np.prod(shape))
        return np.array([self.rng.randint(-4, 4) / 4 for _ in range(count)], dtype).reshape(shape)

    def op(self, operator: str, inputs: list[Item | None], shapes: Any, **options: Any) -> Item:
        """Add a node of one output. ``dtype``, ``level`` and ``exact`` among the options describe the output."""
        given = [item for item in inputs if item is not None]
        dtype = options.pop("dtype", given[0].dtype if given else "float32")
        level = options.pop("level", max((item.level for item in given), default=0))
        exact = options.pop("exact", all(item.exact for item in given))
        domain = options.pop("domain", "")
        item = Item(self.name(), dtype, tuple(tuple(map(int, shape)) for shape in shapes), level, exact)
        names = ["" if item is None else item.name for item in inputs]
        self.nodes.append(
            helper.make_node(operator, names, [item.name], name=self.node_name(), domain=domain, **options)
        )
        self.items.append(item)
        return item

    def node_name(self) -> str:
        return self.name("node") if self.rng.random() < 0.8 else ""

    def visible(self) -> list[Item]:
        return self.items + (self.outer.visible() if self.outer else [])

    def pick(self, test: Callable[[Item], bool] = lambda item: True, kind: str = "f") -> Item | None:
        """Return a value that ``test`` accepts, recent ones more often."""
        found = [item for item in self.visible() if np.dtype(item.dtype).kind in kind and test(item)]
        if not found:
            return None
        return self.rng.choice(found[-6:] if self.rng.random() < 0.7 else found)

    def floats(self, *, rank: int | None = None, exact: bool = False, dtype: str | None = None) -> Item | None:
        return self.pick(
            lambda item: (
                (rank is None or item.rank == rank)
                and (not exact or (item.exact and item.level < 2))
                and (dtype is None or item.dtype == dtype)
            )
        )

    def axes(
        self, item: Item, axes: list[int], operator: str, attribute_until: int
    ) -> tuple[list[Item], dict[str, Any]]:
        """Return axes as an attribute or an input, as the operator set has it, some counted from the end."""
        axes = [axis - item.rank if self.rng.random() < 0.3 and self.version >= 11 else axis for axis in axes]
        if self.version < attribute_until:
            return [], {"axes": axes}
        return [self.const(np.array(axes, np.int64), "int64")], {}


def broadcast(items: list[Item]) -> tuple[Shape, ...] | None:
    """Return the shapes of a broadcast, ``None`` where one of the choices of sizes does not allow it."""
    try:
        found = tuple(np.broadcast_shapes(*shapes) for shapes in zip(*(item.shapes for item in items), strict=True))
    except ValueError:
        return None
    return found if all(np.prod(shape) <= MOST_ELEMENTS for shape in found) else None


def padded(b: Builder, x: Item, amounts: list[int], fill: float) -> Item:
    shapes = [tuple(size + amounts[a] + amounts[a + x.rank] for a, size in enumerate(s)) for s in x.shapes]
    if b.version < 11:
        return b.op("Pad", [x], shapes, pads=amounts, value=fill, mode="constant")
    return b.op(
        "Pad", [x, b.const(amounts, "int64"), *([b.const(fill)] if fill or b.rng.random() < 0.5 else [])], shapes
    )


def finish(builder: Builder, rng: random.Random) -> onnx.ModelProto:
    """Return the model, with a few of its values as outputs, the last one always among them."""
    made = [item for item in builder.items if item not in [given for given, _ in builder.inputs]]
    count = min(len(made), rng.randint(1, 3))
    chosen = list({item.name: item for item in [made[-1], *rng.sample(made, count)]}.values()) if made else []
    inputs = [helper.make_tensor_value_info(i.name, kind_of(i.dtype), dims) for i, dims in builder.inputs]
    outputs = [helper.make_tensor_value_info(i.name, kind_of(i.dtype), [None] * i.rank) for i in chosen]
    graph = helper.make_graph(builder.nodes, "random", inputs, outputs, builder.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", builder.version)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def kind_of(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def feeds(builder: Builder, choice: int, seed: int, *, special: bool = False) -> dict[str, Array]:
    """Return inputs for one choice of sizes: multiples of 1/4, with NaN, infinities and -0.0 where ``special``."""
    rng = np.random.default_rng(seed)
    found = {}
    for item, _ in builder.inputs:
        shape = item.shapes[choice]
        if item.dtype == "bool":
            found[item.name] = rng.random(shape) < 0.5
            continue
        array = rng.integers(-8, 9, shape)
        array = (array / 4 if np.dtype(item.dtype).kind == "f" else array).astype(item.dtype)
        if special and array.dtype.kind == "f" and array.size:
            places = rng.random(shape)
            for value, limit in ((np.nan, 0.03), (np.inf, 0.06), (-np.inf, 0.09), (-0.0, 0.2)):
                array = np.where((places < limit) & (places >= limit - 0.03), np.array(value, item.dtype), array)
        found[item.name] = np.asarray(array, item.dtype)
    return found
