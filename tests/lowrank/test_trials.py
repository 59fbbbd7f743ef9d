"""Choices measured as a whole: none loses nothing, and layers split together lose what no sum of theirs tells."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import io
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.lowrank.forms import Candidate, Splitter
from graphopt.lowrank.sites import Site, site_of
from graphopt.lowrank.trials import measured
from graphopt.runner import ModelRunner
from graphopt.runtime import Session
from tests.helpers import model_of

RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((8, 16)).astype(np.float32)} for _ in range(8)]
WEIGHTS = {name: RNG.standard_normal((16, 16)).astype(np.float32) for name in ("v", "w")}
BODY = "agraph (float[N, 16] x) => (float[N, 16] y) { h = MatMul(x, v) y = MatMul(h, w) }"


def test_a_choice_is_measured_with_all_its_splits() -> None:
    model = model_of(BODY, weights=WEIGHTS)
    data = dataset_from_feeds(FEEDS, Session(io.to_proto(model).SerializeToString()).inputs)
    first, second = (site_of(node) for node in model.graph)
    assert isinstance(first, Site)
    assert isinstance(second, Site)
    narrow, wide = ({site: at(site, rank) for site in (first, second)} for rank in (4, 12))
    choices = [{}, {first: wide[first]}, {first: narrow[first]}, {second: narrow[second]}, narrow]
    none, little, *alone, both = measured(model, choices, ModelRunner(data))
    assert none == 0
    assert 0 < little < alone[0]
    assert max(alone) < both
    assert both != pytest.approx(sum(alone), rel=0.05)


def at(site: Site, rank: int) -> Candidate:
    return Splitter(site, None).at("matrix", (rank,)).candidate
