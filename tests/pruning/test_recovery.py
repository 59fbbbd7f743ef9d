"""Recovery on small networks where the right answer is known: what is redundant is made up for exactly."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.ir import Model
from graphopt.pruning import recovery, reference, refitting, route
from graphopt.pruning.refitting import Refitting
from graphopt.pruning.relay import Relay
from tests.helpers import check_equivalent, model_of, run
from tests.pruning.pruned import value_of
from tests.pruning.recovered import batches, error, recovered

RNG = np.random.default_rng(11)
START = RNG.bit_generator.state

UNSEEN = batches(1, 64, seed=99, x=(3, 8, 8))[0]
ROWS = batches(1, 64, seed=99, x=(6,))[0]
ALL_LEFT = {"first": [4, 5, 6, 7]}
EXACT = 1e-5
"""Share of the error that the least damping may leave of what is made up for exactly."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let every test draw the same numbers, whichever ran before it."""
    RNG.bit_generator.state = START


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def doubled(*rest: int, copies: float = 2.0, axis: int = 0) -> np.ndarray:
    """Weights of 8 units, the last four of which give ``copies`` times what the first four give."""
    first = RNG.standard_normal((4, *rest)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(np.concatenate([first, copies * first]), 0, axis))


def image_model(reader: str, body: str = "", **weights: np.ndarray) -> Model:
    """A convolution whose last four channels are twice the first four, a Relu, and ``reader`` of r [N, 8, 8, 8]."""
    text = f"""g (float[N, 3, 8, 8] x) => (float[N, O, A, B] y) {{
        [first] h = Conv(x, w1, b1)
        r = Relu(h)
        {body}
        [second] {reader}
    }}"""
    return model_of(text, weights={"w1": doubled(3, 1, 1), "b1": doubled()} | weights)


def row_model(text: str, **weights: np.ndarray) -> Model:
    """A Gemm whose last four features are twice the first four, a Relu, and ``text``, which reads r [N, 8]."""
    header = "g (float[N, 6] x) => (float[N, O] y) { [first] h = Gemm(x, w1, b1) r = Relu(h)"
    return model_of(f"{header} {text} }}", weights={"w1": doubled(6, axis=1), "b1": doubled()} | weights)


IMAGE_READERS = {
    "pointwise": ("y = Conv(r, w2)", (4, 8, 1, 1)),
    "padded and strided": ("y = Conv<pads = [1, 1, 0, 2], strides = [2, 1]>(r, w2)", (4, 8, 3, 3)),
    "dilated": ("y = Conv<dilations = [2, 3]>(r, w2)", (4, 8, 3, 2)),
    "same": ('y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(r, w2)', (4, 8, 3, 3)),
    "with a bias": ("y = Conv(r, w2, b2)", (4, 8, 3, 3)),
}


@pytest.mark.parametrize("kind", IMAGE_READERS)
def test_a_convolution_makes_up_for_channels_that_others_repeat(kind):
    reader, shape = IMAGE_READERS[kind]
    before = image_model(reader, w2=normal(*shape), b2=normal(4))

    found = recovered(before, batches(x=(3, 8, 8)), ALL_LEFT)

    assert error(before, found.plain, UNSEEN) > 0.05
    assert error(before, found.model, UNSEEN) < EXACT
    assert found.refits[0].after < EXACT < found.refits[0].before


def test_each_group_of_a_convolution_makes_up_for_its_own():
    """Units are places within a group: channels 2 and 3 of the first group, 6 and 7 of the second."""
    quarter = normal(2, 3, 1, 1), normal(2, 3, 1, 1)
    w1 = np.concatenate([part for first in quarter for part in (first, 3 * first)])
    before = image_model("y = Conv<group = 2>(r, w2)", w1=w1, b1=np.zeros(8, np.float32), w2=normal(4, 4, 3, 3))

    found = recovered(before, batches(x=(3, 8, 8)), {"first": [2, 3]})

    assert value_of(found.model, "w2").shape == (4, 2, 3, 3)
    assert error(before, found.plain, UNSEEN) > 0.05
    assert error(before, found.model, UNSEEN) < EXACT


def test_what_a_depthwise_convolution_has_left_goes_through_it_unharmed():
    """The channels that stay are what they were, so that only the layer behind has to be refit."""
    dw = np.tile(normal(4, 1, 3, 3), (2, 1, 1, 1))
    before = image_model("y = Conv(d, w2)", "[deep] d = Conv<group = 8>(r, dw)", dw=dw, w2=normal(4, 8, 1, 1))

    found = recovered(before, batches(x=(3, 8, 8)), ALL_LEFT)

    assert [refit.node for refit in found.refits] == ["second"]
    assert error(before, found.model, UNSEEN) < EXACT


