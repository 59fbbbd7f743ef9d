"""In what order units go with data, on networks where that is known, and on networks that are odd."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.channels import Channels
from graphopt.analysis.manager import AnalysisManager
from graphopt.driver import optimize
from graphopt.ir import Editor, Model, verify
from graphopt.pruning import effects, route
from graphopt.pruning.effects import Ranking, rank
from graphopt.runner import ModelRunner
from tests.helpers import model_of, run
from tests.pruning.pruned import value_of
from tests.pruning.recovered import Feeds, batches, dataset

CRITERIA = ["obs", "energy", "entropy", "l1"]
RNG = np.random.default_rng(4)
FEEDS = batches(x=(6,))
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"a": (6, 8), "b": (8, 5), "c": (5, 8), "d": (8, 5), "e": (5, 5)}.items()
}


def rankings(model: Model, feeds: list[Feeds]) -> list[Ranking]:
    manager = AnalysisManager(Editor(model))
    manager.get(Shapes)
    return rank(model, manager.get(Channels).groups, ModelRunner(dataset(model, feeds)), samples=4096)


def net(text: str, inputs: str = "float[N, 6] x", outputs: str = "float[N, 5] y", **more: np.ndarray) -> Model:
    body = f"g ({inputs}) => ({outputs}) {{ {text} }}"
    return model_of(body, weights={n: w for n, w in WEIGHTS.items() if f"{n})" in text} | more)


def test_what_others_repeat_goes_first_and_costs_nothing():
    w = np.eye(4, dtype=np.float32)[:, [0, 1, 2, 3, 1]]  # the last repeats the second
    model = net("h = MatMul(x, w) y = MatMul(h, v)", "float[N, 4] x", w=w, v=RNG.standard_normal((5, 5)).astype("f"))

    (found,) = rankings(model, batches(x=(4,)))

    assert found.elimination.order[0] in (1, 4)
    assert found.curve.losses[0] == 0
    assert found.curve.losses[1] < 1e-2 * found.curve.losses[2]


def test_losses_are_shares_of_the_variance_of_the_outputs():
    """Four independent channels, read with weights 1, 2, 3 and 4, so that they carry shares of 1, 4, 9 and 16."""
    v = np.arange(1, 5, dtype=np.float32)[:, None]
    model = net("h = MatMul(x, w) y = MatMul(h, v)", "float[N, 4] x", "float[N, 1] y", w=np.eye(4, dtype="f"), v=v)

    (found,) = rankings(model, batches(64, 256, x=(4,)))

    assert list(found.elimination.order) == [0, 1, 2]
    np.testing.assert_allclose(found.curve.losses, np.array([0, 1, 5, 14]) / 30, rtol=0.15)


def test_channels_that_the_outputs_hardly_tell_are_cheap_whatever_the_next_layer_says():
    """Two like branches, the second of which counts for a thousandth in the end."""
    text = """h = MatMul(x, a) r = Relu(h) k = MatMul(r, b)
        i = MatMul(x, a2) s = Relu(i) m = MatMul(s, b2)
        t = Mul(m, little) y = Add(k, t)"""
    like = {"a2": WEIGHTS["a"].copy(), "b2": WEIGHTS["b"].copy(), "little": np.float32(1e-3)}

    first, second = rankings(net(text, **like), FEEDS)

    np.testing.assert_array_equal(first.elimination.order, second.elimination.order)
    assert second.curve.losses[4] < 1e-3 * first.curve.losses[4]


def test_where_the_network_rests_makes_no_difference(monkeypatch):
    text = "h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) m = MatMul(s, c) t = Relu(m) y = MatMul(t, d)"
    curves = []
    for byte in (0.0, 1e9):
        monkeypatch.setattr(route, "_BYTE", byte)
        curves.append([found.curve.losses for found in rankings(net(text), FEEDS)])

    assert len(curves[0]) == 3
    for resting, running in zip(*curves, strict=True):
        np.testing.assert_allclose(resting, running, rtol=1e-3)


def test_groups_are_ranked_alike_when_memory_holds_one_gram_matrix_at_a_time(monkeypatch):
    text = "h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) m = MatMul(s, c) t = Relu(m) y = MatMul(t, d)"
    together = rankings(net(text), FEEDS)

    monkeypatch.setattr(effects, "_WAVE", 8 * 8 * 8)
    apart = rankings(net(text), FEEDS)

    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.elimination.order, other.elimination.order)
        np.testing.assert_array_equal(one.curve.losses, other.curve.losses)


ODD = {
    "no node has a name": ("h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) k = Gemm(s, c) t = Relu(k) y = Gemm(t, d)", {}),
    "strings go through": (
        "h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) u = Identity(t) y = Gemm(s, e)",
        {"inputs": "float[N, 6] x, string[M] t", "outputs": "float[N, 5] y, string[M] u"},
    ),
    "sequences go through": (
        """h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) u = SplitToSequence<axis = 1>(x, size)
            k = Gemm(s, c) v = Relu(k) p = Gemm(v, d) l = SequenceLength(u) y = Gemm(p, e)""",
        {"outputs": "float[N, 5] y, int64 l, seq(float[N, 3]) u", "size": np.array(3)},
    ),
    "a branch reads what came before": (
        """h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) m = ReduceSum<keepdims = 0>(s) yes = Greater(m, size)
            t = If(yes) <then_branch = p () => (float[N, 5] o) { o = Relu(s) },
                         else_branch = q () => (float[N, 5] n) { n = Neg(s) }>
            k = Gemm(t, c) v = Relu(k) y = Gemm(v, d)""",
        {"size": np.float32(0)},
    ),
    "sizes hang on the data": (
        """h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) m = ReduceMax<axes = [1], keepdims = 0>(s)
            yes = Greater(m, size) p = Compress<axis = 0>(s, yes) k = Gemm(p, c) t = Relu(k) y = Gemm(t, d)""",
        {"size": np.float32(1)},
    ),
    "some batches are empty": (
        """h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) m = ReduceMax<axes = [1], keepdims = 0>(x)
            yes = Greater(m, size) p = Compress<axis = 0>(s, yes) k = Gemm(p, c) t = Relu(k) y = Gemm(t, d)""",
        {"size": np.float32(2)},
    ),
    "a layer never sees anything": (
        """h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) m = ReduceMax<axes = [1], keepdims = 0>(x)
            yes = Greater(m, size) p = Compress<axis = 0>(s, yes) k = Gemm(p, c) t = Relu(k) y = Gemm(t, d)""",
        {"size": np.float32(1e9)},
    ),
    "outputs are integers": (
        "h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) y = ArgMax<axis = 1, keepdims = 0>(s)",
        {"outputs": "int64[N] y"},
    ),
    "no output is a number": (
        "h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) m = ReduceMax(s) y = Identity(t) z = SequenceConstruct(m)",
        {"inputs": "float[N, 6] x, string[M] t", "outputs": "string[M] y, seq(float[1, 1]) z"},
    ),
    "an output is not finite": (
        "h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) m = Relu(s) y = Log(m)",
        {},
    ),
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ODD)
def test_odd_models_are_pruned_and_refit(kind, criterion):
    text, more = ODD[kind]
    model = net(text, **more)
    strings = {"t": np.array(["left", "right"], object)} if "string" in str(more.get("inputs")) else {}
    feeds = [{**feed, **strings} for feed in FEEDS]

    result = optimize(
        model, pipeline=f"prune-channels{{channels=0.5, align=0, criterion={criterion}}}", data=dataset(model, feeds)
    )

    verify(model)
    assert value_of(model, "a").shape == (6, 4)
    assert result.run.records[-1].changes["refit"]
    assert len(run(model, feeds[0])) == len(model.graph.outputs)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_keep_their_precision(dtype, criterion):
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    text = f"g ({kind}[N, 6] x) => ({kind}[N, 5] y) {{ h = Gemm(x, a) r = Relu(h) y = Gemm(r, b) }}"
    model = model_of(text, weights={name: WEIGHTS[name].astype(dtype) for name in "ab"})
    feeds = [{"x": feed["x"].astype(dtype)} for feed in FEEDS]

    optimize(
        model, pipeline=f"prune-channels{{channels=0.5, align=0, criterion={criterion}}}", data=dataset(model, feeds)
    )

    assert value_of(model, "b").shape == (4, 5)
    assert run(model, feeds[0])[0].dtype == dtype


def test_what_is_not_finite_is_not_refit_to():
    """What overflows behind the first layers is told, and the layer there keeps what it has of its weights."""
    model = net(
        "h = Gemm(x, a) r = Relu(h) s = Gemm(r, b) p = Mul(s, big) q = Mul(p, big) y = Gemm(q, e)", big=np.float32(1e38)
    )
    result = optimize(model, pipeline="prune-channels{channels=0.5, align=0, criterion=l1}", data=dataset(model, FEEDS))

    assert [d.node for d in result.diagnostics if d.code == "PRUNE003"] == ["y"]
    assert np.isfinite(value_of(model, "e").const_value.numpy()).all()


def test_layers_whose_size_hangs_on_the_data_are_named():
    text, more = ODD["sizes hang on the data"]
    model = net(text, **more)

    result = optimize(model, pipeline="prune-channels{channels=0.5, align=0, criterion=l1}", data=dataset(model, FEEDS))

    assert {d.node for d in result.diagnostics if d.code == "PRUNE003"} == {"k", "y"}
    assert "not as large as" in str(next(d.message for d in result.diagnostics if d.code == "PRUNE003"))


def test_layers_that_no_data_reach_are_named():
    text, more = ODD["a layer never sees anything"]
    model = net(text, **more)

    result = optimize(model, pipeline="prune-channels{channels=0.5, align=0, criterion=l1}", data=dataset(model, FEEDS))

    said = {d.node: d.message for d in result.diagnostics if d.code == "PRUNE003"}
    assert set(said) == {"k", "y"}
    assert all("none of the data reaches it" in message for message in said.values())


def test_groups_that_no_layer_tells_anything_of_stay():
    text = """g (float[N, 4, H, W] x) => (float[N, 2, A, B] y) {
        h = Conv(x, w1) y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(h, w2)
    }"""
    weights = {"w1": np.ones((4, 4, 1, 1), np.float32), "w2": np.ones((2, 4, 1, 1), np.float32)}
    model = model_of(text, weights=weights)

    result = optimize(model, pipeline="prune-channels{channels=0.5}", data=dataset(model, batches(x=(4, 5, 5))))

    assert value_of(model, "w2").shape == (2, 4, 1, 1)
    assert [d.code for d in result.diagnostics] == ["PRUNE002"]
