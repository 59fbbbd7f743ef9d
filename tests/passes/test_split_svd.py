"""split-svd: what it splits under which goal, what it leaves whole and says of it, and what the outputs lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.analysis.cost import Cost
from graphopt.driver import Result, optimize
from graphopt.errors import ModelError, UsageError
from graphopt.ir import Model, nodes
from graphopt.ir.interface import InterfaceEditor
from graphopt.pruning import refitting
from graphopt.pruning.refit import Fit, Moments
from graphopt.runner import ModelRunner
from graphopt.targets import find
from graphopt.targets.host import host_target
from tests.helpers import check_equivalent, clone, codes, model_of, operators, run
from tests.pruning.pruned import value_of

Array = np.ndarray[Any, Any]

MLP = """agraph (float[N, 64] x) => (float[N, 48] y) {
    [first] a = Gemm(x, w1, b1)
    r = Relu(a)
    [second] b = MatMul(r, w2)
    c = Add(b, b2)
    s = Relu(c)
    [third] y = Gemm(s, w3, b3)
}"""

CONVS = """agraph (float[N, 16, 12, 12] x) => (float[N, 24, 6, 6] y) {
    [first] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    [second] b = Conv<pads=[1,1,1,1],strides=[2,2]>(r, w2)
    s = Relu(b)
    [third] y = Conv(s, w3)
}"""


def falling(rows: int, columns: int, seed: int, rate: float = 0.12) -> Array:
    """Return a matrix whose singular values fall exponentially."""
    rng = np.random.default_rng(seed)
    size = min(rows, columns)
    left, right = (np.linalg.qr(rng.standard_normal((count, size)))[0] for count in (rows, columns))
    return np.asarray((left * 4.0 * np.exp(-rate * np.arange(size))) @ right.T, np.float32)


def mlp() -> Model:
    rng = np.random.default_rng(3)
    biases = {f"b{i}": rng.standard_normal(size).astype(np.float32) for i, size in enumerate((96, 80, 48), start=1)}
    return model_of(
        MLP, weights={"w1": falling(64, 96, 0), "w2": falling(96, 80, 1), "w3": falling(80, 48, 2), **biases}
    )


def convs() -> Model:
    shapes = {"w1": (24, 16, 3, 3), "w2": (32, 24, 3, 3), "w3": (24, 32, 1, 1)}
    arrays = {
        name: falling(shape[0], int(np.prod(shape[1:])), seed).reshape(shape)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    return model_of(CONVS, weights=arrays | {"b1": np.linspace(-1, 1, 24, dtype=np.float32)})


def inputs(count: int, seed: int) -> Array:
    """Return inputs of the MLP that lie mostly in other directions than its weights are large in."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((count, 64)) @ falling(64, 64, 9, rate=0.2) + 0.3, np.float32)


def images(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((count, 16, 12, 12)).cumsum(axis=3), np.float32)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    np.savez(path, x=inputs(512, 0))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x=images(32, 0))
    return path


def split(model: Model, options: str, data: Path | None = None, **more: Any) -> tuple[Model, Result]:
    """Return a copy that is split by a model of costs, or as ``options`` say, and the result of the run."""
    copy = clone(model)
    speed = "" if "speed=" in options else "speed=model,"
    return copy, optimize(copy, pipeline=f"split-svd{{{speed}{options}}}", data=data, **more)


def sqnr(model: Model, other: Model, feed: Array) -> float:
    (exact,), (found,) = run(model, {"x": feed}), run(other, {"x": feed})
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


