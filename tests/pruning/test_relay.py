"""What a network gives from a resting place on is what it gives from the data on."""

from __future__ import annotations

from contextlib import ExitStack, closing

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.ir import Editor, Model
from graphopt.pruning.relay import Relay
from graphopt.pruning.stored import Stored
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


def gathered(runs, name: str) -> np.ndarray:
    return np.concatenate([np.array(found[name]) for _, found in runs])


@pytest.fixture
def relay():
    with ExitStack() as open_ones:

        def make(model: Model, limit: int | None = None) -> Relay:
            arrays = {name: np.concatenate([feed[name] for feed in feeds()]) for name in ("x", "add")}
            runner = ModelRunner(dataset_from_arrays(arrays, session_of(model).inputs))
            return open_ones.enter_context(Relay(runner, model, 4, limit))

        yield make


def test_from_every_resting_place_it_gives_the_same(relay) -> None:
    running = relay(net())
    wanted = gathered(running.run(["y"]), "y")

    for place in (("h", "add"), ("h", "k", "add"), ("f", "add"), ("f", "i")):
        running.move(place)
        np.testing.assert_allclose(gathered(running.run(["y"]), "y"), wanted, atol=1e-3)

    np.testing.assert_array_equal(
        gathered(running.run(["i"]), "i"), np.concatenate([f["add"] for f in feeds()])[:, None]
    )


def test_files_of_places_left_behind_are_used_again(relay, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    init = Stored.__init__
    monkeypatch.setattr(Stored, "__init__", lambda self: (made.append(self), init(self))[1])
    running = relay(net())

    for place in (("h", "add"), ("h", "k", "add"), ("f", "add"), ("f", "i")):
        running.move(place)

    assert len(made) == 4, "that of add stays, and i gets that of h or k"


def test_what_a_run_gave_ahead_is_not_run_again(relay) -> None:
    running = relay(net())
    running.move(("h", "add"))
    wanted = gathered(running.run(["f", "i"]), "f")

    for _ in running.run(["k"], only=lambda number: number % 2 == 0, ahead=("f", "add")):
        pass
    again = [number for number, _ in running.run(["f"], only=lambda number: number % 2 == 0)]
    traced = counted(running)
    running.move(("f", "add"))

    assert again == [0, 2, 4]
    assert traced == [1, 3]
    np.testing.assert_array_equal(gathered(running.run(["f"]), "f"), wanted)


def counted(running: Relay) -> list[int]:
    """Return a list to which the numbers of batches are added that are run from now on."""
    numbers: list[int] = []
    run = running.run

    def noted(*args, **kwargs):
        for number, found in run(*args, **kwargs):
            numbers.append(number)
            yield number, found

    running.run = noted
    return numbers


def test_only_what_is_needed_is_read(relay, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    read = Stored.read
    monkeypatch.setattr(
        Stored, "read", lambda self, number: (found := read(self, number), shapes.append(found.shape))[0]
    )
    running = relay(net())
    running.move(("h", "k", "add"))

    list(running.run(["m"], only=lambda number: number == 0))

    assert shapes == [(4, 8, 32, 32)], "k alone"


@pytest.mark.parametrize("array", [np.ones((), bool), np.zeros((0, 3)), np.arange(6, dtype=np.int64).reshape(2, 3).T])
def test_arrays_come_back_as_they_were_stored(array: np.ndarray) -> None:
    with closing(Stored()) as stored:
        stored.write(3, np.ones(5))
        stored.write(7, array)
        np.testing.assert_array_equal(stored.read(7), array, strict=True)


def test_another_may_run_in_the_place_of_the_model(relay) -> None:
    model = net()
    changed = clone(model)
    AnalysisManager(Editor(changed)).get(Shapes)
    Editor(changed).set_weight(changed.graph.initializers["v"], np.zeros((8, 10), np.float32))
    running = relay(model)
    running.move(("f", "add"))

    found = gathered(running.run(["y"], model=changed), "y")

    np.testing.assert_array_equal(found, np.repeat(np.concatenate([f["add"] for f in feeds()])[:, None], 10, 1))


@pytest.mark.parametrize("rest", [False, True])
def test_every_batch_is_run_for_each_setting(relay, rest: bool) -> None:
    """Settings are for inputs that neither the data nor a resting place has."""
    model = net()
    ready = model_of(
        """g (float[N, 8] f, float[N, 3, 32, 32] x, float[N] add, float factor) => (float[N, 8] y) {
            y = Mul(f, factor)
        }"""
    )
    AnalysisManager(Editor(ready)).get(Shapes)
    running = relay(model)
    running.move(("f", "add"))
    whole = gathered(running.run(["f"]), "f")
    settings = [{"factor": np.float32(1)}, {"factor": np.float32(3)}]
    if not rest:
        running = relay(model)
        ready = model_of(
            "g (float[N, 3, 32, 32] x, float[N] add, float factor) => (float[N] y) { y = Mul(add, factor) }"
        )
        whole = np.concatenate([feed["add"] for feed in feeds()])

    found = [np.array(values["y"]) for _, values in running.run(["y"], model=ready, settings=settings)]

    assert len(found) == 10
    np.testing.assert_allclose(np.concatenate(found[0::2]), whole)
    np.testing.assert_allclose(np.concatenate(found[1::2]), 3 * whole)


def test_no_more_samples_are_run_than_asked_for(relay) -> None:
    running = relay(net(), limit=6)

    assert [len(found["y"]) for _, found in running.run(["y"])] == [4, 2]
    running.move(("f", "add"))
    assert [len(found["y"]) for _, found in running.run(["y"])] == [4, 2]
