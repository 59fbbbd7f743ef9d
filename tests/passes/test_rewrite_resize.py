"""rewrite-resize: the same neighbours as onnxruntime reads, for each pair of modes and many sizes."""

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized

PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
MODES = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
AGREED = {("asymmetric", "floor")} | {(place, mode) for place in PLACES[:3] for mode in MODES[2:]}


def resize(place: str, mode: str, sizes: tuple[int, int], results: tuple[int, int], *, scales: bool):
    given = "scales" if scales else "sizes"
    body = f"""g (float[1,2,{sizes[0]},{sizes[1]}] x) => (float[1,2,{results[0]},{results[1]}] y) {{
        y = Resize <mode = "nearest", coordinate_transformation_mode = "{place}", nearest_mode = "{mode}">
            (x, , {"scales" if scales else ", sizes"}) }}"""
    factors = np.array([1, 1, results[0] / sizes[0], results[1] / sizes[1]], np.float32)
    weights = {"scales": factors} if scales else {"sizes": np.array([1, 2, *results], np.int64)}
    return model_of(body, weights={given: weights[given]})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("sizes", "results", "scales"),
    [
        ((3, 4), (6, 12), True),
        ((3, 4), (3, 8), True),
        ((3, 4), (7, 5), False),
        ((6, 8), (3, 3), False),
        ((5, 1), (1, 4), False),
    ],
)
def test_the_neighbours_are_those_that_the_resize_reads(place, mode, sizes, results, scales):
    before = resize(place, mode, sizes, results, scales=scales)
    after, _ = optimized(before, "rewrite-resize")

    x = np.random.default_rng(1).standard_normal((1, 2, *sizes)).astype(np.float32)
    check_equivalent(before, after, {"x": x})
    assert (operators(after) == operators(before)) if (place, mode) in AGREED else True


def test_what_runtimes_disagree_on_is_gone():
    before = resize("half_pixel", "floor", (4, 4), (8, 8), scales=True)
    after, _ = optimized(before, "rewrite-resize")

    assert operators(after) == {"Gather": 2}


def test_linear_interpolation_stays():
    body = 'g (float[1,1,4,4] x) => (float[1,1,8,8] y) { y = Resize <mode = "linear"> (x, , scales) }'
    before = model_of(body, weights={"scales": np.array([1, 1, 2, 2], np.float32)})

    after, _ = optimized(before, "rewrite-resize")

    assert operators(after) == {"Resize": 1}