def chosen(result: Result) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the form and the ranks of each layer that was split."""
    notes = result.report()["notes"].get("split-svd", {}).get("splits", [])
    return {name: (item["form"], tuple(item["ranks"])) for item in notes for name in item["layers"]}


def messages(result: Result, code: str) -> list[str]:
    return [str(item.message) for item in result.diagnostics if item.code == code]


# Goals


@pytest.mark.parametrize("share", [0.8, 0.55])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_budget_holds_for_the_whole_model(kind: str, share: float, rows: Path) -> None:
    before = mlp()
    after, _ = split(before, f"{kind}={share},align=4", rows)
    costs = [Cost.measure(model) for model in (before, after)]
    totals = [cost.total_macs if kind == "macs" else cost.parameters for cost in costs]
    assert share - 0.05 < totals[1] / totals[0] <= share


def test_a_budget_of_the_layers_leaves_out_the_others() -> None:
    before = mlp()
    after, _ = split(before, "params=0.5,of=layers,only=second,align=1")
    sizes = [Cost.measure(model).parameters for model in (before, after)]
    assert 96 * 80 * 0.5 <= sizes[0] - sizes[1] < 96 * 80 * 0.58


def test_a_budget_is_spent_where_the_outputs_lose_least(rows: Path) -> None:
    """The second layer's weights have rank 12, so all savings are made there."""
    before = mlp()
    layer = falling(96, 80, 1, rate=0.0)
    layer = layer[:, :12] @ falling(12, 80, 5)
    model = model_of(MLP, weights=weights_of(before) | {"w2": layer.astype(np.float32)})
    _, result = split(model, "params=0.75,align=4", rows)
    assert set(chosen(result)) == {"second"}


def weights_of(model: Model) -> dict[str, Array]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}


def test_energy_is_what_each_layer_keeps(rows: Path) -> None:
    _, result = split(mlp(), "energy=0.9,align=1", rows)
    splits = result.report()["notes"]["split-svd"]["splits"]
    assert len(splits) == 3
    assert all(0 < item["error"] <= 0.1 for item in splits)


def test_a_ratio_is_of_each_layer() -> None:
    _, result = split(mlp(), "ratio=0.6,align=1")
    splits = result.report()["notes"]["split-svd"]["splits"]
    assert [item["macs"][1] / item["macs"][0] <= 0.6 for item in splits] == [True] * 3


def test_a_report_tells_how_much_of_its_time_each_split_takes() -> None:
    _, result = split(mlp(), "ratio=0.6,align=1,speed=model")
    splits = result.report()["notes"]["split-svd"]["splits"]
    assert [0 < item["time"] <= 0.97 for item in splits] == [True] * 3


def test_ranks_are_multiples_of_the_targets_vectors() -> None:
    model = model_of(
        "agraph (float[N, 256] x) => (float[N, 256] y) { y = MatMul(x, w) }", weights={"w": falling(256, 256, 0, 0.03)}
    )
    _, result = split(model, "ratio=0.7", target=find("cpu-x64"))
    (((_, ranks)),) = chosen(result).values()
    assert ranks[0] % find("cpu-x64").vector_width == 0


def test_every_form_is_chosen_from(pictures: Path) -> None:
    before = convs()
    after, _ = split(before, "macs=0.7,align=4", pictures)
    assert Cost.measure(after).total_macs <= 0.7 * Cost.measure(before).total_macs
    _, result = split(before, "macs=0.7,forms=spatial,align=4", pictures)
    assert {form for form, _ in chosen(result).values()} == {"spatial"}


# What outputs lose


def test_layers_of_low_rank_lose_nothing(rows: Path) -> None:
    weights = {f"w{i}": (a[:, :16] @ a[:16]).astype(np.float32) for i, a in enumerate(squares(), start=1)}
    body = "agraph (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }"
    before = model_of(body, weights=weights)
    after, result = split(before, "energy=0.9999999,align=16", rows)
    assert set(chosen(result).values()) == {("matrix", (16,))}
    check_equivalent(before, after, {"x": inputs(5, 7)}, rtol=1e-4)


def squares() -> list[Array]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((64, 64)) / 8 for _ in range(2)]


def test_the_data_tells_which_directions_matter(rows: Path) -> None:
    before, test = mlp(), inputs(256, 1)
    plain, _ = split(before, "params=0.6,align=4")
    whitened, _ = split(before, "params=0.6,align=4,refit=false", rows)
    assert sqnr(before, whitened, test) > sqnr(before, plain, test) + 3


