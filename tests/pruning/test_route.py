"""Where networks that run side by side rest: behind what is dear to run again, on what files can hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor, Model, Node
from graphopt.pruning import route
from graphopt.pruning.route import resting_places
from tests.helpers import model_of

LAYERS = 8


def net(channels: int, inputs: str = "", outputs: str = "", last: str = "y = Add(h7, h0)", **more: np.ndarray) -> Model:
    """Eight convolutions of 16 x 16 pixels, the first of which is read once more at the end."""
    body = "h0 = Conv<pads = [1, 1, 1, 1]>(x, w0)"
    for index in range(1, LAYERS):
        body += f" h{index} = Conv<pads = [1, 1, 1, 1]>(h{index - 1}, w{index})"
    weights = {f"w{index}": np.ones((channels, channels if index else 3, 3, 3), np.float32) for index in range(LAYERS)}
    text = f"g (float[N, 3, 16, 16] x{inputs}) => (float[N, {channels}, 16, 16] y{outputs}) {{ {body} {last} }}"
    model = model_of(text, weights=weights | more)
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def layers(model: Model) -> list[Node]:
    return [node for node in model.graph if node.op_type == "Conv"]


def places(model: Model) -> list[tuple[str, ...] | None]:
    return resting_places(model, layers(model))


def test_what_is_cheap_is_run_again():
    assert places(net(1)) == [None] * LAYERS


def test_where_running_takes_long_every_layer_is_a_place():
    """All but the first two, whose way is short, and the last, behind which nothing is run twice."""
    assert places(net(128)) == [None, None, *(("h0", f"h{index}") for index in range(1, 6)), None]


def test_in_between_there_are_some():
    assert 0 < sum(found is not None for found in places(net(16))) < 5


@pytest.mark.parametrize("channels", [1, 8, 16, 24, 32, 64])
def test_no_other_choice_of_places_costs_less(channels):
    model = net(channels)
    targets = layers(model)
    place = {node: index for index, node in enumerate(model.graph)}
    run = route._running_costs(model, list(model.graph))
    cuts = route._cuts(model, [node.outputs[0].name for node in targets])
    stops = [place[node] for node in targets]

    def cost(rests: tuple[bool, ...]) -> float:
        total, start = 0.0, 0
        for index, stop in enumerate(stops):
            if rests[index]:
                total += 2 * route._BYTE * cuts[index][1] + run[stop] - run[start]
                start = stop
            total += run[stop + 1] - run[start]
        return total

    taken = tuple(found is not None for found in places(model))
    choices = [(False, *rests) for rests in itertools.product((False, True), repeat=LAYERS - 1)]

    assert cost(taken) == pytest.approx(min(map(cost, choices)))


def test_a_layer_that_the_network_does_not_have_is_no_place():
    one, other = net(64), net(64)
    node = layers(one)[3]
    node.outputs[0].name = "another"

    assert resting_places(one, layers(other))[3] is None


@pytest.mark.parametrize(
    ("kind", "output", "last"),
    [
        ("string[M]", "string[M]", "u = Identity(t)"),
        ("seq(float[M])", "int64", "u = SequenceLength(t)"),
        ("bfloat16[M]", "bfloat16[M]", "u = Identity(t)"),
    ],
)
def test_nobody_rests_on_what_files_cannot_hold(kind, output, last):
    model = net(64, f", {kind} t", f", {output} u", f"y = Add(h7, h0) {last}")

    assert places(model) == [None] * LAYERS


def test_what_a_branch_reads_is_kept_for_it():
    last = """y = If(yes) <then_branch = t () => (float[N, 64, 16, 16] o) { o = Add(h7, h0) },
                           else_branch = e () => (float[N, 64, 16, 16] p) { p = Add(h7, h1) }>"""

    assert places(net(64, last=last, yes=np.array(True)))[3] == ("h0", "h1", "h2")


def test_nothing_to_refit_needs_no_place():
    assert resting_places(net(8), []) == []
