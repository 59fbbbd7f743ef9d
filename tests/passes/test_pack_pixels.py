"""Convolutions over blocks of pixels: the same numbers for any kernel, padding and number of channels."""

import numpy as np
import pytest

from graphopt import optimize, targets
from tests.helpers import check_equivalent, clone, model_of, operators

BODY = "g (float[2,C,12,16] x) => (float[2,5,H,W] y) { y = Conv <strides = [2, 2], PADS> (x, w, b) }"


def convolution(channels, kernel, pads):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(5, channels, *kernel)), "b": rng.normal(size=5)}
    height, width = ((size + 2 * pads - side) // 2 + 1 for size, side in zip((12, 16), kernel, strict=True))
    body = BODY.replace("C,", f"{channels},").replace("H,W", f"{height},{width}")
    body = body.replace("PADS", f"pads = [{pads}, {pads}, {pads}, {pads}]")
    return model_of(body, weights={name: array.astype(np.float32) for name, array in weights.items()})


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize(
    ("kernel", "pads"), [((3, 3), 1), ((3, 3), 0), ((7, 7), 3), ((5, 3), 1), ((5, 5), 2), ((6, 6), 2), ((4, 4), 1)]
)
def test_the_numbers_stay_what_they_were(channels, kernel, pads):
    model = convolution(channels, kernel, pads)
    before = clone(model)

    optimize(model, pipeline="pack-pixels{channels=32}")

    assert operators(model) == {"Conv": 2}
    check_equivalent(before, model, {"x": np.random.default_rng(1).normal(size=(2, channels, 12, 16)).astype("f")})


def test_padding_by_name_counts_as_padding():
    body = 'g (float[1,3,8,8] x) => (float[1,2,4,4] y) { y = Conv <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w) }'
    model = model_of(body, weights={"w": np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)})
    before = clone(model)

    optimize(model, pipeline="pack-pixels{channels=32}")

    assert operators(model) == {"Conv": 2}
    check_equivalent(before, model, {"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype("f")})


@pytest.mark.parametrize(("target", "found"), [("rknn", 2), ("qnn-htp", 1)])
def test_facts_of_the_target_decide(target, found):
    model = convolution(3, (3, 3), 1)

    optimize(model, pipeline="pack-pixels", target=targets.find(target))

    assert operators(model) == {"Conv": found}


def test_too_many_channels_stay_as_they_are():
    model = convolution(9, (7, 7), 3)

    optimize(model, pipeline="pack-pixels{channels=32}")

    assert operators(model) == {"Conv": 1}
