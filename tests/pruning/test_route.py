"""Where networks rest: on all that is read later, and only where that saves more than it takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor, Model, Node
from graphopt.pruning.route import Stop, resting_places
from tests.helpers import model_of

BYTE = 30.0
"""Multiply-accumulates that a byte written and read counts for."""


def annotated(model: Model) -> Model:
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def chain(sizes: Sequence[tuple[int, int]], channels: int = 4) -> Model:
    """1x1 convolutions, each on an input of the given number of pixels, to as many channels."""
    lines, weights, last = [], {}, "x"
    for index, (pixels, inner) in enumerate(sizes):
        lines.append(f"r{index} = Resize({last}, , , s{index}) a{index} = Conv(r{index}, v{index})")
        lines.append(f"b{index} = Conv(a{index}, w{index})")
        weights[f"s{index}"] = np.array([1, channels, 1, pixels])
        weights[f"v{index}"] = np.zeros((inner, channels, 1, 1), np.float32)
        weights[f"w{index}"] = np.zeros((channels, inner, 1, 1), np.float32)
        last = f"b{index}"
    text = (
        f"g (float[1, {channels}, 1, 8] x) => (float[1, {channels}, 1, P] y) {{ {' '.join(lines)} y = Relu({last}) }}"
    )
    return annotated(model_of(text, weights=weights))


def convolutions(model: Model) -> list[Node]:
    return [node for node in model.graph if node.op_type == "Conv"]


def cost(model: Model, targets: Sequence[Node], stops: Sequence[Stop | None]) -> float:
    """Add up what is run for each target, from the last resting place on, and what is stored and moved on for."""
    order = list(model.graph)
    values = {value.name: value for node in order for value in node.outputs} | {v.name: v for v in model.graph.inputs}

    def size(name: str) -> int:
        return int(np.prod([int(dim) for dim in values[name].shape]))

    def run(first: int, behind: int) -> float:
        found = 0.0
        for node in order[first:behind]:
            found += 4 * size(node.outputs[0].name)
            if node.op_type == "Conv":
                out, into = node.inputs[1].shape[:2]
                found += int(out) * size(node.inputs[0].name) // int(into) * int(into)
        return found

    places = [order.index(node) for node in targets]
    total, at = 0.0, places[0]
    for place, stop in zip(places, stops, strict=True):
        if stop is not None:
            total += run(at, place) + 2 * BYTE * sum(4 * size(name) for name in stop[0])
            at = place
        total += run(at, place + 1)
    return total


@pytest.mark.parametrize(
    "sizes",
    [[(8, 4)] * 3, [(64, 256), (64, 256)], [(4, 512), (64, 2), (4, 512)], [(2, 8), (99, 700), (2, 8), (50, 99)]],
)
def test_no_other_resting_places_cost_less(sizes: list[tuple[int, int]]):
    model = chain(sizes)
    targets = convolutions(model)

    found = resting_places((model,), targets)

    assert found[0] is None
    every = [((str(node.inputs[0].name),),) for node in targets]
    least = min(
        cost(model, targets, [None, *(stop if yes else None for stop, yes in zip(every[1:], rests, strict=True))])
        for rests in itertools.product((False, True), repeat=len(targets) - 1)
    )
    assert all(stop in (None, want) for stop, want in zip(found, every, strict=True))
    assert cost(model, targets, found) == pytest.approx(least)


def test_it_rests_behind_what_takes_long_and_not_on_what_is_large():
    slow, large = chain([(8, 4096), (8, 4096)]), chain([(4096, 1), (4096, 1)])

    assert any(stop is not None for stop in resting_places((slow,), convolutions(slow)))
    assert resting_places((large,), convolutions(large)) == [None] * 4


SHORTCUT = """g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y, float[1, 64, 4, 4] z) {
    {SORT}
    a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Conv<pads = [1, 1, 1, 1]>(a, w)
    c = Conv<pads = [1, 1, 1, 1]>(b, w) d = Add(c, a) z = Relu(b)
    e = Conv<pads = [1, 1, 1, 1]>(d, w) y = Conv<pads = [1, 1, 1, 1]>(e, w)
}"""
WEIGHT = {"w": np.zeros((64, 64, 3, 3), np.float32)}


def test_a_resting_place_holds_all_that_is_read_behind_it():
    model = annotated(model_of(SHORTCUT.replace("{SORT}", ""), weights=WEIGHT))
    found = resting_places((model, model), convolutions(model))

    assert found[2:] == [(("a", "b"),) * 2, (("b", "d"),) * 2, None] or found[2:4] == [
        (("a", "b"),) * 2,
        (("d", "z"),) * 2,
    ]


def test_two_networks_rest_before_the_node_that_writes_the_same_value():
    """What is to be read may differ: the second network still needs its input, for another output."""
    one = annotated(model_of(SHORTCUT.replace("{SORT}", ""), weights=WEIGHT))
    text = SHORTCUT.replace("{SORT}", "").replace("z = Relu(b)", "z = Add(b, x)")
    other = annotated(model_of(text, weights=WEIGHT))

    found = resting_places((one, other), convolutions(other))

    stop = next(stop for stop in found if stop is not None)
    assert "x" in stop[1]
    assert "x" not in stop[0]


def test_it_does_not_rest_on_what_no_file_can_hold():
    text = SHORTCUT.replace("{SORT}", "q = SplitToSequence(x)").replace("Relu(b)", "ConcatFromSequence<axis = 0>(q)")
    model = annotated(model_of(text, weights=WEIGHT))

    found = resting_places((model,), convolutions(model))

    crossing = list(model.graph).index(next(node for node in model.graph if node.outputs[0].name == "z"))
    for node, stop in zip(convolutions(model), found, strict=True):
        assert stop is None or list(model.graph).index(node) > crossing
