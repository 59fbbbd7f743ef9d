"""prune-channels times what it did: what it then undoes, what it says, and when it does not time at all."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.driver import optimize
from graphopt.errors import ModelError
from graphopt.ir import Model, static_shape
from graphopt.runner import ModelRunner
from graphopt.targets import find
from graphopt.targets.host import host_target
from tests.helpers import codes, model_of
from tests.pruning.pruned import value_of

CHAIN = """agraph (float[1, 3, {0}, {0}] x) => (float[1, 4, {0}, {0}] y) {{
    [first] h = Conv(x, w1)
    r = Relu(h)
    [second] k = Conv(r, w2)
    [third] y = Conv(k, w3)
}}"""
LARGE, SMALL = 160, 16


def chain(size: int = LARGE) -> Model:
    rng = np.random.default_rng(1)
    shapes = {"w1": (16, 3, 1, 1), "w2": (16, 16, 1, 1), "w3": (4, 16, 1, 1)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return model_of(CHAIN.format(size), weights=weights)


def widths(model: Model) -> list[int]:
    shapes = [static_shape(value_of(model, name)) for name in ("w1", "w2")]
    return [shape[0] for shape in shapes if shape is not None]


def say(monkeypatch: pytest.MonkeyPatch, *ratios: float, seconds: dict[str, float] | None = None) -> None:
    """Make the runner say these ratios, the last again and again, and that each node takes 1 s unless ``seconds``
    has its share of the time once its weights have shrunk.
    """
    left = list(ratios)

    def node_seconds(_: ModelRunner, model: Model) -> dict[str, float]:
        names = dict(
            zip(("first", "second", "third"), (str(n.name) for n in model.graph if n.op_type == "Conv"), strict=True)
        )
        cut = widths(model) != [16, 16]
        return {name: (seconds or {}).get(layer, 1.0) if cut else 1.0 for layer, name in names.items()}

    monkeypatch.setattr(ModelRunner, "latency_ratio", lambda *_, **__: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(ModelRunner, "node_seconds", node_seconds)


def test_a_network_that_would_be_slower_stays_and_says_so(monkeypatch):
    say(monkeypatch, 1.25)
    model = chain()

    result = optimize(model, pipeline="prune-channels{channels=0.5}")

    assert widths(model) == [16, 16]
    (warning,) = [found for found in result.diagnostics if found.code == "PRUNE004"]
    assert "1.25 of its time" in warning.message
    assert "check=off" in str(warning.hint)
    assert not result.run.ctx.rewrites


def test_a_cut_that_does_not_pay_is_put_back_and_named(monkeypatch):
    say(monkeypatch, 1.1, 1.1, 1.1, 0.9, seconds={"first": 2.0, "second": 1.0, "third": 0.5})
    model = chain()

    result = optimize(model, pipeline="prune-channels{channels=0.5}")

    assert widths(model) == [16, 8]
    (remark,) = [found for found in result.diagnostics if found.code == "PRUNE005"]
    assert remark.node == "first"
    assert "2000.000 ms, cut 3000.000" in remark.message
    assert result.report()["notes"]["prune-channels"]["latency"] == [0.9]


def test_under_a_budget_others_lose_what_a_group_gets_back(monkeypatch):
    say(monkeypatch, 0.9, seconds={"first": 2.0, "second": 1.0, "third": 0.5})
    whole, layers = chain(), chain()

    optimize(whole, pipeline="prune-channels{macs=0.6}")
    optimize(layers, pipeline="prune-channels{macs=0.6,check=layers}")

    assert widths(whole)[0] < 16
    assert widths(layers)[0] == 16
    assert widths(layers)[1] < widths(whole)[1]


@pytest.mark.parametrize(("size", "options"), [(LARGE, ",check=off"), (SMALL, "")])
def test_nothing_is_timed_on_demand_and_where_it_would_tell_nothing(monkeypatch, size, options):
    say(monkeypatch, 1.25)
    model = chain(size)

    optimize(model, pipeline=f"prune-channels{{channels=0.5{options}}}")

    assert widths(model) == [8, 8]


def test_nothing_is_timed_for_another_machine(monkeypatch):
    say(monkeypatch, 1.25)
    other = next(name for name in ("cpu-x64", "cpu-arm64") if name != host_target())
    model = chain()

    result = optimize(model, pipeline="prune-channels{channels=0.5}", target=find(other))

    assert widths(model) == [8, 8]
    assert "PRUNE007" in codes(result)


def test_a_network_that_cannot_be_run_here_is_pruned_all_the_same(monkeypatch):
    def fail(*_: object, **__: object) -> float:
        raise ModelError("no kernel for it")

    monkeypatch.setattr(ModelRunner, "latency_ratio", fail)
    model = chain()

    result = optimize(model, pipeline="prune-channels{channels=0.5}")

    assert widths(model) == [8, 8]
    (remark,) = [found for found in result.diagnostics if found.code == "PRUNE007"]
    assert "no kernel for it" in remark.message


def test_a_budget_of_latency_is_met_by_the_time_itself(monkeypatch):
    """What the layers' own seconds promise is not what the network then takes."""
    say(monkeypatch, 0.9, 0.9, 0.9, 0.7)
    first, corrected = chain(), chain()

    optimize(first, pipeline="prune-channels{latency=0.7,check=off}")
    result = optimize(corrected, pipeline="prune-channels{latency=0.7}")

    assert sum(widths(corrected)) < sum(widths(first))
    assert "PRUNE006" not in codes(result)


def test_a_budget_of_latency_that_is_missed_says_so(monkeypatch):
    say(monkeypatch, 0.9)
    model = chain()

    result = optimize(model, pipeline="prune-channels{latency=0.7}")

    (warning,) = [found for found in result.diagnostics if found.code == "PRUNE006"]
    assert "takes 0.90 of its time, 0.7 was asked for" in warning.message
    assert sum(widths(model)) < 32
