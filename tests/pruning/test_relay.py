"""Two networks side by side: what they give from a resting place on is what they give from the data on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.ir import Editor, Model
from graphopt.pruning.relay import Relay
from graphopt.runner import ModelRunner
from tests.helpers import clone, model_of
from tests.pruning.recovered import batches

RNG = np.random.default_rng(6)
TEXT = """g (float[N, 3, H, W] x, float[N] add) => (float[N, 10] y) {
    [a] h = Conv<pads = [1, 1, 1, 1]>(x, w1)
    [b] k = Conv<pads = [1, 1, 1, 1]>(h, w2)
    [c] m = Conv<pads = [1, 1, 1, 1]>(k, w3)
    s = Add(m, h)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    [d] z = Gemm(f, v)
    i = Unsqueeze(add, axes)
    y = Add(z, i)
}"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "v": (8, 10)}


def net(size: int = 32, text: str = TEXT) -> Model:
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    body = text.replace("H, W", f"{size}, {size}")
    model = model_of(body, weights={**weights, "axes": np.array([1])})
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def feeds(size: int = 32) -> list:
    return batches(5, 4, x=(3, size, size), add=())


def gathered(runs, name: str, model: int = 0) -> np.ndarray:
    return np.concatenate([np.array(found[model][name]) for found in runs])


def relay(folder: Path, *models: Model, limit: int | None = None) -> Relay:
    arrays = {name: np.concatenate([feed[name] for feed in feeds()]) for name in ("x", "add")}
    return Relay(ModelRunner(dataset_from_arrays(arrays, session_of(models[0]).inputs)), models, folder, 4, limit)


def test_from_every_resting_place_it_gives_the_same(tmp_path: Path) -> None:
    one, other = net(), net()
    running = relay(tmp_path, one, other)
    wanted = [gathered(running.run([("y",), ("y",)]), "y", model) for model in (0, 1)]

    for place in (("h", "add"), ("h", "k", "add"), ("f", "add"), ("f", "i")):
        running.move((place, place))
        for model in (0, 1):
            np.testing.assert_allclose(gathered(running.run([("y",), ("y",)]), "y", model), wanted[model], atol=1e-3)

    np.testing.assert_array_equal(
        gathered(running.run([("f", "i"), ()]), "i"), np.concatenate([f["add"] for f in feeds()])[:, None]
    )


def test_files_of_the_last_resting_place_alone_are_kept(tmp_path: Path) -> None:
    running = relay(tmp_path, net())

    for place in (("h", "add"), ("f", "add")):
        running.move((place,))
        assert len(list(tmp_path.iterdir())) == 5 * len(place)


def test_others_may_run_in_the_place_of_the_models(tmp_path: Path) -> None:
    model = net()
    changed = clone(model)
    AnalysisManager(Editor(changed)).get(Shapes)
    Editor(changed).set_weight(changed.graph.initializers["v"], np.zeros((8, 10), np.float32))
    running = relay(tmp_path, model)
    running.move((("f", "add"),))

    found = gathered(running.run([("y",)], models=(changed,)), "y")

    np.testing.assert_array_equal(found, np.repeat(np.concatenate([f["add"] for f in feeds()])[:, None], 10, 1))


@pytest.mark.parametrize("rest", [False, True])
def test_every_batch_is_run_for_each_setting(tmp_path: Path, rest: bool) -> None:
    """Settings are for inputs that neither the data nor a resting place has."""
    model = net()
    ready = model_of(
        """g (float[N, 8] f, float[N, 3, 32, 32] x, float[N] add, float factor) => (float[N, 8] y) {
            y = Mul(f, factor)
        }"""
    )
    AnalysisManager(Editor(ready)).get(Shapes)
    running = relay(tmp_path, model)
    running.move((("f", "add"),))
    whole = gathered(running.run([("f",)]), "f")
    settings = [{"factor": np.float32(1)}, {"factor": np.float32(3)}]
    if not rest:
        running = relay(tmp_path, model)
        ready = model_of(
            "g (float[N, 3, 32, 32] x, float[N] add, float factor) => (float[N] y) { y = Mul(add, factor) }"
        )
        whole = np.concatenate([feed["add"] for feed in feeds()])

    found = [np.array(values["y"]) for (values,) in running.run([("y",)], models=(ready,), settings=settings)]

    assert len(found) == 10
    np.testing.assert_allclose(np.concatenate(found[0::2]), whole)
    np.testing.assert_allclose(np.concatenate(found[1::2]), 3 * whole)


def test_no_more_samples_are_run_than_asked_for(tmp_path: Path) -> None:
    running = relay(tmp_path, net(), limit=6)

    assert [len(found["y"]) for (found,) in running.run([("y",)])] == [4, 2]
    running.move((("f", "add"),))
    assert [len(found["y"]) for (found,) in running.run([("y",)])] == [4, 2]
