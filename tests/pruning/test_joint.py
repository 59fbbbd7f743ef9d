"""Layers fit together: gradients against finite differences, and what is gained where one layer alone cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest

from graphopt.analysis.patches import folded, positions, unfolded
from graphopt.analysis.statistics import Unfold
from graphopt.pruning import joint
from graphopt.pruning.chain import Stage, chain_of, forward, gradients
from graphopt.pruning.jobs import find_jobs
from graphopt.pruning.joint import Aim, Seen, tune
from graphopt.pruning.stored import Stored
from tests.helpers import model_of, run
from tests.pruning.recovered import batches, error, recovered

RNG = np.random.default_rng(5)
READS = {
    "padded": Unfold((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "strided, a row too many": Unfold((3, 2), (2, 3), (1, 0, 0, 1), (1, 1)),
    "dilated": Unfold((3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "one axis": Unfold((3,), (2,), (0, 1), (1,)),
}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("unfold", READS.values(), ids=READS)
def test_folding_is_the_transpose_of_unfolding(unfold: Unfold) -> None:
    values = normal(2, 3, *(9, 8)[: len(unfold.kernel)])
    patches = unfolded(values, unfold)
    assert patches.shape[-1] == 2 * np.prod(positions(values.shape[2:], unfold))
    other = normal(*patches.shape)
    assert np.vdot(patches, other) == pytest.approx(
        float(np.vdot(values, folded(other, values.shape, unfold))), rel=1e-4
    )


IMAGES = """g (float[N, 3, 8, 8] x, float[N, 5, 4, 4] s) => (float[N, 5, 4, 4] y) {
    [first] h = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Clip(h, zero, six)
    [second] z = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(r, w2, b2)
    y = Add(z, s)
}"""
TOKENS = """g (float[N, 4, 6] x) => (float[N, 4, 5] y) {
    [first] m = MatMul(x, w1)
    h = Add(m, b1)
    r = Relu(h)
    [second] y = MatMul(r, w2)
}"""


def image_model() -> object:
    limits = {"zero": np.float32(0), "six": np.float32(6)}
    weights = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(5, 8, 3, 3), "b2": normal(5)}
    return model_of(IMAGES, weights=weights | limits)


def token_model() -> object:
    return model_of(TOKENS, weights={"w1": normal(6, 8), "b1": normal(8), "w2": normal(8, 5)})


def stages_of(model: object, lost: str = "r") -> list[Stage]:
    job = find_jobs(model, frozenset({"h", lost}))[-1]
    return [Stage.of(link) for link in chain_of(job, {"h", lost})]


@pytest.mark.parametrize(("build", "shape"), [(image_model, (2, 3, 8, 8)), (token_model, (2, 4, 6))])
def test_a_chain_gives_what_the_runtime_gives(build: object, shape: tuple[int, ...]) -> None:
    model, feeds = build(), {"x": normal(*shape)}
    if len(shape) == 4:
        feeds["s"] = np.zeros((2, 5, 4, 4), np.float32)
    stages = stages_of(model)
    assert [stage.link.node.name for stage in stages] == ["first", "second"]
    np.testing.assert_allclose(forward(stages, feeds["x"]).out, run(model, feeds)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "shape"), [(image_model, (2, 3, 8, 8)), (token_model, (2, 4, 6))])
def test_gradients_are_those_of_finite_differences(build: object, shape: tuple[int, ...]) -> None:
    stages, data = stages_of(build()), normal(*shape)
    slope = normal(*forward(stages, data).out.shape)
    found = gradients(stages, forward(stages, data), slope)
    for stage, pair in zip(stages, found, strict=True):
        for tensor, gradient in zip((stage.weights, stage.bias), pair, strict=True):
            assert gradient.shape == tensor.shape
            place = tuple(int(RNG.integers(size)) for size in tensor.shape)
            was, both = tensor[place], []
            for step in (1e-2, -1e-2):
                tensor[place] = was + step
                both.append(float(np.vdot(forward(stages, data).out.astype(np.float64), slope)))
            tensor[place] = was
            # Some places leave or enter the bounds on the way.
            assert gradient[place] == pytest.approx((both[0] - both[1]) / 2e-2, rel=0.1, abs=0.2)


def test_a_chain_ends_where_others_read_a_value_or_nothing_was_lost() -> None:
    two = model_of(
        TOKENS.replace("=> (float[N, 4, 5] y)", "=> (float[N, 4, 5] y, float[N, 4, 8] r)"),
        weights={"w1": normal(6, 8), "b1": normal(8), "w2": normal(8, 5)},
    )
    assert len(stages_of(two)) == 1
    whole = find_jobs(token_model(), frozenset(), starts=frozenset({"y"}))[-1]
    assert len(chain_of(whole, set())) == 1


@pytest.fixture
def seen_of() -> Iterator[Callable[..., Seen]]:
    with ExitStack() as open_files:

        def make(wanted: list[Stage], count: int = 12) -> Seen:
            """What a chain reads and what another gives for it; every third batch is held out."""
            of_data, of_added, of_aims = (open_files.enter_context(closing(Stored())) for _ in range(3))
            for number in range(count):
                data = normal(16, 4, 6)
                out = forward(wanted, data).out
                for part, array in ((of_data, data), (of_added, np.zeros_like(out)), (of_aims, out)):
                    part.write(number, array)
            return Seen((of_data, of_added, of_aims), [number % 3 == 2 for number in range(count)])

        yield make


AIM = Aim(np.ones(5, np.float32), np.zeros(5, np.float32), (-np.inf, np.inf), -1)


def test_layers_that_are_a_little_off_are_mended_together(seen_of: Callable[..., Seen]) -> None:
    model = token_model()
    stages, right = stages_of(model), stages_of(model)
    for stage in stages:
        stage.weights[...] *= 1 + 0.1 * normal(*stage.weights.shape)
    seen = seen_of(right)
    left = tune(stages, AIM, seen)
    assert left < 0.3
    errors = [float(np.square(forward(stages, data).out - wanted).sum()) for data, _, wanted in seen.apart()]
    powers = [float(np.square(wanted).sum()) for _, _, wanted in seen.apart()]
    assert sum(errors) < 0.01 * sum(powers)


def test_what_is_right_already_stays_as_it_is(seen_of: Callable[..., Seen]) -> None:
    stages = stages_of(token_model())
    before = [tensor.copy() for stage in stages for tensor in stage.tensors]
    assert tune(stages, AIM, seen_of(stages)) == 1.0
    after = [tensor for stage in stages for tensor in stage.tensors]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_chains_are_worth_it_where_there_is_room_for_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = [stage.link for stage in stages_of(token_model())]
    assert joint.is_worthwhile(chain)
    assert not joint.is_worthwhile(chain[1:])
    monkeypatch.setattr(joint, "_WORK", 1e3)
    assert not joint.is_worthwhile(chain)


def test_recovery_does_better_than_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    header = (
        "g (float[N, 6] x) => (float[N, 12] y) { [first] h = Gemm(x, w1, b1) r = Relu(h) [second] y = Gemm(r, w2) }"
    )
    model = model_of(header, weights={"w1": normal(6, 24), "b1": normal(24), "w2": normal(24, 12)})
    data, unseen = batches(32, 32, x=(6,)), batches(1, 512, seed=8, x=(6,))[0]
    gone = {"first": list(range(0, 24, 3))}
    together = recovered(model, data, gone)
    monkeypatch.setattr(joint, "_WORK", 1e3)
    alone = recovered(model, data, gone)
    assert together.refits[-1].left < 0.9
    assert alone.refits[-1].left == 1.0
    assert error(model, together.model, unseen) < 0.9 * error(model, alone.model, unseen)
