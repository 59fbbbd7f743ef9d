"""What passes may ask of a runner: statistics, outputs, metric, latency, the seconds of kernels."""

import numpy as np
import pytest

from graphopt.analysis.statistics import Request
from graphopt.calibration import dataset_from_arrays, dataset_from_feeds
from graphopt.calibration.sessions import session_of
from graphopt.errors import UsageError
from graphopt.pipeline.runner import Runner
from graphopt.runner import ModelRunner, _Origins
from tests.helpers import model_of, run

TEXT = """
agraph (float[N, 4, 16, 16] x) => (float[N, 8, 16, 16] y) {
    [first] h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    [second] r = Relu (h)
    [third] y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, v)
}
"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(8, 4, 3, 3)).astype(np.float32),
    "v": RNG.normal(size=(8, 8, 3, 3)).astype(np.float32),
}
X = RNG.normal(size=(10, 4, 16, 16)).astype(np.float32)


def model(size=1.0):
    return model_of(TEXT, weights=WEIGHTS | {"v": WEIGHTS["v"] * np.float32(size)})


def runner(**options):
    return ModelRunner(dataset_from_arrays({"x": X}, session_of(model()).inputs, batch=4), **options)


def test_it_is_what_passes_expect():
    instance: Runner = runner()

    assert instance.has_data
    assert instance.collect(model(), [Request("x", "range")])[Request("x", "range")].low == X.min()


@pytest.mark.parametrize(("limit", "sizes"), [(None, [4, 4, 2]), (6, [4, 2]), (4, [4]), (1, [1]), (99, [4, 4, 2])])
def test_outputs_are_those_of_as_many_samples_as_asked_for(limit, sizes):
    found = [outputs["y"] for outputs in runner().outputs(model(), limit=limit)]

    assert [len(part) for part in found] == sizes
    (want,) = run(model(), {"x": X[: sum(sizes)]})
    np.testing.assert_allclose(np.concatenate(found), want, rtol=1e-4, atol=1e-4)


def test_variants_run_each_batch_once_for_each_setting():
    switched = model_of("agraph (float[N] x, float z) => (float[N] y) { y = Mul(x, z) }")
    data = dataset_from_arrays({"x": np.arange(5, dtype=np.float32)}, session_of(switched).inputs[:1], batch=2)
    settings = [{"z": np.float32(1)}, {"z": np.float32(3)}]

    found = [(index, list(outputs["y"])) for index, outputs in ModelRunner(data).variants(switched, settings, limit=3)]

    assert found == [(0, [0, 1]), (1, [0, 3]), (0, [2]), (1, [6])]


def test_batches_that_cannot_be_divided_are_run_whole():
    data = dataset_from_feeds([{"x": X[:3]}, {"x": X[3:]}], session_of(model()).inputs)

    assert [len(outputs["y"]) for outputs in ModelRunner(data).outputs(model(), limit=2)] == [3]


def test_the_metric_gets_all_outputs():
    def largest(outputs):
        return max(float(batch["y"].max()) for batch in outputs)

    (want,) = run(model(), {"x": X})
    assert runner(metric=largest).metric(model()) == pytest.approx(want.max(), rel=1e-5)
    assert runner().metric(model()) is None
    assert ModelRunner(None, metric=largest).metric(model()) is None


def test_a_metric_that_raises_is_a_usage_error():
    def broken(outputs):
        raise KeyError("logits")

    with pytest.raises(UsageError, match="the metric failed: KeyError"):
        runner(metric=broken).metric(model())


def test_without_data_there_are_neither_statistics_nor_outputs():
    empty = ModelRunner(None)

    assert not empty.has_data
    with pytest.raises(UsageError, match="no calibration data"):
        empty.collect(model(), [Request("x", "range")])
    with pytest.raises(UsageError, match="no calibration data"):
        next(empty.outputs(model()))


@pytest.mark.parametrize("data", [True, False])
def test_latency_is_that_of_the_candidate_over_the_references(data):
    text = "agraph (float[64, 256] x) => (float[64, 256] y) { y = MatMul (x, w) }"
    steps = "a = MatMul (x, w) b = MatMul (a, w) c = MatMul (b, w) d = MatMul (c, w) y = MatMul (d, w)"
    many = text.replace("y = MatMul (x, w)", steps)
    weights = {"w": np.eye(256, dtype=np.float32)}
    one, five = model_of(text, weights=weights), model_of(many, weights=weights)
    x = np.ones((64, 256), np.float32)
    instance = ModelRunner(dataset_from_feeds([{"x": x}], session_of(one).inputs) if data else None)

    assert instance.latency_ratio(one, five, rounds=30) > 1.2
    assert instance.latency_ratio(five, one, rounds=30) < 0.85


def test_seconds_of_kernels_go_by_the_nodes_they_implement():
    seconds = runner().node_seconds(model())

    assert {"first", "third"} <= set(seconds)
    assert "second" not in seconds, "the runtime merges it into the first"
    assert all(value >= 0 for value in seconds.values())


def test_kernels_that_the_runtime_renamed_are_traced_to_their_node():
    text = """
    agraph (float[N, 4, 16, 16] x) => (float[N, 8, 16, 16] r) {
        [conv] h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
        [act] r = Relu (h)
    }
    """
    origins = _Origins(model_of(text, weights={"w": WEIGHTS["w"]}))

    assert origins.of("conv", "Conv") == "conv"
    assert origins.of("r_nchwc", "Conv") == "conv"
    assert origins.of("conv_token_12", "QLinearConv") == "conv"
    assert origins.of("fused conv", "FusedConv") == "conv"
    assert origins.of("ReorderOutput_token_3", "ReorderOutput") == "ReorderOutput_token_3"
