"""chain-operands: the same numbers, NaN and infinity included."""

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized

NUMBERS = np.array([1.5, -2, np.inf, -np.inf, np.nan, 0, 3e38, 7], np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("operator", "dtype"),
    [*((op, dtype) for op in ("Sum", "Max", "Min") for dtype in ("float", "float16", "double")), ("Mean", "float")],
)
def test_it_computes_the_same(count, operator, dtype):
    names = [f"a{n}" for n in range(count)]
    ends = ", ".join(f"{dtype}[8] {name}" for name in names)
    before = model_of(f"g ({ends}) => ({dtype}[8] y) {{ t = {operator}({', '.join(names)}) y = Identity(t) }}")

    after, _ = optimized(before, "chain-operands")

    assert not {"Sum", "Mean"} & set(operators(after))
    assert all(len(node.inputs) <= 2 for node in after.graph)
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    with np.errstate(over="ignore"):
        feeds = {name: np.roll(NUMBERS, n).astype(kind) for n, name in enumerate(names)}
    check_equivalent(before, after, feeds, rtol=1e-6 if kind != np.float16 else 1e-3)


def test_what_is_an_output_keeps_its_name():
    before = model_of("g (float[2] x) => (float[2] y) { y = Max(x) }")

    after, _ = optimized(before, "chain-operands")

    assert [value.name for value in after.graph.outputs] == ["y"]
    check_equivalent(before, after, {"x": NUMBERS[:2]})
