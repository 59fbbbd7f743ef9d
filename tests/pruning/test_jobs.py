"""Which layers are refit after a cut, to what, and why others are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor, Model
from graphopt.pruning.jobs import Job, find_jobs
from tests.helpers import model_of
from tests.pruning.pruned import value_of

RNG = np.random.default_rng(0)
SHAPES = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 8, 3, 3), "dw": (8, 1, 3, 3), "f": (8, 5), "g": (8, 8)}


def net(
    body: str, output: str = "float[N, O, A, B] y", inputs: str = "float[N, 3, 8, 8] x", **more: np.ndarray
) -> Model:
    """A model whose h loses channels, with every weight of SHAPES at hand."""
    arrays = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} | more
    used = {name: array for name, array in arrays.items() if f"{name})" in body or f"{name}," in body}
    model = model_of(f"g ({inputs}) => ({output}) {{ {body} }}", weights=used)
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def jobs(model: Model, *shrunk: str) -> tuple[dict[str, Job], dict[str, str]]:
    """Return jobs and reasons against them by the names of nodes."""
    why: dict[str, str] = {}
    found = find_jobs(model, frozenset(shrunk), lambda node, reason: why.update({str(node.name): reason}))
    return {str(job.layer.node.name): job for job in found}, why


def names(values) -> list[str]:
    return [value.name for value in values]


def test_only_what_lies_behind_lost_channels_is_refit():
    body = "[a] h = Conv(x, w1) [b] k = Conv(h, w2) [c] o = Conv(x, w1) r = Add(k, o) [d] y = Conv(r, w3)"

    found, _ = jobs(net(body), "h", "w1", "w2")

    assert list(found) == ["b", "d"]


def test_operators_that_work_channel_by_channel_lose_nothing():
    """The layer behind sees fewer channels, but each as it was."""
    body = """[a] h = Conv(x, w1) r = Relu(h) [deep] d = Conv<group = 8>(r, dw)
        p = MaxPool<kernel_shape = [2, 2]>(d) [b] y = Conv(p, w2)"""

    found, _ = jobs(net(body), "h", "r", "d", "p", "w1", "w2", "dw")

    assert list(found) == ["b"]


def test_a_normalization_over_the_channels_changes_them_all():
    body = """[a] h = Conv(x, w1) t = Transpose<perm = [0, 2, 3, 1]>(h) n = LayerNormalization(t, s)
        [b] y = MatMul(n, f)"""

    found, _ = jobs(net(body, s=np.ones(8, np.float32)), "h", "t", "n", "s", "f", "w1")

    assert list(found) == ["b"]


def test_the_result_is_behind_normalization_and_sum():
    norm = {"s": np.full(8, 3.0), "o": np.full(8, 2.0), "m": np.full(8, 1.0), "v": np.full(8, 4.0)}
    body = """[a] h = Conv(x, w1) [c] o1 = Conv(x, w1) [b] k = Conv(h, w2b)
        n = BatchNormalization<epsilon = 0.0>(k, s, o, m, v) q = Add(o1, n) y = Relu(q)"""
    arrays = {name: array.astype(np.float32) for name, array in norm.items()}
    w2b = RNG.standard_normal((8, 8, 1, 1)).astype(np.float32)
    model = net(body, w2b=w2b, **arrays)

    (job,) = jobs(model, "h")[0].values()

    assert job.result.name == "q"
    assert names(job.others) == ["o1"]
    np.testing.assert_allclose(job.scale, 3 / 2)
    np.testing.assert_allclose(job.shift, 2 - 1 * 3 / 2)
    assert job.bounds == (0.0, math.inf)


def test_of_two_layers_that_are_added_the_later_is_fit_to_the_sum():
    """The first is fit on its own; what it then lacks the second makes up for."""
    body = "[a] h = Conv(x, w1) [b] k = Conv(h, w2) [c] m = Conv(h, w4) s = Add(k, m) y = Relu(s)"
    model = net(body, w4=RNG.standard_normal((8, 8, 1, 1)).astype(np.float32))

    found, _ = jobs(model, "h")

    assert {name: (job.result.name, names(job.others)) for name, job in found.items()} == {
        "b": ("k", []),
        "c": ("s", ["k"]),
    }


@pytest.mark.parametrize(
    ("rest", "result"),
    [
        ("[b] k = Conv(h, w2) y = Add(k, one)", "k"),  # a constant says nothing that the bias could not
        ("[b] k = Conv(h, w2) y = Add(k, row)", "k"),
        ("[b] k = Conv(h, w2) c = GlobalAveragePool(x0) y = Add(k, c)", "k"),  # broadcast
        ("[b] k = Conv(h, w2) y = Add(k, k)", "k"),
        ("[b] k = Conv(h, w2) y = Sub(k, x0)", "k"),
        ("[b] k = Conv(h, w2) y = Add(k, x0)", "y"),
    ],
)
def test_what_is_no_sum_of_two_layers_is_not_followed(rest, result):
    extra = {"one": np.ones((1, 8, 1, 1), np.float32), "row": np.ones(8, np.float32)}
    model = net(
        "[a] h = Conv(x, w1) x0 = Concat<axis = 1>(x, x, two) " + rest,
        two=np.ones((1, 2, 8, 8), np.float32),
        inputs="float[1, 3, 8, 8] x",
        **extra,
    )

    (job,) = jobs(model, "h")[0].values()

    assert job.result.name == result


def test_a_result_that_is_an_output_is_fit_where_it_is():
    model = net("[a] h = Conv(x, w1) [b] k = Conv(h, w2) y = Relu(k)", "float[N, O, A, B] y, float[N, O, A, B] k")

    (job,) = jobs(model, "h")[0].values()

    assert (job.result.name, job.bounds) == ("k", None)


@pytest.mark.parametrize(
    ("rest", "bounds"),
    [
        ("y = Relu(k)", (0.0, math.inf)),
        ("y = Clip(k, low, high)", (-1.0, 6.0)),
        ("y = Clip(k, low)", (-1.0, math.inf)),
        ("y = Clip(k, none, high)", (-math.inf, 6.0)),
        ("top = Identity(high) y = Clip(k, low, top)", None),
        ("a1 = Relu(k) a2 = Relu(k) y = Add(a1, a2)", (0.0, math.inf)),
        ("a1 = Relu(k) a2 = Tanh(k) y = Add(a1, a2)", None),
        ("y = Sigmoid(k)", None),
    ],
)
def test_bounds_are_those_of_everybody_who_reads_the_result(rest, bounds):
    numbers = {"low": np.float32(-1), "high": np.float32(6)}
    model = net(f"[a] h = Conv(x, w1) [b] k = Conv(h, w2) {rest}".replace("none", ""), **numbers)

    (job,) = jobs(model, "h")[0].values()

    assert job.bounds == bounds


def test_bounds_of_an_old_clip_are_its_attributes():
    model = model_of(
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) { h = Conv(x, w1) k = Conv(h, w2) y = Clip<min = 0.5>(k) }",
        opset=10,
        weights={"w1": np.ones((8, 3, 1, 1), np.float32), "w2": np.ones((8, 8, 1, 1), np.float32)},
    )

    (job,) = find_jobs(model, frozenset({"h"}))

    assert job.bounds == (0.5, math.inf)


IMAGES = "[a] h = Conv(x, w1)", "float[N, 3, H, W] x"
ROWS = "[a] h = MatMul(x, w0) t = Transpose(h)", "float[5, 6] x"
BRANCH = """[b] y = If(yes) <
    then_branch = a () => (float[N, 8, H, W] o) { [inner] o = Conv(h, w2) },
    else_branch = e () => (float[N, 8, H, W] p) { p = Relu(h) }>"""
DECLINED = {
    "transposed": (IMAGES, "[b] y = ConvTranspose(h, w2)", "transposed convolutions"),
    "shared": (IMAGES, "[b] k = Conv(h, w2) m = Relu(h) z = Conv(m, w2) y = Add(k, z)", "shared with another layer"),
    "computed bias": (
        IMAGES,
        "c = ReduceMax<axes = [0, 2, 3], keepdims = 0>(h) [b] y = Conv(h, w2, c)",
        "bias is computed",
    ),
    "unknown pads": (IMAGES, '[b] y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(h, w3)', "auto_pad"),
    "branch": (IMAGES, BRANCH, "in a branch or a loop"),
    "einsum": (IMAGES, '[b] y = Einsum<equation = "nchw,cd->ndhw">(h, g)', "Einsum"),
    "first operand": (ROWS, "[b] y = MatMul(left, t)", "no matrix behind its input"),
    "turned": (ROWS, "[b] y = Gemm<transA = 1>(t, f)", "its input is transposed"),
    "matrix as bias": (ROWS, "[b] y = Gemm(h, f, rows)", "its bias no row"),
    "recurrent": (ROWS, "u = Unsqueeze(h, zero) [b] y = GRU<hidden_size = 2>(u, gru, state)", "recurrent layers"),
    "wide": (ROWS, "u = Tile(h, many) [b] y = MatMul(u, wide)", "too many for a Gram matrix"),
}


@pytest.mark.parametrize("kind", DECLINED)
def test_layers_that_cannot_be_refit_are_named(kind):
    (start, inputs), rest, reason = DECLINED[kind]
    shapes = {"w0": (6, 8), "left": (4, 8), "rows": (5, 5), "gru": (1, 6, 8), "state": (1, 6, 2), "wide": (7000, 2)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    arrays |= {"yes": np.array(True), "zero": np.array([0]), "many": np.array([1, 875])}
    model = net(f"{start} {rest}", "float[O] y" if kind != "branch" else "float[N, 8, H, W] y", inputs, **arrays)

    found, why = jobs(model, "h", "t", "u")

    assert "b" not in found
    assert reason in why["inner" if kind == "branch" else "b"]


def test_what_a_branch_makes_of_lost_channels_is_made_up_for_behind_it():
    text = """[a] h = Conv(x, w1) [m] k = Conv(h, w2)
        r = If(yes) <then_branch = t () => (float[N, 8, 8, 8] o) { o = Relu(k) },
                     else_branch = e () => (float[N, 8, 8, 8] p) { p = Neg(k) }>
        [b] y = Conv(r, w3)"""

    found, why = jobs(net(text, yes=np.array(True)), "h")

    assert list(found) == ["m", "b"]
    assert not why


def test_a_layer_is_fit_to_positions_of_its_own_patches():
    model = net("[a] h = Conv(x, w1) [b] y = Conv<strides = [2, 1], pads = [1, 0, 1, 0]>(h, w3)")

    job = jobs(model, "h")[0]["b"]

    assert job.unfold is not None
    assert (job.unfold.kernel, job.unfold.strides, job.unfold.pads) == ((3, 3), (2, 1), (1, 0, 1, 0))
    assert job.data is value_of(model, "h")
