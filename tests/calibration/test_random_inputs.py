"""Made-up inputs: seeded, of the right dtypes and shapes, and valid indices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphopt.calibration import random_inputs
from graphopt.errors import UsageError
from graphopt.runtime import InputInfo


def info(name: str, *shape, dtype=np.float32, kind: str = "tensor") -> InputInfo:
    return InputInfo(name, np.dtype(dtype), shape, kind)


INPUTS = [info("ids", "N", "seq", dtype=np.int64), info("mask", "N", "seq", dtype=np.bool_), info("x", "N", 3)]


def test_the_seed_decides():
    first, again, other = (random_inputs(INPUTS, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not np.array_equal(first["x"], other["x"])


def test_names_share_their_size():
    feeds = random_inputs(INPUTS, 0, {"seq": 17})
    assert feeds["ids"].shape == feeds["mask"].shape == (1, 17) and feeds["x"].shape == (1, 3)
    assert random_inputs(INPUTS, 0, {"N": 5})["x"].shape == (5, 3)
    with pytest.raises(UsageError, match="no input has a dimension named 'batch'") as caught:
        random_inputs(INPUTS, 0, {"batch": 5})
    assert "N, seq" in (caught.value.hint or "")


def test_sizes_where_nothing_is_known():
    feeds = random_inputs([info("image", None, None, None, None), info("text", None, None), info("scalar")], 0)
    assert [a.shape for a in feeds.values()] == [(1, 3, 64, 64), (1, 8), ()]


@pytest.mark.parametrize(
    "dtype", [np.int64, np.uint8, np.float16, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4, object]
)
def test_every_dtype(dtype):
    (array,) = random_inputs([info("x", 50, dtype=dtype)], 3).values()
    assert array.dtype == np.dtype(dtype) and array.shape == (50,)
    if np.dtype(dtype).kind in "iu":
        assert set(array.tolist()) == {0, 1}


def test_sequences_cannot_be_made_up():
    with pytest.raises(UsageError, match="no random sequence"):
        random_inputs([info("s", kind="sequence")], 0)