def test_a_depthwise_convolution_is_refit_where_what_it_reads_has_changed():
    """The layer before cannot be refit, for it shares its weights; its error is one factor for each channel."""
    w1 = np.concatenate([np.ones((1, 3, 1, 1)), 2 * np.ones((1, 3, 1, 1))]).astype(np.float32)
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 4, 8, 8] z) {
        [first] h = Conv(x, w1)
        [second] s = Conv(h, w2)
        [deep] y = Conv<group = 4>(s, dw)
        [other] z = Conv(h, w2)
    }"""
    before = model_of(text, weights={"w1": w1, "w2": normal(4, 2, 1, 1), "dw": normal(4, 1, 3, 3)})

    found = recovered(before, batches(x=(3, 8, 8)), {"first": [1]})

    assert set(found.declined) == {"second", "other"}
    assert error(before, found.plain, UNSEEN) > 0.05
    assert error(before, found.model, UNSEEN) < EXACT


@pytest.mark.parametrize(
    "text",
    [
        "[second] y = Gemm(r, w2, b2)",
        "[second] y = Gemm<transB = 1>(r, v2, b2)",
        "[second] y = Gemm<transB = 1, alpha = 0.25, beta = 3.0>(r, v2, b2)",
        "[second] y = Gemm<alpha = -4.0>(r, w2)",
        "[second] m = MatMul(r, w2) y = Add(m, b2)",
        "[second] m = MatMul(r, w2) y = Add(b2, m)",
        "[second] y = MatMul(r, w2)",
    ],
)
def test_matrix_products_make_up_for_features_that_others_repeat(text):
    before = row_model(text, w2=normal(8, 5), v2=normal(5, 8), b2=normal(5))

    found = recovered(before, batches(x=(6,)), ALL_LEFT)

    assert error(before, found.plain, ROWS) > 0.05
    assert error(before, found.model, ROWS) < EXACT


def test_products_of_several_axes_and_no_bias_keep_their_operators():
    text = """g (float[N, 5, 6] x) => (float[N, 5, 4] y) {
        [first] h = MatMul(x, w1)
        r = Relu(h)
        [second] y = MatMul(r, w2)
    }"""
    before = model_of(text, weights={"w1": doubled(6, axis=1), "w2": normal(8, 4)})

    found = recovered(before, batches(x=(5, 6)), ALL_LEFT)

    assert [node.op_type for node in found.model.graph] == ["MatMul", "Relu", "MatMul"]
    assert error(before, found.model, batches(1, seed=99, x=(5, 6))[0]) < EXACT


def test_a_bias_makes_up_for_a_channel_that_is_always_the_same():
    w1, b1 = normal(8, 3, 1, 1), normal(8)
    w1[4:], b1[4:] = 0, 3
    before = image_model("y = Conv(r, w2)", w1=w1, b1=b1, w2=normal(4, 8, 3, 3))

    found = recovered(before, batches(x=(3, 8, 8)), ALL_LEFT)

    assert np.abs(run(found.plain, UNSEEN)[0] - run(before, UNSEEN)[0]).min() > 0.1
    check_equivalent(before, found.model, UNSEEN, rtol=1e-3)


def test_channels_that_were_dead_leave_nothing_to_make_up_for():
    w1, b1 = normal(8, 3, 1, 1), normal(8)
    w1[4:], b1[4:] = 0, 0
    w1[2], b1[2] = 0, -1  # dead too, and stays: nothing can be told of its weights
    before = image_model("y = Conv(r, w2, b2)", w1=w1, b1=b1, w2=normal(4, 8, 3, 3), b2=normal(4))

    found = recovered(before, batches(x=(3, 8, 8)), ALL_LEFT)

    check_equivalent(before, found.model, UNSEEN)


@pytest.mark.parametrize("scale", [[2.0, -0.5, 1.0, 3.0], [2.0, 0.0, 1e-12, 3.0]])
def test_a_layer_is_refit_through_the_normalization_behind_it(scale):
    """A channel that the normalization makes constant cannot be told from any other, and is left alone."""
    norm = {"s": np.array(scale, np.float32), "o": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 0.5}
    before = image_model("k = Conv(r, w2) y = BatchNormalization(k, s, o, m, v)", w2=normal(4, 8, 3, 3), **norm)

    found = recovered(before, batches(x=(3, 8, 8)), ALL_LEFT)

    assert error(before, found.plain, UNSEEN) > 0.05
    assert error(before, found.model, UNSEEN) < EXACT
    for name, array in norm.items():
        np.testing.assert_array_equal(value_of(found.model, name).const_value.numpy(), array)
    alive = np.abs(scale) > 1e-6
    weights = [value_of(m, "w2").const_value.numpy() for m in (found.plain, found.model)]
    assert [not np.array_equal(*rows) for rows in zip(*weights, strict=True)] == list(alive)


def test_a_layer_before_a_sum_makes_up_for_what_is_missing_on_the_other_side():
    """One side shares its weights with a third layer, and so cannot be refit; the other makes the sum come out."""
    text = """g (float[N, 6] x) => (float[N, 5] y, float[N, 5] z) {
        [first] h = Gemm(x, w1, b1)
        r = Relu(h)
        [shared] k = MatMul(r, w2)
        [third] z = MatMul(r, w2)
        [second] m = MatMul(r, w3)
        s = Add(k, m)
        y = Relu(s)
    }"""
    weights = {"w1": doubled(6, axis=1), "b1": doubled(), "w2": normal(8, 5), "w3": normal(8, 5)}
    before = model_of(text, weights=weights)

    found = recovered(before, batches(x=(6,)), ALL_LEFT)

    assert set(found.declined) == {"shared", "third"}
    assert error(before, found.plain, ROWS) > 0.05
    assert error(before, found.model, ROWS) < EXACT


def test_a_later_layer_makes_up_for_an_earlier_one_that_could_not_be_refit():
    """What the shared layer gives is wrong, but tells as much as before: the layer behind it puts it right."""
    text = (
        "[shared] k = MatMul(r, w2) [other] z = MatMul(r, w2) u = Mul(z, zero) [last] q = MatMul(k, w3) y = Add(q, u)"
    )
    before = row_model(text, w2=normal(8, 6), w3=normal(6, 6), zero=np.zeros(1, np.float32))

    found = recovered(before, batches(x=(6,)), ALL_LEFT)

    assert set(found.declined) == {"shared", "other"}
    assert [refit.node for refit in found.refits] == ["last"]
    assert error(before, found.plain, ROWS) > 0.05
    assert error(before, found.model, ROWS) < EXACT


@pytest.mark.parametrize("bound", ["Relu(k)", "Clip(k, low, high)"])
def test_what_a_bound_cuts_off_is_not_made_up_for(bound, monkeypatch):
    """Relu(z - 10 Relu(-z)) is Relu(z): without Relu(-z) the weight 1 is right, whatever that gives for z < 0."""
    text = f"""g (float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y) {{
        [both] h = Conv(x, w1)
        p = PRelu(h, slope)
        [second] k = Conv(p, w2)
        y = {bound}
    }}"""
    weights = {
        "w1": np.array([1.0, -1.0], np.float32).reshape(2, 1, 1, 1),
        "slope": np.array([1.0, 0.0], np.float32).reshape(2, 1, 1),
        "w2": np.array([1.0, -10.0], np.float32).reshape(1, 2, 1, 1),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    before, unseen = model_of(text, weights=weights), batches(1, 64, seed=99, x=(1, 8, 8))[0]

    found = recovered(before, batches(x=(1, 8, 8)), {"both": [1]})
    monkeypatch.setattr(refitting, "_ROUNDS", 0)
    at_once = recovered(before, batches(x=(1, 8, 8)), {"both": [1]})

    assert error(before, at_once.model, unseen) > 0.3
    assert error(before, found.model, unseen) < 0.5 * error(before, at_once.model, unseen)


def test_batches_of_all_sizes():
    text = """g (float[N, 3, H, W] x) => (float[N, 4, A, B] y) {
        [first] h = Conv(x, w1)
        r = Relu(h)
        [second] y = Conv<strides = [2, 2]>(r, w2)
    }"""
    before = model_of(text, weights={"w1": doubled(3, 1, 1), "w2": normal(4, 8, 3, 3)})
    feeds = [{"x": normal(1 + i % 3, 3, 5 + i % 4, 6 + i % 5)} for i in range(24)]

    found = recovered(before, feeds, ALL_LEFT)

    assert error(before, found.model, UNSEEN) < EXACT


@pytest.mark.parametrize("size", [0, 1 << 28])
@pytest.mark.parametrize("byte", [0.0, 1e9])
def test_where_networks_rest_makes_no_difference(byte, size, monkeypatch):
    """Once at every layer there is, and once nowhere; bounds, shortcuts and a cut in two places on the way.

    Nor does it matter whether the original network is run for one layer at a time or for all at once.
    """
    monkeypatch.setattr(route, "_BYTE", byte)
    monkeypatch.setattr(reference, "_BYTES", size)
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        [first] h = Conv(x, w1)
        r = Relu(h)
        [second] k = Conv<pads = [1, 1, 1, 1]>(r, w2)
        s = Relu(k)
        [third] m = Conv(s, w3)
        t = Add(m, k)
        [fourth] n = Conv(t, w4)
        p = GlobalAveragePool(n)
        f = Flatten(p)
        [last] y = Gemm(f, w5)
    }"""
    weights = {"w1": doubled(3, 1, 1), "w2": normal(6, 8, 3, 3), "w3": normal(6, 6, 1, 1), "w4": doubled(6, 1, 1)}
    before = model_of(text, weights=weights | {"w5": normal(8, 5)})

    found = recovered(before, batches(x=(3, 8, 8)), ALL_LEFT | {"fourth": [4, 5, 6, 7]})

    assert [refit.node for refit in found.refits] == ["second", "third", "fourth", "last"]
    assert error(before, found.plain, UNSEEN) > 0.05
    assert error(before, found.model, UNSEEN) < EXACT


