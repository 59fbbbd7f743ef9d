"""Removal in several steps: positions are told of the original network, and what is refit is refit to that."""

from __future__ import annotations

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.channels import Channels
from graphopt.analysis.manager import AnalysisManager
from graphopt.driver import optimize
from graphopt.ir import Editor, Model, verify
from graphopt.pruning.prune import History
from graphopt.runner import ModelRunner
from tests.helpers import clone, model_of
from tests.pruning.pruned import value_of
from tests.pruning.recovered import batches, dataset, error

RNG = np.random.default_rng(7)
TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [first] h = Conv(x, w1)
    r = Relu(h)
    [second] k = Conv(r, w2)
    s = Relu(k)
    [third] y = Conv(s, w3)
}"""
FEEDS = batches(x=(3, 8, 8))
UNSEEN = batches(1, 64, seed=99, x=(3, 8, 8))[0]


def net() -> Model:
    """Of both hidden layers, the last four channels are twice the first four."""
    w1, w2 = RNG.standard_normal((4, 3, 1, 1)), RNG.standard_normal((4, 8, 1, 1))
    weights = {"w1": np.concatenate([w1, 2 * w1]), "w2": np.concatenate([w2, 2 * w2])}
    weights["w3"] = RNG.standard_normal((4, 8, 1, 1))
    return model_of(TEXT, weights={name: array.astype(np.float32) for name, array in weights.items()})


def step(model: Model, history: History, gone: dict[str, list[int]]) -> None:
    """Take out units, counted among those that are left."""
    edit = Editor(model)
    channels = AnalysisManager(edit).get(Channels)
    masks = {}
    for name, units in gone.items():
        (group,) = (group for group in channels.groups if name in {use.node.name for use in group.writers})
        masks[group.index] = np.isin(np.arange(group.units), units)
    history.remove(model, edit, channels, masks)
    AnalysisManager(edit).get(Shapes)


def test_what_is_kept_is_told_by_its_place_in_the_original():
    model = net()
    history = History.of(model)

    step(model, history, {"first": [1, 3]})
    step(model, history, {"first": [0, 5], "second": [2]})

    for name, axis in (("w1", 0), ("h", 1), ("r", 1), ("w2", 1)):
        assert list(history.kept[name][axis]) == [2, 4, 5, 6]
    assert list(history.kept["w2"][0]) == list(history.kept["k"][1]) == [0, 1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(
        value_of(model, "w1").const_value.numpy(), value_of(history.original, "w1").const_value.numpy()[[2, 4, 5, 6]]
    )


def test_the_original_stays_what_it_was():
    model = net()
    before, history = clone(model), History.of(model)

    step(model, history, {"first": [0, 1, 2]})
    history.recover(model, Editor(model), ModelRunner(dataset(before, FEEDS)), lambda node, why: None)

    assert error(before, history.original, UNSEEN) == 0


def test_in_two_steps_all_is_made_up_for_as_in_one():
    model = net()
    before, history = clone(model), History.of(model)
    runner = ModelRunner(dataset(before, FEEDS))

    for gone in ({"first": [0, 1]}, {"first": [0, 1], "second": [4, 5, 6, 7]}):
        step(model, history, gone)
        history.recover(model, Editor(model), runner, lambda node, why: None)
        assert error(before, model, UNSEEN) < 1e-5

    verify(model)
    assert value_of(model, "w2").shape == (4, 4, 1, 1)


def test_steps_of_the_pass_end_at_the_budget_and_at_the_right_outputs():
    model = net()
    before = clone(model)

    result = optimize(model, pipeline="prune-channels{channels=0.5, align=0, steps=3}", data=dataset(before, FEEDS))

    assert [value_of(model, name).shape for name in ("w1", "w2", "w3")] == [(4, 3, 1, 1), (4, 4, 1, 1), (4, 4, 1, 1)]
    assert len(result.report()["notes"]["prune-channels"]["groups"]) == 3
    assert error(before, model, UNSEEN) < 1e-3
