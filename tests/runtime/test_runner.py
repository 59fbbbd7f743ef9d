"""What passes may ask of a runner: statistics, outputs, metric, latency, the seconds of kernels."""

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.analysis.statistics import Request
from graphopt.analysis.taps import Tap
from graphopt.calibration import dataset_from_arrays, dataset_from_feeds, open_dataset
from graphopt.calibration.sessions import session_of
from graphopt.errors import UsageError
from graphopt.ir import Editor
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


def numbered(count, batch=1):
    """A runner whose data are the numbers 0 .. count - 1, with a model that doubles them."""
    double = model_of("agraph (float[N] x) => (float[N] y) { two = Add(x, x) y = Identity(two) }")
    data = dataset_from_arrays({"x": np.arange(count, dtype=np.float32)}, session_of(double).inputs, batch=batch)
    return ModelRunner(data), double


def seen(instance, model):
    return [float(number) / 2 for outputs in instance.outputs(model) for number in outputs["y"]]


@pytest.mark.parametrize(
    ("count", "held"),
    [(4, [3]), (6, [3]), (16, [3, 7, 11, 15]), (100, [*range(9, 12), *range(21, 24), *range(33, 36), *range(45, 48)])],
)
def test_a_quarter_of_the_data_is_held_out_from_many_places(count, held):
    instance, double = numbered(count)

    fitting, rest = instance.folds()

    found = seen(rest, double)
    assert found[: len(held)] == held
    assert sorted(seen(fitting, double) + found) == list(range(count))
    assert (fitting.samples, rest.samples) == (count - len(found), len(found))
    assert 0.2 <= len(found) / count <= 0.25 or count == 6


def test_folds_hold_batches_together_and_both_have_statistics():
    instance, double = numbered(40, batch=5)

    fitting, rest = instance.folds()

    assert seen(rest, double) == [*range(15, 20), *range(35, 40)]
    request = Request("two", "range")
    assert rest.collect(double, [request])[request].low == 30
    assert fitting.collect(double, [request])[request].high == 68


def test_folds_of_batches_that_differ_in_size_do_not_say_how_many_samples_they_have():
    instance, double = numbered(9, batch=2)

    fitting, rest = instance.folds()

    assert (fitting.samples, rest.samples) == (None, None)
    assert (len(seen(fitting, double)), len(seen(rest, double))) == (7, 2)


def test_data_that_cannot_be_divided_serve_for_both():
    double = model_of("agraph (float[N] x) => (float[N] y) { y = Add(x, x) }")
    inputs = session_of(double).inputs
    few = ModelRunner(dataset_from_feeds([{"x": np.ones(50, np.float32)}], inputs))
    unknown = ModelRunner(open_dataset(f"{__name__}:endless_looking", inputs))

    assert few.folds() == (few, few)
    assert unknown.folds() == (unknown, unknown)
    with pytest.raises(UsageError, match="no calibration data"):
        ModelRunner(None).folds()


def endless_looking():
    """A source of which nobody knows how much it gives."""
    return iter([np.ones(2, np.float32)] * 5)


def both():
    return Tap(model(), ("r", "x", "y")), Tap(model(2.0), ("y",))


def test_models_are_run_side_by_side_and_give_what_is_wanted_of_them():
    found = list(runner().trace(both()))

    assert [len(first["x"]) for first, _ in found] == [4, 4, 2]
    whole, other = run(model(), {"x": X})[0], run(model(2.0), {"x": X})[0]
    np.testing.assert_array_equal(np.concatenate([first["x"] for first, _ in found]), X)
    np.testing.assert_allclose(np.concatenate([first["y"] for first, _ in found]), whole, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.concatenate([second["y"] for _, second in found]), other, rtol=1e-4, atol=1e-3)
    assert all(list(first) == ["r", "x", "y"] and list(second) == ["y"] for first, second in found)
    assert min(float(first["r"].min()) for first, _ in found) == 0


@pytest.mark.parametrize(
    ("samples", "limit", "sizes"),
    [(None, None, [4, 4, 2]), (3, None, [3, 1, 3, 1, 2]), (99, None, [4, 4, 2]), (4, 6, [4, 2]), (3, 5, [3, 1, 1])],
)
def test_runs_are_of_as_many_samples_as_asked_for(samples, limit, sizes):
    found = [len(first["x"]) for first, _ in runner().trace(both(), samples=samples, limit=limit)]

    assert found == sizes


def test_what_cannot_be_divided_is_run_whole():
    data = dataset_from_feeds([{"x": X[:3]}, {"x": X[3:]}], session_of(model()).inputs)

    assert [len(first["x"]) for first, _ in ModelRunner(data).trace(both(), samples=2, limit=2)] == [3]


def typed(model):
    """Runs can go on from values whose type is known."""
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def test_runs_go_on_from_values_that_are_given():
    """Nothing before them is run, and what is given is what is used."""
    tap = Tap(typed(model()), ("y", "r"), given=("r",))
    r = RNG.normal(size=(2, 8, 16, 16)).astype(np.float32)

    ((found,),) = runner().trace([tap], [({"r": r},)])

    behind = model_of(
        "agraph (float[N, 8, 16, 16] r) => (float[N, 8, 16, 16] y) { y = Conv <pads = [1, 1, 1, 1]> (r, v) }",
        weights={"v": WEIGHTS["v"]},
    )
    np.testing.assert_allclose(found["y"], run(behind, {"r": r})[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found["r"], r)


def test_what_a_branch_captures_can_be_given():
    text = """agraph (float[N] x, bool yes) => (float[N] y) {
        a = Add(x, x)
        y = If(yes) <then_branch = t () => (float[N] o) { o = Neg(a) },
                     else_branch = e () => (float[N] p) { p = Abs(a) }>
    }"""
    feeds = {"a": np.array([1, -2], np.float32), "yes": np.array(True)}

    ((found,),) = ModelRunner(None).trace([Tap(typed(model_of(text)), ("y",), given=("a",))], [(feeds,)])

    assert list(found["y"]) == [-1, 2]


def test_integers_and_inputs_that_are_not_read_can_be_traced():
    text = "agraph (float[N] x, int64[N] i) => (float[N] y) { s = Shape(x) y = Neg(x) }"
    feeds = {"x": np.ones(3, np.float32), "i": np.arange(3), "label": np.zeros(3)}

    ((found,),) = ModelRunner(None).trace([Tap(model_of(text), ("s", "i"))], [(feeds,)])

    assert list(found["s"]) == [3]
    assert list(found["i"]) == [0, 1, 2]


def test_traces_need_data_unless_they_are_fed():
    with pytest.raises(UsageError, match="no calibration data"):
        next(ModelRunner(None).trace(both()))
