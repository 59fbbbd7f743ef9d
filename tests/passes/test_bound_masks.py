"""bound-masks: what is switched off stays switched off, what others see stays, and nothing else changes."""

import numpy as np
import pytest

from graphopt.ir import constant
from tests.helpers import check_equivalent, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(4)
SCORES = RNG.standard_normal((1, 3, 5)).astype(np.float32) * 8
MASK = np.array([[[True, True, False, True, False]]])
WHERE = "m = Where(mask, zero, low)"
NUMBERS = {"zero": np.float32(0), "low": np.float32(-3.4e38), "one": np.float32(1), "eighth": np.float32(0.125)}


def masked(nodes: str, outputs: str = "float[1,3,5] y", **weights):
    """Return a model of ``nodes`` on ``mask`` and ``scores``, with the weights above that they read, or those given."""
    numbers = {name: array for name, array in {**NUMBERS, **weights}.items() if name in nodes.replace("(", " ")}
    return model_of(f"g (bool[1,1,5] mask, float[1,3,5] scores) => ({outputs}) {{ {nodes} }}", weights=numbers)


def largest(model) -> float:
    arrays = [constant(value) for value in model.graph.initializers.values()]
    return max(float(np.abs(array).max()) for array in arrays if array is not None and array.dtype == np.float32)


FORMS = {
    "where": f"{WHERE} s = Add(scores, m) y = Softmax(s)",
    "where around the scores": "s = Where(mask, scores, low) y = Softmax(s)",
    "times the mask": "f = Cast <to = 1> (mask) o = Sub(one, f) m = Mul(o, low) s = Add(scores, m) y = Softmax(s)",
    "scaled behind": f"{WHERE} s = Add(scores, m) t = Mul(s, eighth) y = Softmax(t)",
    "moved": f"{WHERE} a = Squeeze(m) b = Unsqueeze(a, axes) s = Add(scores, b) y = Softmax(s)",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_the_same_and_the_numbers_small(form):
    before = masked(FORMS[form], axes=np.array([0, 1])) if form == "moved" else masked(FORMS[form])
    after, _ = optimized(before, "bound-masks")

    feeds = {"mask": MASK, "scores": SCORES}
    check_equivalent(before, after, feeds, rtol=1e-9)
    assert run(after, feeds)[0][..., ~MASK[0, 0]].max() < 1e-9
    assert largest(after) <= 400


def test_only_the_huge_elements_of_a_constant_change():
    before = masked("s = Add(scores, table) y = Softmax(s)", table=np.array([-1e9, -20, 0, 3, 1e5], np.float32))
    before = optimized(before, "remove-dead")[0]

    after, _ = optimized(before, "bound-masks")

    tables = [constant(value) for value in after.graph.initializers.values()]
    np.testing.assert_array_equal(tables, np.array([[-50, -20, 0, 3, 50]], np.float32))


def test_infinity_is_bounded_too_and_the_bound_is_an_option():
    before = masked(FORMS["where"], low=np.float32(-np.inf))
    after, _ = optimized(before, "bound-masks{bound=30}")

    assert largest(after) == 30
    check_equivalent(before, after, {"mask": MASK, "scores": SCORES}, rtol=1e-5)


def test_another_reader_of_the_same_constant_keeps_its_number():
    nodes = f"{FORMS['where']} z = Max(scores, low)"
    after, _ = optimized(masked(nodes, "float[1,3,5] y, float[1,3,5] z"), "bound-masks")

    assert sorted(
        float(constant(value)) for value in after.graph.initializers.values() if constant(value).dtype == np.float32
    ) == pytest.approx([-3.4e38, -50, 0])


LEFT = {
    "others see it": (f"{WHERE} s = Add(scores, m) y = Softmax(s) z = Exp(s)", "float[1,3,5] y, float[1,3,5] z"),
    "an output": (f"{WHERE} s = Add(scores, m) y = Softmax(s)", "float[1,3,5] y, float[1,3,5] s"),
    "no Softmax": (f"{WHERE} y = Add(scores, m)", "float[1,3,5] y"),
    "a factor that is computed": (f"{WHERE} s = Add(scores, m) t = Mul(s, scores) y = Softmax(t)", "float[1,3,5] y"),
}


@pytest.mark.parametrize("why", LEFT)
def test_what_it_cannot_be_sure_of_stays_and_is_said(why):
    before = masked(*LEFT[why])
    after, result = optimized(before, "bound-masks")

    assert largest(after) == np.float32(3.4e38)
    assert operators(after) == operators(before)
    assert "MASK001" in codes(result)


def test_numbers_that_are_scores_stay():
    after, result = optimized(masked("s = Add(scores, low) y = Softmax(s)", low=np.float32(-9999)), "bound-masks")

    assert largest(after) == 9999
    assert codes(result) == set()


def test_one_in_a_nested_graph_is_bounded():
    body = """g (bool c, bool[1,1,5] mask, float[1,3,5] scores) => (float[1,3,5] y) {
        y = If (c) <then_branch = t () => (float[1,3,5] p) { m = Where(mask, scores, low) p = Softmax(m) },
                    else_branch = e () => (float[1,3,5] q) { q = Softmax(scores) }>
    }"""
    before = model_of(body, weights={"low": np.float32(-1e30)})
    after, _ = optimized(before, "bound-masks")

    assert largest(after) == 50
    check_equivalent(before, after, {"c": np.array(True), "mask": MASK, "scores": SCORES}, rtol=1e-9)