def test_refitting_wins_back_what_earlier_layers_lose(rows: Path) -> None:
    before, test = mlp(), inputs(256, 1)
    bare, _ = split(before, "ratio=0.25,align=4,ignore=third,refit=false", rows)
    refit, result = split(before, "ratio=0.25,align=4,ignore=third", rows)
    assert result.report()["notes"]["split-svd"]["refit"]
    assert sqnr(before, refit, test) > sqnr(before, bare, test) + 0.5


def test_of_few_samples_too_some_are_held_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=inputs(32, 0))
    counts, fit = [], refitting.fit

    def counted(fitting: Moments, held: Moments, *rest: Any, **more: Any) -> Fit:
        counts.append(held.count)
        return fit(fitting, held, *rest, **more)

    monkeypatch.setattr(refitting, "fit", counted)
    split(mlp(), "ratio=0.5,align=4", tmp_path / "few.npz")
    assert counts and min(counts) >= 8


def test_means_are_kept_without_refitting(rows: Path) -> None:
    before, test = mlp(), inputs(512, 0)
    after, _ = split(before, "ratio=0.5,only=first,align=4,refit=false", rows)
    means = [run(model, {"x": test})[1].mean(axis=0) for model in (with_hidden(before), with_hidden(after))]
    np.testing.assert_allclose(*means, atol=1e-3)


def with_hidden(model: Model) -> Model:
    """Return a copy that gives the first layer's output too."""
    copy = clone(model)
    InterfaceEditor(copy).set_outputs([*copy.graph.outputs, value_of(copy, "a")])
    return copy


def test_the_same_run_gives_the_same_bytes(pictures: Path) -> None:
    first, second = (split(convs(), "macs=0.6,align=4", pictures)[0] for _ in range(2))
    assert io.to_proto(first).SerializeToString() == io.to_proto(second).SerializeToString()


def test_weights_that_two_layers_share_are_split_once(rows: Path) -> None:
    body = """agraph (float[N, 64] x) => (float[N, 64] y) {
        [one] a = MatMul(x, w) r = Relu(a) [two] b = MatMul(r, w) y = Add(b, x) }"""
    before = model_of(body, weights={"w": falling(64, 64, 0)})
    after, result = split(before, "ratio=0.6,align=4", rows)
    assert set(chosen(result)) == {"one", "two"}
    assert operators(after)["MatMul"] + operators(after)["Gemm"] == 4
    assert {"w_1", "w_2"} <= set(after.graph.initializers) and "w" not in after.graph.initializers
    assert sqnr(before, after, inputs(64, 1)) > 10


# What is faster


def timed(monkeypatch: pytest.MonkeyPatch, *, thin: float, whole: float, first: float = 1.0) -> None:
    """Let a layer take 1 ms, each thin layer ``thin`` ms, those of ``first`` times as much, and ``whole`` the ratio."""

    def node_seconds(_: ModelRunner, model: Model) -> dict[str, float]:
        return {str(node.name): 1e-3 * seconds(model, node) for node in model.graph}

    def seconds(model: Model, node: Any) -> float:
        names = {value.name for value in node.inputs}
        is_thin = any(str(name).endswith(("_1", "_2")) for name in names)
        return thin * (first if any("w1" in str(name) for name in names) else 1.0) if is_thin else 1.0

    monkeypatch.setattr(ModelRunner, "node_seconds", node_seconds)
    monkeypatch.setattr(ModelRunner, "latency_ratio", lambda *_, **__: whole)


def test_a_layer_whose_split_is_timed_slower_stays_whole(monkeypatch: pytest.MonkeyPatch, rows: Path) -> None:
    timed(monkeypatch, thin=0.4, first=1.5, whole=0.8)
    _, result = split(mlp(), "energy=0.5,align=4,speed=auto", rows)
    assert set(chosen(result)) == {"second", "third"}
    (message,) = messages(result, "SPLIT005")
    assert "1.20 of its time" in message
    assert result.report()["notes"]["split-svd"]["ratio"] == 0.8


