"""Random networks: what is left after a cut is valid, runs, and computes what the masked original does."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import io
from graphopt.analysis.channels import Channels, HeadDimensions
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor
from tests.helpers import check_equivalent
from tests.pruning.pruned import cut
from tests.pruning.random_nets import SIDE, random_net


def check(rng: random.Random) -> None:
    model = io.from_proto(random_net(rng))
    seed = rng.randrange(1 << 30)
    x = np.random.default_rng(seed).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)

    pair = cut(model, seed, HeadDimensions if rng.random() < 0.3 else Channels)

    check_equivalent(pair.masked, pair.removed, {"x": x})


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.randoms(use_true_random=False))
def test_what_is_left_equals_the_masked_original(rng):
    check(rng)


def test_most_random_nets_have_something_to_prune():
    counts = []
    for number in range(30):
        model = io.from_proto(random_net(random.Random(number)))
        counts.append(len(AnalysisManager(Editor(model)).get(Channels).groups))

    assert sum(count > 0 for count in counts) >= 24


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_what_is_left_equals_the_masked_original_by_number(block):
    for number in range(block * 100, block * 100 + 100):
        check(random.Random(number))
