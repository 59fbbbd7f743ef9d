"""rewrite-pad: what onnxruntime pads with, for each mode and many amounts."""

import numpy as np
import pytest

from graphopt.errors import UsageError
from tests.helpers import check_equivalent, codes, model_of, operators, optimized

NUMBERS = np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(np.float32)


def pad(mode: str, amounts: list[int], opset: int = 19):
    size = [2, 3, 4, 5]
    result = [n + a + b for n, a, b in zip(size, amounts[:4], amounts[4:], strict=True)]
    body = f'g (float{size} x) => (float{result} y) {{ y = Pad <mode = "{mode}"> (x, pads) }}'
    return model_of(body, opset=opset, weights={"pads": np.array(amounts, np.int64)})


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
@pytest.mark.parametrize(
    "amounts", [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 3, 0, 0, 0, 0, 4], [1, 2, 0, 3, 0, 1, 2, 0], [0, 0, 0, 0, 0, 0, 0, 1]]
)
def test_it_reads_what_the_pad_reads(mode, amounts):
    before = pad(mode, amounts)
    after, _ = optimized(before, "rewrite-pad")

    assert set(operators(after)) == {"Gather"}
    check_equivalent(before, after, {"x": NUMBERS}, rtol=0)


def test_the_edge_may_be_read_more_often_than_there_are_elements():
    before = pad("edge", [0, 0, 9, 0, 0, 0, 0, 9], opset=13)
    after, _ = optimized(before, "rewrite-pad")

    assert operators(after) == {"Gather": 2}
    check_equivalent(before, after, {"x": NUMBERS}, rtol=0)


@pytest.mark.parametrize(("mode", "amount"), [("reflect", 4), ("wrap", 5)])
def test_what_reaches_beyond_the_other_side_stays(mode, amount):
    after, result = optimized(pad(mode, [0, 0, amount, 0, 0, 0, 0, 0]), "rewrite-pad")

    assert operators(after) == {"Pad": 1}
    assert "PAD003" in codes(result)


def test_nothing_padded_is_nothing_gathered():
    before = pad("edge", [0] * 8)
    after, _ = optimized(before, "rewrite-pad")

    assert "Pad" not in operators(after)
    check_equivalent(before, after, {"x": NUMBERS}, rtol=0)


def test_an_unknown_mode_is_refused():
    with pytest.raises(UsageError, match="mirror"):
        optimized(pad("edge", [0] * 8), "rewrite-pad{modes=edge+mirror}")
