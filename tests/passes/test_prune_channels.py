"""prune-channels: what goes, what stays, and what it says of models that it cannot prune."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.driver import optimize
from graphopt.errors import UsageError
from graphopt.ir import Model, nodes, static_shape
from tests.helpers import check_equivalent, clone, codes, model_of, optimized, run
from tests.pruning.pruned import value_of

RNG = np.random.default_rng(0)
IMAGE = {"x": RNG.standard_normal((1, 3, 5, 5)).astype(np.float32)}

CHAIN = """agraph (float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) {
    [first] h = Conv(x, w1, b1)
    r = Relu(h)
    [second] k = Conv(r, w2)
    [third] y = Conv(k, w3)
}"""


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def chain(**changed: np.ndarray) -> Model:
    arrays = weights(w1=(8, 3, 1, 1), b1=(8,), w2=(6, 8, 1, 1), w3=(4, 6, 1, 1))
    return model_of(CHAIN, weights=arrays | changed)


def shape(model: Model, name: str) -> tuple[int, ...] | None:
    return static_shape(value_of(model, name))


def messages(result) -> str:
    return " ".join(str(diagnostic.message) for diagnostic in result.diagnostics)


def test_every_group_keeps_a_fraction():
    model, result = optimized(chain(), "prune-channels{channels=0.5}")

    assert [shape(model, name) for name in ("w1", "b1", "w2", "w3")] == [(4, 3, 1, 1), (4,), (3, 4, 1, 1), (4, 3, 1, 1)]
    assert run(model, IMAGE)[0].shape == (1, 4, 5, 5)
    assert len(result.run.ctx.rewrites) == 2


def test_what_matters_least_goes():
    strong = np.zeros((8, 3, 1, 1), np.float32)
    strong[[1, 4, 6, 7]] = 1.0
    before = chain(w1=strong, b1=np.zeros(8, np.float32))

    after, _ = optimized(before, 'prune-channels{channels=0.5,ignore="second"}')

    assert shape(after, "w1") == (4, 3, 1, 1)
    check_equivalent(before, after, IMAGE)


def test_biases_that_layers_share_go_with_both():
    body = CHAIN.replace("[second] k = Conv(r, w2)", "[second] s = Conv(r, w2, b1)\n k = Relu(s)")
    arrays = weights(w1=(8, 3, 1, 1), b1=(8,), w2=(8, 8, 1, 1), w3=(4, 8, 1, 1))
    for name in ("w1", "b1", "w2"):
        arrays[name][[0, 2, 3, 5]] = 0
    before = model_of(body, weights=arrays)

    after, _ = optimized(before, "prune-channels{channels=0.5}")

    assert [shape(after, name) for name in ("w1", "b1", "w2")] == [(4, 3, 1, 1), (4,), (4, 4, 1, 1)]
    check_equivalent(before, after, IMAGE)


def test_a_floor_holds():
    model, _ = optimized(chain(), "prune-channels{channels=0.1,min_channels=5,align=0}")

    assert [shape(model, name) for name in ("w1", "w2")] == [(5, 3, 1, 1), (5, 5, 1, 1)]


def test_one_channel_stays_at_least():
    model, _ = optimized(chain(), "prune-channels{channels=0.01,align=0}")

    assert [shape(model, name) for name in ("w1", "w2")] == [(1, 3, 1, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize(("ignore", "left"), [("first", 3), ("fir*", 3), ("first, second", 6), ("Conv", 6)])
def test_layers_are_left_out_by_name_and_by_operator(ignore, left):
    model, _ = optimized(chain(), f'prune-channels{{channels=0.5,ignore="{ignore}"}}')

    assert shape(model, "w1") == (8, 3, 1, 1)
    assert shape(model, "w3") == (4, left, 1, 1)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(UsageError, match="no node and no operator is called 'fourth'"):
        optimize(chain(), pipeline="prune-channels{channels=0.5,ignore=fourth}")


@pytest.mark.parametrize("channels", ["-0.5", "1.5"])
def test_a_fraction_out_of_range_is_an_error(channels):
    with pytest.raises(UsageError, match="channels must be"):
        optimize(chain(), pipeline=f"prune-channels{{channels={channels}}}")


def test_a_model_with_nothing_to_prune_stays_and_says_why():
    body = "agraph (float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) { y = Conv(x, w1) }"
    before = model_of(body, weights=weights(w1=(4, 3, 1, 1)))

    after, result = optimized(before, "prune-channels{channels=0.5}")

    assert codes(result) == {"PRUNE001"}
    assert "an output of the model" in messages(result)
    assert "an input of the model" in messages(result)
    check_equivalent(before, after, IMAGE)


def test_channels_of_unknown_number_stay():
    body = "agraph (float[1, C, 5, 5] x) => (float[1, 4, 5, 5] y) { h = Relu(x) g = Mul(h, h) y = Conv(g, w1) }"

    _, result = optimized(model_of(body, weights=weights(w1=(4, 3, 1, 1))), "prune-channels{channels=0.5}")

    assert codes(result) == {"PRUNE001"}


def test_a_batch_of_unknown_size_hinders_nothing():
    body = """agraph (float[N, 3, 5, 5] x) => (float[N, 5] y) {
        h = Conv(x, w1)
        s = Shape(h)
        n = Gather(s, zero)
        one = Unsqueeze(n, axes)
        to = Concat<axis = 0>(one, rest)
        f = Reshape(h, to)
        y = MatMul(f, w2)
    }"""
    numbers = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([200])}
    dead = weights(w1=(8, 3, 1, 1), w2=(200, 5))
    dead["w1"][[0, 1, 2, 6]] = 0
    before = model_of(body, weights=dead | numbers)

    after, _ = optimized(before, "prune-channels{channels=0.5}")

    assert shape(after, "w2") == (100, 5)
    for size in (1, 3):
        check_equivalent(before, after, {"x": RNG.standard_normal((size, 3, 5, 5)).astype(np.float32)})


def test_a_quantized_model_is_refused_with_the_order_to_use():
    body = """agraph (float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) {
        q = QuantizeLinear(x, scale)
        d = DequantizeLinear(q, scale)
        y = Conv(d, w1)
    }"""
    model = model_of(body, weights=weights(w1=(4, 3, 1, 1)) | {"scale": np.array(0.1, np.float32)})

    with pytest.raises(UsageError, match="quantized already") as caught:
        optimize(model, pipeline="prune-channels{channels=0.5}")

    assert "quantize behind it" in str(caught.value.hint)


ATTENTION = """agraph (float[1, 5, 6] x) => (float[1, 5, 6] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    q4 = Reshape(q, split)
    k4 = Reshape(k, split)
    v4 = Reshape(v, split)
    qt = Transpose<perm = [0, 2, 1, 3]>(q4)
    kt = Transpose<perm = [0, 2, 3, 1]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    scores = MatMul(qt, kt)
    shares = Softmax(scores)
    mixed = MatMul(shares, vt)
    back = Transpose<perm = [0, 2, 1, 3]>(mixed)
    joined = Reshape(back, join)
    y = MatMul(joined, wo)
}"""


@pytest.mark.parametrize(("heads", "split"), [("heads", [1, 5, 2, 6]), ("dims", [1, 5, 4, 3])])
def test_attention_loses_heads_or_dimensions_of_every_head(heads, split):
    arrays = weights(wq=(6, 24), wk=(6, 24), wv=(6, 24), wo=(24, 6))
    numbers = {"split": np.array([1, 5, 4, 6]), "join": np.array([1, 5, 24])}
    before = model_of(ATTENTION, weights=arrays | numbers)

    after, _ = optimized(before, f"prune-channels{{channels=0.5,heads={heads}}}")

    assert {name: shape(after, name) for name in ("wq", "wv", "wo")} == {"wq": (6, 12), "wv": (6, 12), "wo": (12, 6)}
    assert shape(after, "q4") == tuple(split)
    assert run(after, {"x": RNG.standard_normal((1, 5, 6)).astype(np.float32)})[0].shape == (1, 5, 6)


def test_fuel_stops_after_some_groups():
    model = chain()

    optimize(model, pipeline="prune-channels{channels=0.5}", fuel={"prune-channels": 1})

    assert [shape(model, name) for name in ("w1", "w2")] == [(4, 3, 1, 1), (6, 4, 1, 1)]


def test_all_kept_is_no_change():
    before = chain()
    after = clone(before)

    result = optimize(after, pipeline="prune-channels{channels=1.0}")

    assert not result.run.ctx.rewrites
    assert len(list(nodes(after))) == len(list(nodes(before)))
    check_equivalent(before, after, IMAGE)


def test_single_layers_keep_at_least_their_floor():
    model, result = optimized(chain(), 'prune-channels{channels=0.5,align=0,floors="first=0.75"}')

    assert [shape(model, name) for name in ("w1", "w2")] == [(6, 3, 1, 1), (3, 6, 1, 1)]
    (groups,) = result.report()["notes"]["prune-channels"]["groups"]
    assert [(group["written by"], group["kept"]) for group in groups] == [(["first"], 6), (["second"], 3)]


@pytest.mark.parametrize(
    ("floors", "said"),
    [
        ("first=2", "fraction from 0 to 1"),
        ("first", "not a name"),
        ("=0.5", "not a name"),
        ("Nobody=0.5", "no operator is called"),
    ],
)
def test_floors_that_mean_nothing_are_refused(floors, said):
    with pytest.raises(UsageError, match=said):
        optimized(chain(), f'prune-channels{{channels=0.5,floors="{floors}"}}')


def test_layers_that_cannot_be_refit_are_named():
    text = """agraph (float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) {
        [first] h = Conv(x, w1, b1)
        r = Relu(h)
        [second] k = Conv(h, w2)
        [third] m = Conv(r, w2)
        y = Add(k, m)
    }"""
    model = model_of(text, weights=weights(w1=(8, 3, 1, 1), b1=(8,), w2=(4, 8, 1, 1)))
    result = optimize(model, pipeline="prune-channels{channels=0.5,align=0,criterion=l1}", data="random")

    assert shape(model, "w2") == (4, 4, 1, 1)
    assert [d.node for d in result.diagnostics if d.code == "PRUNE003"] == ["second", "third"]
