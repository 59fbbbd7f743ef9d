"""lower-ranks: any order of any axes, in fewer of them."""

import itertools

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 4), (2, 1, 1, 1), (1, 1, 1, 1)])
def test_every_order_of_four_axes_gives_the_same_and_fewer_axes_where_some_stay_together(shape):
    lowered = 0
    for perm in itertools.permutations(range(4)):
        result = [shape[axis] for axis in perm]
        body = f"g (float{list(shape)} x) => (float{result} y) {{ y = Transpose <perm = {list(perm)}> (x) }}"
        before = model_of(body)

        after, _ = optimized(before, "lower-ranks{rank=3}")

        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        check_equivalent(before, after, {"x": x}, rtol=0)
        ranks = [len(node.inputs[0].shape) for node in after.graph if node.op_type == "Transpose"]
        lowered += ranks != [4]
    # Of 24 orders of four axes, 11 keep no two neighbours.
    assert lowered == 24 if 1 in shape else lowered == 13


def test_nothing_is_not_reshaped():
    before = model_of("g (float[0,2,1,3] x) => (float[3,1,2,0] y) { y = Transpose(x) }")

    after, result = optimized(before, "lower-ranks{rank=2}")

    assert operators(after) == {"Transpose": 1}
    assert "RANK001" in codes(result)
