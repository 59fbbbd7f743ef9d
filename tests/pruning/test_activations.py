"""What units are worth by what flows through them, on layers whose inputs are known."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.channels import Channels
from graphopt.analysis.manager import AnalysisManager
from graphopt.errors import UsageError
from graphopt.ir import Editor, Model
from graphopt.pruning.activations import scores
from graphopt.runner import ModelRunner
from tests.helpers import model_of
from tests.pruning.recovered import dataset

RNG = np.random.default_rng(2)
IMAGES = [{"x": RNG.standard_normal((2, 3, 5, 5)).astype(np.float32)} for _ in range(6)]
SCALES = np.array([1.0, 4.0, 2.0, 0.0])


def worth(model: Model, criterion: str, feeds=None) -> list[np.ndarray]:
    """Return the scores of every group, in the order of the groups."""
    manager = AnalysisManager(Editor(model))
    manager.get(Shapes)
    groups = manager.get(Channels).groups
    found = scores(model, groups, criterion, ModelRunner(dataset(model, feeds or IMAGES)))
    return [found[group.index] for group in groups if group.index in found]


def net(reader: str, **weights: np.ndarray) -> Model:
    """Four channels that are multiples of the same one, by SCALES, before ``reader`` of h [N, 4, 5, 5]."""
    text = f"g (float[N, 3, 5, 5] x) => (float[N, O, A, B] y) {{ h = Conv(x, w1) {reader} }}"
    w1 = (SCALES[:, None] * [[1.0, 0.5, -1.0]])[:, :, None, None].astype(np.float32)
    arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    return model_of(text, weights={"w1": w1} | arrays)


def over_mean(numbers) -> np.ndarray:
    return np.asarray(numbers) / np.mean(numbers)


def test_energy_is_what_weights_and_activations_bring_together():
    """Root of the power of each channel, times the norm of the weights that read it."""
    w2 = np.array([[3.0, 1.0, 1.0, 9.0], [4.0, 0.0, 1.0, 9.0]]).reshape(2, 4, 1, 1)

    (found,) = worth(net("y = Conv(h, w2)", w2=w2), "energy")

    np.testing.assert_allclose(found, over_mean(SCALES * [5, 1, 2**0.5, 9 * 2**0.5]), rtol=1e-5)


def test_energies_of_all_layers_that_read_a_group_are_averaged():
    ones, first = np.ones((1, 4, 1, 1)), np.array([1.0, 0, 0, 0]).reshape(1, 4, 1, 1)
    model = net("a = Conv(h, w2) b = Conv(h, w3) y = Add(a, b)", w2=ones, w3=first)

    (found,) = worth(model, "energy")

    np.testing.assert_allclose(found, np.mean([over_mean(SCALES), [4, 0, 0, 0]], axis=0), rtol=1e-5)


def test_energy_of_a_unit_is_that_of_all_its_pixels():
    """Behind a Flatten a channel is 25 features, whose norms add up."""
    model = net("f = Flatten(h) y = Gemm(f, w2)", w2=np.ones((100, 1)))
    h = np.concatenate([feed["x"] for feed in IMAGES]).transpose(0, 2, 3, 1) @ [1.0, 0.5, -1.0]
    norm = np.sqrt((h**2).mean(axis=0)).sum()

    (found,) = worth(model, "energy")

    np.testing.assert_allclose(found, over_mean(SCALES * norm), rtol=1e-5)


def test_each_group_of_a_convolution_counts():
    """Unit 0 is the channels 0 and 2, unit 1 the channels 1 and 3."""
    model = net("y = Conv<group = 2>(h, w2)", w2=np.ones((4, 2, 1, 1)))

    (found,) = worth(model, "energy")

    np.testing.assert_allclose(found, over_mean([1.0 + 2.0, 4.0 + 0.0]), rtol=1e-5)


def samples(*channels) -> list[dict[str, np.ndarray]]:
    """One batch with a pixel; a row of ``channels`` holds the channel's value in each sample."""
    return [{"x": np.array(channels, np.float32).T[:, :, None, None]}]


def diverse(reader: str, inputs: str = "float[N, 4, 1, 1] x", **weights: np.ndarray) -> Model:
    """Channels as they come in, before ``reader`` of h."""
    text = f"g ({inputs}) => (float[N, O] y) {{ h = Conv(x, w1) {reader} }}"
    w1 = np.eye(4)[:, :, None, None]
    return model_of(text, weights={name: np.asarray(a, np.float32) for name, a in {"w1": w1, **weights}.items()})


