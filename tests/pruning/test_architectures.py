"""Ten real architectures (../shared/arch) at half of their channels: what is left of them, and that it computes what
the original with that half made dead does.
"""

from __future__ import annotations

import gc
import importlib.util
from functools import cache
from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.analysis.channels import Channels, HeadDimensions
from graphopt.analysis.cost import Cost
from graphopt.analysis.manager import AnalysisManager
from graphopt.driver import optimize
from graphopt.ir import Editor, Model, verify
from graphopt.ir.query import static_shape
from graphopt.pruning.rewire import mask, remove
from tests.helpers import run, shared
from tests.pruning.pruned import enliven, halves, share_biases, with_dead_weights

GMACS = {
    "resnet18": 0.49,
    "resnet50": 1.07,
    "mobilenet_v2": 0.08,
    "vgg16_bn": 3.92,
    "densenet121": 0.76,
    "shufflenet": 0.05,
    "efficientnet_b0": 0.12,
    "deeplab_mnv3": 0.12,
}
"""What may be left at most, rounded to two digits; products of two computed operands are not counted."""
PARAMETERS = {"convnext_tiny": 7.4, "vit_b_16": 24.0}
"""Million parameters that may be left at most, rounded to one digit."""
FAST = ("resnet18", "mobilenet_v2", "shufflenet")


def architectures(names: Any) -> list[Any]:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@cache
def materialize() -> Any:
    path = shared("arch", "materialize.py")
    spec = importlib.util.spec_from_file_location("materialize", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.materialize


def load(name: str) -> Model:
    return io.from_proto(materialize()(shared("arch", f"{name}.onnx")))


def feeds(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = [value for value in model.graph.inputs if not value.is_initializer()]
    return {str(v.name): rng.standard_normal(static_shape(v) or ()).astype(np.float32) for v in values}


@pytest.mark.parametrize("name", architectures([*GMACS, *PARAMETERS]))
def test_half_of_every_group_leaves_no_more_than_the_bar(name):
    model = load(name)
    wanted = [static_shape(value) for value in model.graph.outputs]

    optimize(model, pipeline="prune-channels{channels=0.5,criterion=l1,align=0,check=off}")

    assert [output.shape for output in run(model, feeds(model))] == wanted
    cost = Cost.measure(model)
    if name in GMACS:
        assert round((cost.total_macs - cost.computed) / 1e9, 2) <= GMACS[name]
    else:
        assert round(cost.parameters / 1e6, 1) <= PARAMETERS[name]


def outputs(
    name: str, kind: type[Channels], how: Any, seed: int, *, normalized: bool, shared_biases: bool = False
) -> list[np.ndarray]:
    """Return the outputs with a random half of the groups cut in one way; without ``normalized`` some stay whole."""
    model = load(name)
    enliven(model)
    assert not shared_biases or share_biases(model) > 3
    edit = Editor(model)
    channels = AnalysisManager(edit).get(kind)
    chosen = halves(channels, seed)
    assert chosen
    chosen = {index: gone for index, gone in chosen.items() if normalized or not channels.groups[index].normalized}
    how(model, edit, channels, chosen)
    verify(model)
    found = run(model, feeds(model))
    del model, edit, channels
    gc.collect()
    return found


def dead(model: Model, edit: Editor, channels: Channels, removed: Any) -> None:
    with_dead_weights(model, channels, removed)


def check_close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for got, want in zip(found, wanted, strict=True):
        assert want.std() > 0
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", architectures([*GMACS, *PARAMETERS]))
def test_a_random_half_goes_without_a_trace_when_its_weights_are_zero(name):
    """Groups over which a normalization takes its statistics are left out: zeros change those. See the next test."""
    removed = outputs(name, Channels, remove, 1, normalized=False)

    check_close(removed, outputs(name, Channels, dead, 1, normalized=False))


@pytest.mark.parametrize("name", architectures([*GMACS, *PARAMETERS]))
def test_a_random_half_goes_without_a_trace_where_layers_share_their_biases(name):
    removed = outputs(name, Channels, remove, 3, normalized=False, shared_biases=True)

    check_close(removed, outputs(name, Channels, dead, 3, normalized=False, shared_biases=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("convnext_tiny", Channels), ("vit_b_16", Channels), ("vit_b_16", HeadDimensions)]
)
def test_a_random_half_goes_without_a_trace_when_normalizations_look_past_it(name, kind):
    removed = outputs(name, kind, remove, 2, normalized=True)

    check_close(removed, outputs(name, kind, mask, 2, normalized=True))
