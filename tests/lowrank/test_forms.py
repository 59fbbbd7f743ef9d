"""Every form of every kind of layer: what it gives, what it costs, and what is said of both."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.cost import Cost
from graphopt.analysis.statistics import Gram
from graphopt.lowrank.costs import forms_of, full_ranks
from graphopt.lowrank.fitting import damping_of
from graphopt.lowrank.forms import MOST, Splitter
from tests.helpers import run
from tests.lowrank.split_layers import CASES, Case, apply, data, error, gram, model, outputs, site, weights_of

EVERY = [(name, form) for name, case in CASES.items() for form in forms_of(site(model(case)))]
SPATIAL = Case("Conv<pads=[1,1,1,1]>", (3, 12, 10, 9), (16, 12, 3, 3))


def splitter(case: Case, **options) -> Splitter:
    return Splitter(site(model(case)), gram(case, data(case)), **options)


def test_the_cases_have_every_form():
    assert {form for _, form in EVERY} == {"matrix", "channel", "spatial", "tucker"}


@pytest.mark.parametrize(("name", "form"), EVERY)
@pytest.mark.parametrize("whitened", [True, False])
def test_at_full_rank_a_split_layer_gives_what_it_gave(name, form, whitened):
    case = CASES[name]
    found = splitter(case) if whitened else Splitter(site(model(case)), None)
    split = found.at(form, full_ranks(site(model(case)), form))
    want, got = outputs(case, data(case), split)
    assert np.abs(want - got).max() < 1e-5 * np.abs(want).max()
    assert split.candidate.error < 1e-10


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_the_error_is_that_of_the_factors(name, form):
    """With any damping: this is about the factors that there are, not about the best ones."""
    case = CASES[name]
    for divisor, damping in ((4, None), (2, None), (2, 0.5)):
        ranks = tuple(max(rank // divisor, 1) for rank in full_ranks(site(model(case)), form))
        split = splitter(case, damping=damping).at(form, ranks)
        found = error(case, data(case), split)
        assert split.candidate.error == pytest.approx(found, rel=0.02, abs=1e-9)
        assert 1e-6 < found < 1


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_the_data_does_better_than_the_weights_alone(name, form):
    case = CASES[name]
    values = data(case)
    ranks = tuple(max(rank // 3, 1) for rank in full_ranks(site(model(case)), form))
    splits = splitter(case, damping=1e-9).at(form, ranks), Splitter(site(model(case)), None).at(form, ranks)
    whitened, plain = (np.square(np.subtract(*outputs(case, values, split))).sum() for split in splits)
    assert whitened < 0.98 * plain


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), outputs=st.integers(2, 9), width=st.integers(2, 9), rank=st.integers(1, 9))
def test_whitening_by_the_identity_is_plain_svd(seed, outputs, width, rank):
    rank = min(rank, outputs, width)
    weights = np.random.default_rng(seed).normal(size=(width, outputs)).astype(np.float32)
    case = Case("MatMul", (4, 1, width), (width, outputs), bias=False)
    taken = site(model(case))
    object.__setattr__(taken, "weights", weights.T.astype(np.float64))
    left, values, right = np.linalg.svd(weights.astype(np.float64))
    wanted = (left[:, :rank] * values[:rank]) @ right[:rank]
    identity = Gram(np.eye(width)[None] * 1000, np.zeros((1, width)), 1000)
    for grams in (identity, None):
        split = Splitter(taken, grams).at("matrix", (rank,))
        found = split.weights[0] @ split.weights[1]
        np.testing.assert_allclose(np.linalg.norm(weights - found), np.linalg.norm(weights - wanted), atol=1e-9)
        left_out = np.square(values[rank:]).sum() / np.square(values).sum()
        assert split.candidate.error == pytest.approx(left_out, rel=1e-6, abs=1e-12)
        if rank == len(values) or values[rank - 1] > 1.05 * values[rank]:
            np.testing.assert_allclose(found, wanted, atol=1e-6)


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), rank=st.integers(1, 6))
def test_a_spatial_split_by_the_identity_is_the_svd_of_columns_and_rows(seed, rank):
    taken = site(model(Case("Conv", (1, 4, 5, 5), (5, 4, 3, 2))))
    weights = np.random.default_rng(seed).normal(size=(5, 4, 3, 2))
    object.__setattr__(taken, "weights", weights)
    values = np.linalg.svd(weights.transpose(1, 2, 0, 3).reshape(12, 10), compute_uv=False)
    left_out = np.square(values[rank:]).sum() / np.square(values).sum()
    identity = Gram(np.eye(24)[None] * 100000, np.zeros((1, 24)), 100000)
    for grams in (identity, None):
        assert Splitter(taken, grams).at("spatial", (rank,)).candidate.error == pytest.approx(left_out, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("align", [1, 4])
def test_candidates_save_and_are_what_they_say(name, align):
    case = CASES[name]
    taken = site(model(case))
    found = splitter(case)
    candidates = found.candidates(align)
    assert candidates
    for form in forms_of(taken):
        own = [candidate for candidate in candidates if candidate.form == form]
        assert len(own) <= MOST
        assert [candidate.macs for candidate in own] == sorted({candidate.macs for candidate in own})
        assert all(before.error > after.error for before, after in pairwise(own))
    for candidate in candidates:
        assert candidate.macs < taken.macs
        channels = candidate.ranks[0] * taken.groups, *candidate.ranks[1:]
        assert all(rank % align == 0 for rank in channels)
        assert 0 <= candidate.error < 1
    for candidate in candidates[:: max(len(candidates) // 4, 1)]:
        assert found.at(candidate.form, candidate.ranks).candidate == candidate


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_costs_are_those_of_the_model_that_is_written(name, form):
    before, after = model(CASES[name]), model(CASES[name])
    cost = Cost.measure(before)
    ranks = tuple(max(rank // 3, 1) for rank in full_ranks(site(before), form))
    split = Splitter(site(before), None).at(form, ranks)
    apply(after, split)
    assert cost.total_macs == site(before).macs
    assert Cost.measure(after).total_macs == split.candidate.macs
    assert Cost.measure(after).parameters - cost.parameters == split.candidate.parameters - site(before).parameters


def test_a_first_spatial_factor_is_improved_under_the_whole_matrix(monkeypatch):
    improved = splitter(SPATIAL, damping=1e-6).at("spatial", (6,)).candidate.error
    monkeypatch.setattr("graphopt.lowrank.fitting._ROUNDS", {"spatial": 0, "tucker": 0})
    start = splitter(SPATIAL, damping=1e-6).at("spatial", (6,)).candidate.error
    assert improved < 0.95 * start


def test_a_first_tucker_factor_is_improved_under_the_whole_matrix(monkeypatch):
    improved = splitter(SPATIAL, damping=1e-6).at("tucker", (4, 6)).candidate.error
    monkeypatch.setattr("graphopt.lowrank.fitting._ROUNDS", {"spatial": 0, "tucker": 0})
    start = splitter(SPATIAL, damping=1e-6).at("tucker", (4, 6)).candidate.error
    assert improved < 0.99 * start


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
def test_few_inputs_and_dead_ones(form):
    """Two patches for 108 weights, and channels that are always zero: the matrix is singular."""
    taken = site(model(SPATIAL))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1, 108, 5)) * np.repeat(np.arange(12) > 3, 9)[:, None] * 1e4
    found = Splitter(taken, Gram(rows @ rows.transpose(0, 2, 1), rows.sum(axis=2), 5))
    assert all(math.isfinite(candidate.error) for candidate in found.candidates())
    ranks = tuple(max(rank // 2, 1) for rank in full_ranks(taken, form))
    few = found.at(form, ranks)
    # Centred, five patches span four directions: any half of the ranks can pass them on.
    assert few.candidate.error < 0.05
    assert all(np.isfinite(weight).all() for weight in few.weights)
    assert max(np.abs(weight).max() for weight in few.weights) < 100 * np.abs(taken.weights).max() + 1


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
def test_an_input_that_never_changes_leaves_plain_svd(form):
    taken = site(model(SPATIAL))
    still = Gram(np.zeros((1, 108, 108)), np.zeros((1, 108)), 50)
    ranks = tuple(max(rank // 2, 1) for rank in full_ranks(taken, form))
    found, plain = Splitter(taken, still).at(form, ranks), Splitter(taken, None).at(form, ranks)
    assert found.candidate.error == 0
    lost = []
    for split in (found, plain):
        after = model(SPATIAL)
        apply(after, split)
        lost.append(Splitter(taken, None)._fit(form, ranks[0]).product(split.weights) - taken.weights)
    assert np.linalg.norm(lost[0]) == pytest.approx(np.linalg.norm(lost[1]), rel=0.02)


def test_a_badly_conditioned_matrix():
    taken = site(model(SPATIAL))
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(108, 108)))[0]
    square = (turn * np.geomspace(1e12, 1e-12, 108)) @ turn.T
    found = Splitter(taken, Gram(square[None] * 1e6, np.zeros((1, 108)), 10**6), damping=0.0 + 1e-6)
    for form in forms_of(taken):
        assert found.at(form, full_ranks(taken, form)).candidate.error < 1e-9
        some = found.at(form, tuple(max(rank // 2, 1) for rank in full_ranks(taken, form)))
        assert 0 <= some.candidate.error < 0.1


def test_ranks_that_do_not_exist():
    found = splitter(SPATIAL)
    for form, ranks in (("channel", (0,)), ("channel", (17,)), ("tucker", (4,)), ("spatial", (1, 2))):
        with pytest.raises(ValueError, match="are not within"):
            found.at(form, ranks)
    with pytest.raises(ValueError, match="has no form 'matrix'"):
        found.at("matrix", (1,))


def test_only_the_forms_asked_for():
    assert {candidate.form for candidate in splitter(SPATIAL, forms=("spatial",)).candidates()} == {"spatial"}


def test_the_same_twice():
    first, second = splitter(SPATIAL), splitter(SPATIAL)
    assert first.candidates(2) == second.candidates(2)
    # Asked for alone, a rank has the factors that it has among all.
    alone = splitter(SPATIAL).at("spatial", (8,))
    for left, right in zip(alone.weights, first.at("spatial", (8,)).weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_few_inputs_are_damped_more():
    assert damping_of(4608, 3000) > 0.5
    assert 0.05 < damping_of(2304, 4320) < 0.2
    assert damping_of(384, 20000) < 1e-3
    assert damping_of(1000, 1) == 1.0


def test_damping_helps_on_other_data():
    """A layer of 108 weights an output and a hundred patches."""
    case = SPATIAL._replace(data=(1, 12, 10, 9))
    taken, values = site(model(case)), data(SPATIAL)
    few = gram(case, values[:1])
    assert few.count < 108
    splits = [Splitter(taken, few, damping=damping).at("tucker", (6, 8)) for damping in (1e-9, None)]
    exact, damped = (error(case, values[1:2], split) for split in splits)
    assert damped < 0.9 * exact


def test_weights_whose_scale_is_extreme():
    for factor in (1e-20, 1e15):
        taken = site(model(SPATIAL))
        object.__setattr__(taken, "weights", weights_of((16, 12, 3, 3), np.random.default_rng(5)) * factor)
        plain, scaled = splitter(SPATIAL), Splitter(taken, gram(SPATIAL, data(SPATIAL)))
        for form, ranks in (("channel", (6,)), ("spatial", (6,)), ("tucker", (4, 6))):
            assert scaled.at(form, ranks).candidate.error == pytest.approx(
                plain.at(form, ranks).candidate.error, rel=0.01
            )


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
def test_no_channel_between_the_factors_stands_out(form):
    """Principal parts fall off by orders of magnitude; their sums and differences are all of a size."""
    case = SPATIAL
    after = model(case)
    thin = apply(after, splitter(case).at(form, tuple(max(rank // 2, 1) for rank in full_ranks(site(after), form))))
    for node in thin[:-1]:
        after.graph.outputs.append(node.outputs[0])
    for between in run(after, {"x": data(case)})[1:]:
        spread = between.std(axis=(0, 2, 3))
        assert spread.max() < 5 * spread.min()