CHANNELS = ([0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("reader", ["y = Conv(h, w2)", "f = Flatten(h) y = Gemm(f, w3)", "y = ConvTranspose(h, w4)"])
def test_entropy_is_that_of_the_means_of_samples(reader):
    """One value tells nothing, two equally frequent ones log 2, and so on."""
    shapes = {"w2": (2, 4, 1, 1), "w3": (4, 2), "w4": (4, 2, 1, 1)}
    weights = {name: np.ones(shape) for name, shape in shapes.items() if name in reader}

    (found,) = worth(diverse(reader, **weights), "entropy", samples(*CHANNELS))

    np.testing.assert_allclose(found, over_mean(np.log([1, 2, 4, 8])), atol=1e-6)


def test_entropy_of_a_grouped_convolution_is_that_of_both_channels_of_a_unit():
    (found,) = worth(diverse("y = Conv<group = 2>(h, w2)", w2=np.ones((4, 2, 1, 1))), "entropy", samples(*CHANNELS))

    np.testing.assert_allclose(found, over_mean(np.log([1 * 4, 2 * 8])), atol=1e-6)


def test_entropy_of_a_product_without_an_axis_of_samples():
    """Each run is a sample."""
    model = model_of(
        "g (float[4] x) => (float[2] y) { h = MatMul(x, w1) y = MatMul(h, w2) }",
        weights={"w1": np.eye(4, dtype=np.float32), "w2": np.ones((4, 2), np.float32)},
    )
    feeds = [{"x": np.array(values, np.float32)} for values in zip(*CHANNELS, strict=True)]

    (found,) = worth(model, "entropy", feeds)

    np.testing.assert_allclose(found, over_mean(np.log([1, 2, 4, 8])), atol=1e-6)


def test_entropy_where_two_layers_sum_over_different_axes_of_one_value():
    """Channels of a convolution, and features of a product of the same value."""
    text = """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y, float[N, 4, 4, 2] z) {
        h = Conv(x, w1) y = Conv(h, w2)
        k = MatMul(x, w3) r = Relu(k) z = MatMul(r, w4)
    }"""
    shapes = {"w1": (6, 3, 1, 1), "w2": (2, 6, 1, 1), "w3": (4, 5), "w4": (5, 2)}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = model_of(text.replace("float[N, 4, 4, 2] z", "float[N, 3, 4, 2] z"), weights=weights)

    found = worth(model, "entropy", [{"x": RNG.standard_normal((4, 3, 4, 4)).astype(np.float32)}])

    assert sorted(map(len, found)) == [5, 6]


def test_layers_whose_pads_are_not_known_have_entropy_but_no_energy():
    text = """g (float[N, 4, H, W] x) => (float[N, 2, A, B] y) {
        h = Conv(x, w1) y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(h, w2)
    }"""
    w1 = np.eye(4)[:, :, None, None].astype(np.float32)
    model = model_of(text, weights={"w1": w1, "w2": np.ones((2, 4, 1, 1), np.float32)})

    assert worth(model, "energy", samples(*CHANNELS)) == []
    assert len(worth(model, "entropy", samples(*CHANNELS))) == 1


@pytest.mark.parametrize("criterion", ["energy", "entropy"])
def test_units_that_tell_nothing_are_all_alike(criterion):
    model = net("y = Conv(h, w2)", w2=np.ones((1, 4, 1, 1)))

    (found,) = worth(model, criterion, [{"x": np.zeros((2, 3, 5, 5), np.float32)}])

    np.testing.assert_array_equal(found, np.ones(4))


@pytest.mark.parametrize("criterion", ["energy", "entropy"])
def test_activations_that_are_not_finite_are_an_error_that_names_the_value(criterion):
    model = net("e = Exp(h) y = Conv(e, w2)", w2=np.ones((1, 4, 1, 1)))

    with pytest.raises(UsageError, match="'e'"):
        worth(model, criterion, [{"x": np.full((2, 3, 5, 5), 1e3, np.float32)}])


@pytest.mark.parametrize("criterion", ["energy", "entropy"])
def test_groups_that_no_layer_reads_have_no_scores(criterion):
    text = "g (float[N, 3, 5, 5] x) => (float[N, 5, 5] y) { h = Conv(x, w1) y = ReduceSum<keepdims = 0>(h, axes) }"
    model = model_of(text, weights={"w1": np.ones((4, 3, 1, 1), np.float32), "axes": np.array([1])})

    assert worth(model, criterion) == []