def test_one_batch_that_cannot_be_divided():
    """Nothing can be held out, so that the damping is a middle one."""
    text = """g (float[64, 6] x) => (float[64, 5] y) {
        [first] h = Gemm(x, w1)
        r = Relu(h)
        [second] y = Gemm(r, w2)
    }"""
    before = model_of(text, weights={"w1": doubled(6, axis=1), "w2": normal(8, 5)})

    found = recovered(before, [{"x": normal(64, 6)}], ALL_LEFT)

    assert error(before, found.model, ROWS) < 0.1 * error(before, found.plain, ROWS)


def test_an_array_of_samples_is_run_in_parts():
    before = row_model("[second] y = Gemm(r, w2)", w2=normal(8, 5))
    data = dataset_from_arrays({"x": normal(300, 6)}, session_of(before).inputs, batch=300)

    found = recovered(before, data, ALL_LEFT)

    assert error(before, found.model, ROWS) < EXACT


def test_what_takes_long_is_not_run_again_for_every_layer(monkeypatch):
    """The sizes of the original's values are found out: a model from a file need not tell them."""
    text = "[first] a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Relu(c) e = Conv(d, w3) f = Relu(e) y = Conv(f, w4)"
    weights = {"w1": normal(64, 3, 3, 3)} | {f"w{index}": normal(64, 64, 3, 3) for index in (2, 3, 4)}
    before = model_of(f"g (float[N, 3, 16, 16] x) => (float[N, 64, 8, 8] y) {{ {text} }}", weights=weights)
    places: list[object] = []
    move = Relay.move
    monkeypatch.setattr(Relay, "move", lambda self, names: (places.append(names), move(self, names)))

    found = recovered(before, batches(1, x=(3, 16, 16)), {"first": range(32)})

    assert len(found.refits) == 3
    assert places == [("d",)]


@pytest.mark.parametrize(("plenty", "positions"), [(1, 4), (64, 9), (10**6, 64)])
def test_of_much_data_as_many_positions_are_fit_to_as_are_plenty(monkeypatch, plenty: int, positions: int):
    """Of each sample, so that none is left out."""
    monkeypatch.setattr(recovery, "_BYTES", 1)
    monkeypatch.setattr(recovery, "_PLENTY", plenty)
    monkeypatch.setattr(recovery, "_SPARSEST", 4)
    seen: list[int] = []
    placed = Refitting._placed

    def noted(self, batch):
        number, found = placed(self, batch)
        seen.append(found[1].shape[1])
        return number, found

    monkeypatch.setattr(Refitting, "_placed", noted)
    before = image_model("s = Conv(r, w2) y = Conv(s, w3)", w2=normal(4, 8, 1, 1), w3=normal(4, 4, 1, 1))
    data = dataset_from_arrays({"x": normal(16, 3, 8, 8)}, session_of(before).inputs)

    found = recovered(before, data, ALL_LEFT)

    assert seen == [positions] * 32
    assert error(before, found.model, UNSEEN) < EXACT