def test_nothing_is_split_when_the_whole_model_is_not_faster(monkeypatch: pytest.MonkeyPatch, rows: Path) -> None:
    timed(monkeypatch, thin=0.4, whole=1.02)
    before = mlp()
    after, result = split(before, "energy=0.5,align=4,speed=auto", rows)
    assert operators(after) == operators(before)
    assert "1.02" in messages(result, "SPLIT006")[0]


def test_a_budget_of_time_is_one_of_measured_time(monkeypatch: pytest.MonkeyPatch, rows: Path) -> None:
    """Of seven milliseconds, three in layers, a split saves 0.2: 0.94 of the time takes two of them."""
    timed(monkeypatch, thin=0.4, whole=0.9)
    _, result = split(mlp(), "latency=0.945,align=4", rows)
    assert len(chosen(result)) == 2


def test_any_split_is_made_when_speed_does_not_matter() -> None:
    small = model_of(
        "agraph (float[N, 16] x) => (float[N, 16] y) { y = MatMul(x, w) }", weights={"w": falling(16, 16, 0)}
    )
    _, kept = split(small, "energy=0.5,align=1,speed=model", target=find("cpu-x64"))
    assert chosen(kept) == {}
    assert "by a model of costs" in messages(kept, "SPLIT005")[0]
    _, result = split(small, "energy=0.5,align=1,speed=any")
    assert chosen(result)


def test_on_another_machines_target_a_model_of_costs_tells() -> None:
    other = next(name for name in ("cpu-x64", "cpu-arm64") if name != host_target())
    _, result = split(mlp(), "energy=0.9,speed=auto", target=find(other))
    assert "SPLIT004" in codes(result)
    with pytest.raises(UsageError, match="nothing can be timed"):
        split(mlp(), "latency=0.9", target=find(other))


def test_layers_without_names_can_be_timed(rows: Path) -> None:
    model = mlp()
    for node in nodes(model):
        node.name = None
    optimize(model, pipeline="split-svd{energy=0.5,align=4}", data=rows)
    check_equivalent(model, clone(model), {"x": inputs(3, 0)})


# What is said and refused


def test_plain_svd_is_said_to_be_plain(rows: Path) -> None:
    _, result = split(mlp(), "energy=0.9")
    assert "plain SVD" in messages(result, "SPLIT003")[0]
    assert "SPLIT003" not in codes(split(mlp(), "energy=0.9", rows)[1])


def test_a_budget_out_of_reach_tells_the_best() -> None:
    with pytest.raises(UsageError, match=r"params=0.01 cannot be reached: the least that can stay is 0\.\d+"):
        split(mlp(), "params=0.01")


@pytest.mark.parametrize("options", ["energy=1.5", "ratio=-0.1", "params=2", "macs=nan"])
def test_numbers_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(UsageError):
        split(mlp(), options)


def test_a_budget_of_work_that_is_not_known_is_refused() -> None:
    body = "agraph (float[N, 64] x, int64[2] s) => (y) { r = Reshape(x, s) y = MatMul(r, w) }"
    with pytest.raises(UsageError, match="of 1 nodes are not known"):
        split(model_of(body, weights={"w": falling(64, 64, 0)}), "macs=0.5")


def test_two_goals_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="one goal at a time, not macs and energy"):
        split(mlp(), "macs=0.5,energy=0.9")


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match="no form 'cp'"):
        split(mlp(), "forms=cp")


@pytest.mark.parametrize("option", ["only", "ignore"])
def test_a_name_of_no_layer_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="is called 'fourth'"):
        split(mlp(), f"{option}=fourth")


def test_a_layer_named_that_cannot_be_split_is_refused_with_the_reason() -> None:
    body = "agraph (float[1, 8, 6, 6] x) => (y) { [deep] y = Conv<group=8>(x, w) }"
    model = model_of(body, weights={"w": np.ones((8, 1, 3, 3), np.float32)})
    with pytest.raises(UsageError, match="'deep' cannot be split: a depthwise"):
        split(model, "only=deep")
    _, result = split(model, "energy=0.9")
    assert "depthwise" in messages(result, "SPLIT001")[0]


