"""Statistics of a run against plain numpy on the values that the model computes, and what happens when it cannot be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.statistics import Histogram, Request, Statistics, Unfold
from graphopt.calibration import collect as collect_module
from graphopt.calibration import dataset_from_arrays, dataset_from_feeds
from graphopt.calibration.collect import collect
from graphopt.calibration.grams import GramSum
from graphopt.calibration.sessions import session_of
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import UsageError
from tests.helpers import model_of, run

NETWORK = """
agraph (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    r = Relu (h)
    y = Conv (r, v)
}
"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(5, 3, 3, 3)).astype(np.float32),
    "v": RNG.normal(size=(4, 5, 1, 1)).astype(np.float32),
}
PHOTOS = RNG.normal(size=(13, 3, 8, 8)).astype(np.float32)
SAME = Unfold((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
ALL = [
    Request("r", "range"),
    Request("h", "histogram"),
    Request("x", "histogram"),
    Request("h", "moving"),
    Request("h", "channel_range", axis=1),
    Request("r", "channel_mean", axis=1),
    Request("r", "gram", axis=1),
    Request("x", "gram", unfold=SAME),
    Request("r", "channel_power", axis=1),
]


def network():
    return model_of(NETWORK, weights=WEIGHTS)


def photos(arrays=PHOTOS, *, batch=4):
    return dataset_from_arrays({"x": arrays}, session_of(network()).inputs, batch=batch)


def values(model=NETWORK, names=("h", "r")):
    text = model
    for name in names:
        text = text.replace("=> (", f"=> (float[N, C, H, W] {name}, ")
    return dict(zip(reversed(names), run(model_of(text, weights=WEIGHTS), {"x": PHOTOS}), strict=False))


def test_statistics_are_those_of_the_values_that_the_model_computes():
    stats = collect(network(), ALL, photos())

    got = values()
    h, r = got["h"], got["r"]
    assert list(stats) == ALL
    assert stats[ALL[0]].low == 0.0
    assert stats[ALL[0]].high == pytest.approx(r.max(), rel=1e-6)
    assert stats[ALL[1]].total == h.size
    assert stats[ALL[2]] == Histogram.of(PHOTOS)
    batches = [h[i : i + 4] for i in range(0, 13, 4)]
    assert stats[ALL[3]].batches == 4
    assert stats[ALL[3]].low == pytest.approx(np.mean([b.min() for b in batches]), rel=1e-6)
    assert stats[ALL[3]].high == pytest.approx(np.mean([b.max() for b in batches]), rel=1e-6)
    np.testing.assert_allclose(stats[ALL[4]].low, h.min(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(stats[ALL[4]].high, h.max(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(stats[ALL[5]].mean, r.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5)
    rows = np.moveaxis(r, 1, -1).reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(stats[ALL[6]].second[0], rows.T @ rows / len(rows), rtol=1e-5)
    np.testing.assert_allclose(stats[ALL[6]].mean[0], rows.mean(0), rtol=1e-5)
    assert stats[ALL[6]].count == len(rows)
    np.testing.assert_allclose(stats[ALL[8]].mean, (rows**2).mean(0), rtol=1e-6)


def test_the_gram_of_patches_gives_the_power_of_a_convolutions_output():
    # Summed over all outputs, |W x|² is the trace of W G Wᵀ: a check that knows nothing of how patches are laid out.
    gram = collect(network(), [ALL[7]], photos())[ALL[7]]

    flat = WEIGHTS["w"].reshape(5, -1).astype(np.float64)
    h = values()["h"].astype(np.float64)
    np.testing.assert_allclose(flat @ gram.second[0] @ flat.T, np.einsum("nohw,nphw->op", h, h) / gram.count, rtol=1e-4)
    np.testing.assert_allclose(flat @ gram.mean[0], h.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)


CONVOLUTIONS = {
    "plain": {"shape": (2, 4, 9, 7), "out": 3, "kernel": (3, 3)},
    "pads": {"shape": (2, 4, 9, 7), "out": 3, "kernel": (3, 2), "pads": (1, 0, 2, 1)},
    "strides": {"shape": (1, 4, 9, 7), "out": 3, "kernel": (3, 3), "strides": (2, 3)},
    "dilations": {"shape": (1, 4, 11, 9), "out": 3, "kernel": (3, 2), "dilations": (2, 3), "pads": (2, 2, 2, 2)},
    "groups": {"shape": (2, 6, 5, 5), "out": 4, "kernel": (3, 3), "groups": 2},
    "depthwise": {
        "shape": (2, 6, 5, 5),
        "out": 6,
        "kernel": (3, 3),
        "groups": 6,
        "pads": (1, 1, 1, 1),
        "strides": (2, 2),
    },
    "pointwise": {"shape": (2, 6, 5, 5), "out": 4, "kernel": (1, 1)},
    "pointwise, strided": {"shape": (2, 6, 5, 5), "out": 4, "kernel": (1, 1), "strides": (2, 2)},
    "1-D": {"shape": (2, 3, 17), "out": 4, "kernel": (5,), "pads": (2, 2), "strides": (2,)},
    "3-D": {"shape": (1, 2, 5, 6, 7), "out": 3, "kernel": (2, 3, 2), "pads": (1, 0, 1, 0, 1, 0)},
    "larger than its input": {"shape": (1, 2, 2, 2), "out": 3, "kernel": (3, 3), "pads": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("buffer", [1, 1 << 22])
def test_patches_are_what_the_runtime_multiplies(case, buffer, monkeypatch):
    monkeypatch.setattr("graphopt.calibration.grams._BUFFER", buffer)
    rank, groups = len(case["kernel"]), case.get("groups", 1)
    unfold = Unfold(
        case["kernel"],
        case.get("strides", (1,) * rank),
        case.get("pads", (0,) * 2 * rank),
        case.get("dilations", (1,) * rank),
        groups,
    )
    x = RNG.normal(size=case["shape"]).astype(np.float32)
    w = RNG.normal(size=(case["out"], x.shape[1] // groups, *case["kernel"])).astype(np.float32)
    attributes = f"pads = {list(unfold.pads)}, strides = {list(unfold.strides)}, dilations = {list(unfold.dilations)}"
    text = f"agraph (float{list(x.shape)} x) => (y) {{ y = Conv <group = {groups}, {attributes}> (x, w) }}"
    (y,) = run(
        model_of(text.replace("(y)", f"(float[{', '.join('ABCDE'[: rank + 2])}] y)"), weights={"w": w}), {"x": x}
    )

    total = GramSum(-1, unfold)
    total.add(x)
    gram = total.result()

    assert gram is not None
    assert gram.count == y[:, 0].size
    outputs = y.reshape(len(y), groups, case["out"] // groups, -1).astype(np.float64)
    flat = w.reshape(groups, case["out"] // groups, -1).astype(np.float64)
    want = np.einsum("ngop,ngqp->goq", outputs, outputs)
    np.testing.assert_allclose(flat @ gram.matrix @ flat.swapaxes(1, 2), want, rtol=1e-4, atol=1e-4 * abs(want).max())
    np.testing.assert_allclose(
        np.einsum("gok,gk->go", flat, gram.total),
        outputs.sum(axis=(0, 3)),
        rtol=1e-4,
        atol=1e-4 * abs(want).max() ** 0.5,
    )


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (2, 3, 4, 5), (3, 40, 2), (5,)])
def test_rows_may_lie_along_any_axis(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    for axis in range(-len(shape), len(shape)):
        rows = np.moveaxis(x, axis, -1).reshape(-1, shape[axis]).astype(np.float64)
        total = GramSum(axis, None)
        total.add(x)
        gram = total.result()

        assert gram is not None
        np.testing.assert_allclose(gram.matrix[0], rows.T @ rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gram.total[0], rows.sum(0), rtol=1e-5, atol=1e-5)
        assert gram.count == len(rows)


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 13), st.integers(1, 5))
def test_shards_merge_into_one_run(batch, shards):
    whole = collect(network(), ALL, photos(batch=batch))
    merged = Statistics()
    for index in range(shards):
        merged = merged.merge(collect(network(), ALL, photos(batch=batch), shard=(index, shards)))

    for request in ALL:
        if request.kind in ("range", "histogram", "channel_range"):
            assert merged[request] == whole[request]
        elif request.kind == "gram":
            scale = abs(whole[request].matrix).max()
            np.testing.assert_allclose(merged[request].matrix, whole[request].matrix, rtol=1e-5, atol=1e-12 * scale)
    assert merged[ALL[3]].batches == whole[ALL[3]].batches


def test_the_same_data_give_the_same_bytes():
    assert dict(collect(network(), ALL, photos())) == dict(collect(network(), ALL, photos()))


def test_values_too_large_for_one_pass_are_divided_among_several(monkeypatch):
    whole = collect(network(), ALL, photos())
    monkeypatch.setattr(collect_module, "RUN_BYTES", 1)
    monkeypatch.setattr(collect_module, "PART_BYTES", 1)
    seen = []

    parts = collect(network(), ALL, photos(), progress=lambda done, total: seen.append((done, total)))

    assert [entry[0] for entry in seen] == list(range(1, 13)), "three values, four batches each"
    assert {entry[1] for entry in seen} == {12}
    assert list(parts) == ALL
    for request in ALL:
        if request.kind == "gram":
            np.testing.assert_allclose(parts[request].matrix, whole[request].matrix, rtol=1e-5)
    assert parts[ALL[2]] == whole[ALL[2]]
    assert parts[ALL[3]].batches == 4, "averages are over the batches of the data, however they are run"


def test_batches_that_the_user_made_are_run_as_they_are():
    feeds = [{"x": PHOTOS[:5]}, {"x": PHOTOS[5:]}]
    seen = []

    stats = collect(
        network(),
        ALL[:4],
        dataset_from_feeds(feeds, session_of(network()).inputs),
        progress=lambda done, total: seen.append((done, total)),
    )

    assert stats[ALL[2]] == Histogram.of(PHOTOS)
    assert stats[ALL[3]].batches == 2
    assert seen == [(1, 2), (2, 2)]


def test_shapes_may_change_from_batch_to_batch():
    text = "agraph (float[N, T] x) => (float[N, T] y) { y = Relu (x) }"
    model = model_of(text)
    feeds = [{"x": RNG.normal(size=(2, size)).astype(np.float32)} for size in (3, 9, 5)]
    data = dataset_from_feeds(feeds, session_of(model).inputs)

    stats = collect(model, [Request("y", "histogram")], data)

    flat = np.concatenate([np.maximum(feed["x"], 0).reshape(-1) for feed in feeds])
    assert stats[Request("y", "histogram")] == Histogram.of(flat)


def test_half_precision_is_counted_in_single():
    model = model_of("agraph (float16[N, 4] x) => (float16[N, 4] y) { y = Neg (x) }")
    x = RNG.normal(size=(6, 4)).astype(np.float16)
    data = dataset_from_arrays({"x": x}, session_of(model).inputs)

    stats = collect(model, [Request("y", "histogram"), Request("y", "gram")], data)

    assert stats[Request("y", "histogram")] == Histogram.of(-x.astype(np.float32))
    rows = x.astype(np.float64)
    np.testing.assert_allclose(stats[Request("y", "gram")].matrix[0], rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_values_that_the_runtime_would_merge_can_be_asked_for():
    # h is merged into Relu's convolution unless somebody reads it.
    stats = collect(network(), [Request("h", "range"), Request("r", "range")], photos())

    assert stats[Request("h", "range")].low < 0 == stats[Request("r", "range")].low


def test_the_model_is_not_changed():
    model = network()
    collect(model, ALL, photos())

    assert [value.name for value in model.graph.outputs] == ["y"]


# --- what cannot be collected ---------------------------------------------------------------------------------------


def test_values_of_nested_graphs_are_reported():
    model = model_of(
        """
        agraph (float[N] x, bool c) => (float[N] y) {
            y = If (c) <
                then_branch = inner () => (float[N] t) { t = Relu (x) },
                else_branch = other () => (float[N] e) { e = Neg (x) }
            >
        }
        """
    )
    data = dataset_from_feeds([{"x": np.ones(3, np.float32), "c": np.array(True)}], session_of(model).inputs)
    sink = DiagnosticSink()

    stats = collect(model, [Request("t", "range"), Request("y", "range")], data, diagnostics=sink)

    assert list(stats) == [Request("y", "range")]
    assert [(d.code, d.node) for d in sink] == [("CALIB001", "t")]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("nowhere", "range"), "nowhere: the model has no such value"),
        (Request("w", "range"), "w: a constant has no statistics"),
        (Request("n", "range"), "n: statistics are for tensors of floats; this is int64"),
        (Request("y", "channel_mean", axis=7), "y: it has rank 4, so there is no axis 7"),
        (Request("y", "gram", unfold=Unfold((3,), (1,), (0, 0), (1,))), "y: it has shape"),
        (Request("y", "gram", unfold=Unfold((1, 1), (1, 1), (0,) * 4, (1, 1), 3)), "in 3 groups"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_, message):
    text = NETWORK.replace("r = Relu", "n = Shape (h)\n r = Relu").replace("=> (", "=> (int64[4] n, ")
    model = model_of(text, weights=WEIGHTS)

    with pytest.raises(UsageError, match=message):
        collect(model, [request_], photos())


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_shards_that_do_not_exist_are_refused(shard):
    with pytest.raises(UsageError, match="shard"):
        collect(network(), ALL, photos(), shard=shard)


@pytest.mark.parametrize(("function", "kind"), [("Log", "NaN"), ("Reciprocal", "infinite")])
@pytest.mark.parametrize("part", [1, 1 << 26])
@pytest.mark.parametrize("asked", ["histogram", "gram"])
def test_values_that_are_not_finite_are_blamed_on_the_sample(function, kind, part, asked, monkeypatch):
    monkeypatch.setattr(collect_module, "PART_BYTES", part)
    model = model_of(f"agraph (float[N, 4] x) => (float[N, 4] y) {{ y = {function} (x) }}")
    x = np.ones((11, 4), np.float32)
    x[6, 2] = -1.0 if function == "Log" else 0.0
    data = dataset_from_arrays({"x": x}, session_of(model).inputs, batch=4)

    with pytest.raises(UsageError, match=rf"arrays: sample 6: the value 'y' becomes {kind} at \[\d, 2\]"):
        collect(model, [Request("y", asked)], data)


def test_a_value_that_is_always_empty_is_reported():
    model = model_of(
        "agraph (float[N] x) => (float[M] y) { k = NonZero (x) k1 = Squeeze (k) f = Cast <to = 1> (k1) y = Relu (f) }"
    )
    feeds = [{"x": np.zeros(3, np.float32)}, {"x": np.zeros(2, np.float32)}]
    sink = DiagnosticSink()

    stats = collect(
        model, [Request("f", "histogram")], dataset_from_feeds(feeds, session_of(model).inputs), diagnostics=sink
    )

    assert dict(stats) == {}
    assert [(d.code, d.node) for d in sink] == [("CALIB002", "f")]


def test_nothing_asked_for_runs_nothing():
    assert dict(collect(network(), [], photos())) == {}


# --- memory ---------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
import numpy as np
from graphopt.analysis.statistics import Request
from graphopt.calibration import Dataset
from graphopt.calibration.collect import collect
from graphopt.diagnostics import DiagnosticSink
from tests.helpers import model_of

w = np.random.default_rng(0).normal(size=(32, 3, 3, 3)).astype(np.float32)
model = model_of("agraph (float[N, 3, 64, 64] x) => (float[N, 32, H, W] y) { y = Conv (x, w) }", weights={"w": w})
batches = lambda: ({"x": np.ones((8, 3, 64, 64), np.float32)} for _ in range(int(sys.argv[1])))
data = Dataset("ones", batches, DiagnosticSink(), rows=frozenset({"x"}))
kinds = ("range", "moving", "histogram", "channel_range", "channel_mean", "channel_power", "gram")
collect(model, [Request("y", kind, axis=1) for kind in kinds], data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(batches):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", PEAK, str(batches)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_ten_times_the_data_need_no_more_memory():
    # What one of the larger run's values takes, kept, is over a tenth of the whole.
    assert peak(60) < 1.05 * peak(6)
