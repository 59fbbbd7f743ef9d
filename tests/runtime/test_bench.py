"""Timing: models take turns, and a heavier model shows as a ratio above one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from graphopt.errors import UsageError
from graphopt.runtime import Session, bench

info = h.make_tensor_value_info
FEEDS = {"x": np.ones((64, 64), np.float32)}


def matmuls(count: int) -> bytes:
    names = ["x", *(f"h{i}" for i in range(count))]
    nodes = [h.make_node("MatMul", [names[i], "x"], [names[i + 1]]) for i in range(count)]
    graph = h.make_graph(nodes, "g", [info("x", T.FLOAT, [64, 64])], [info(names[-1], T.FLOAT, [64, 64])])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_one_model():
    result = bench(matmuls(1), feeds=FEEDS, runs=7, min_seconds=0)
    assert result.runs == 7 and result.b is None and result.ratio is None
    assert 0 < result.a.min <= result.a.p10 <= result.a.median <= result.a.p90
    assert "7 runs each, 1 thread" in result.render()


def test_a_heavier_model_has_a_ratio_above_one():
    result = bench(matmuls(1), matmuls(20), FEEDS, runs=30, min_seconds=0)
    assert result.ratio.median > 2
    assert result.b.median > result.a.median
    assert json.loads(json.dumps(result.to_json()))["ratio"]["median"] == result.ratio.median
    assert [line.split()[0] for line in result.render().splitlines()[1:]] == ["a", "b", "b/a", "30"]


def test_models_take_turns_and_swap_places():
    calls = []

    class Recorded(Session):
        def __init__(self, name):
            super().__init__(matmuls(1))
            self.name = name

        def run(self, feeds, outputs=None):
            calls.append(self.name)
            return {}

    bench(Recorded("a"), Recorded("b"), FEEDS, runs=4, warmup=1, min_seconds=0)
    assert "".join(calls) == "ab" + "abba" + "abba"


def test_runs_go_on_until_the_time_is_up():
    assert bench(matmuls(1), feeds=FEEDS, runs=1, min_seconds=0.05).runs > 1


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"warmup": -1}, {"min_seconds": -1.0}, {"threads": -1}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(UsageError, match="at least"):
        bench(matmuls(1), feeds=FEEDS, **wrong)


def test_feeds_that_do_not_fit():
    with pytest.raises(UsageError, match="no array for input x"):
        bench(matmuls(1), runs=1)