def test_layers_ignored_stay_whole() -> None:
    _, result = split(mlp(), 'energy=0.9,align=1,ignore="Gemm"')
    assert set(chosen(result)) == {"second"}
    _, result = split(mlp(), "energy=0.9,align=1,only=f*")
    assert set(chosen(result)) == {"first"}


def test_products_of_computed_operands_are_no_missed_chance() -> None:
    _, result = split(model_of("agraph (float[4, 4] x) => (float[4, 4] y) { y = MatMul(x, x) }"), "energy=0.9")
    assert not codes(result)


def test_a_layer_in_a_branch_is_named() -> None:
    body = """agraph (float[2, 64] x, bool c) => (float[2, 64] y) { y = If (c) <
        then_branch = t () => (float[2, 64] a) { [inner] a = MatMul(x, w) },
        else_branch = e () => (float[2, 64] b) { b = Identity(x) }> }"""
    model = model_of(body, weights={"w": falling(64, 64, 0)})
    _, result = split(model, "energy=0.9")
    assert "in a branch" in messages(result, "SPLIT001")[0]


def test_weights_that_a_branch_reads_too_stay_whole() -> None:
    body = """agraph (float[2, 64] x, bool c) => (float[2, 64] y) { [outer] z = MatMul(x, w) y = If (c) <
        then_branch = t () => (float[2, 64] a) { [inner] a = MatMul(z, w) },
        else_branch = e () => (float[2, 64] b) { b = Identity(z) }> }"""
    model = model_of(body, weights={"w": falling(64, 64, 0)})
    _, result = split(model, "energy=0.9,speed=auto")
    assert chosen(result) == {} and len(messages(result, "SPLIT001")) == 2


def test_a_quantized_model_is_refused_with_the_right_order() -> None:
    body = """agraph (float[2, 4] x) => (float[2, 4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"""
    arrays = {"s": np.float32(0.1), "z": np.uint8(3), "w": np.eye(4, dtype=np.float32)}
    with pytest.raises(UsageError, match="quantized already") as caught:
        split(model_of(body, weights={name: np.asarray(array) for name, array in arrays.items()}), "energy=0.9")
    assert "quantize behind it" in str(caught.value.hint)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    layer = falling(96, 80, 1)
    layer[3, 5] = bad
    with pytest.raises(ModelError, match="NaN or Inf") as caught:
        split(model_of(MLP, weights=weights_of(mlp()) | {"w2": layer}), "energy=0.9")
    assert "second" in str(caught.value.where)


def test_without_fuel_nothing_changes() -> None:
    before = mlp()
    after, _ = split(before, "energy=0.5,align=1", fuel={"split-svd": 0})
    assert operators(after) == operators(before)
    after, _ = split(before, "energy=0.5,align=1", fuel={"split-svd": 1})
    assert sum(operators(after).values()) == sum(operators(before).values()) + 1


def test_a_model_without_layers_is_left_alone(rows: Path) -> None:
    model = model_of("agraph (float[N, 64] x) => (float[N, 64] y) { y = Relu(x) }")
    _, result = split(model, "energy=0.9", rows)
    assert not any(record.changes for record in result.run.records)


# In company


def test_pruned_split_and_quantized_in_one_run(pictures: Path) -> None:
    before = convs()
    after = clone(before)
    steps = "prune-channels{macs=0.85,align=4},split-svd{macs=0.8,align=4,speed=any},insert-qdq{placement=all}"
    result = optimize(after, pipeline=steps, data=pictures, target=find("cpu-x64"))
    thin = set(chosen(result))
    assert thin
    inner = [node for node in nodes(after) if node.op_type == "Conv" and str(node.name).rpartition("_")[0] in thin]
    assert inner, "the first of the thin layers"
    assert all(use.node.op_type == "QuantizeLinear" for node in inner for use in node.outputs[0].uses())
    assert sqnr(before, after, images(8, 5)) > 8
