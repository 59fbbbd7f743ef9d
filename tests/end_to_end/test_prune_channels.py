"""prune-channels from the command line: bad input, the same bytes each time, whole pipelines, unsimplified exports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import io
from graphopt.driver import optimize
from graphopt.ir import Model, constant, nodes, static_shape
from tests.helpers import check_equivalent, model_of
from tests.pruning.pruned import value_of

ROOT = str(Path(__file__).resolve().parents[2])
RNG = np.random.default_rng(8)
NET = """g (float[N, 3, 8, 8] x) => (float[N, 10] y) {
    [first] h = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Relu(h)
    [second] k = Conv<pads = [1, 1, 1, 1]>(r, w2)
    s = Add(k, r)
    t = Relu(s)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    [head] y = Gemm(f, w3, b3)
}"""
SHAPES = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "w3": (16, 10), "b3": (10,)}
WEIGHTS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
IMAGES = RNG.standard_normal((160, 3, 8, 8)).astype(np.float32)


def net() -> Model:
    return model_of(NET, weights=WEIGHTS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    io.save(net(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=IMAGES)
    np.savez(tmp_path / "narrow.npz", x=IMAGES[:, :, :, :7])
    broken = IMAGES.copy()
    broken[37, 1, 2, 3] = np.nan
    np.savez(tmp_path / "nan.npz", x=broken)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pruning(options: str, *more: str, model: str = "net.onnx") -> list[str]:
    return ["optimize", model, "-o", "out.onnx", "--pipeline", f"prune-channels{{{options}}}", *more]


BAD = {
    "below the range": (["macs=-0.5"], ["macs must be", "-0.5"]),
    "above the range": (["params=1.5"], ["params must be", "1.5"]),
    "no number": (["latency=half"], ["latency", "half"]),
    "two budgets": (["macs=0.5,channels=0.5"], ["one budget at a time, not macs and channels"]),
    "floor of channels": (
        ["macs=0.1,min_channels=16,align=0"],
        ["macs=0.1 cannot be reached", "the least that can stay is 1.000"],
    ),
    "floor with data": (
        ['macs=0.1,align=0,floors="first=0.75"', "--data", "data.npz"],
        ["macs=0.1 cannot be reached", "the least that can stay is 0.", "lower floors"],
    ),
    "floor of a share, evenly": (['params=0.1,scope=layer,floors="*=0.5"'], ["params=0.1 cannot be reached"]),
    "everything ignored but nothing left": (
        ["macs=0.05,ignore=nothing"],
        ["no node and no operator is called 'nothing'"],
    ),
    "an unknown criterion": (["criterion=l3"], ["criterion", "l3"]),
    "a criterion without data": (["criterion=obs"], ["the criterion obs needs calibration data", "--data"]),
    "an unknown option": (["mac=0.5"], ["did you mean 'macs'?"]),
    "data of the wrong shape": (["macs=0.5", "--data", "narrow.npz"], ["narrow.npz", "[160, 3, 8, 7]"]),
    "data with NaN": (["macs=0.5", "--data", "nan.npz"], ["nan.npz", "sample 37 holds NaN"]),
    "no data there": (["macs=0.5", "--data", "absent.npz"], ["absent.npz"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_makes_no_sense_is_refused(folder, graphopt, kind):
    (options, *more), words = BAD[kind]

    code, _, error = graphopt(*pruning(options, *more))

    assert code == 2, error
    assert error.startswith("graphopt: ")
    for word in words:
        assert word in error
    assert not list(folder.glob("out*"))


def test_the_least_that_is_named_can_be_reached(folder, graphopt):
    options = 'macs={},align=0,floors="first=0.75"'
    _, _, error = graphopt(*pruning(options.format(0.1), "--data", "data.npz"))
    least = float(error.split("the least that can stay is ")[1].split()[0])

    code, _, _ = graphopt(*pruning(options.format(least + 0.001), "--data", "data.npz"))

    assert code == 0
    assert graphopt(*pruning(options.format(least - 0.01), "--data", "data.npz"))[0] == 2


def test_a_model_with_nothing_to_prune_is_written_as_it_is(folder, graphopt):
    text = "g (float[N, 3, 8, 8] x) => (float[N, 16, 6, 6] y) { y = Conv(x, w1, b1) }"
    io.save(model_of(text, weights=WEIGHTS), folder / "one.onnx")

    code, out, error = graphopt(*pruning("macs=0.5", "--data", "data.npz", model="one.onnx"))

    assert code == 0
    assert "nothing can be pruned" in out + error
    assert "an output of the model" in out + error
    check_equivalent(io.load(folder / "one.onnx"), io.load(folder / "out.onnx"), {"x": IMAGES[:2]}, rtol=0)


def test_reasons_are_in_the_json_too(folder, graphopt):
    text = "g (float[N, C, 8, 8] x) => (float[N, C, 8, 8] y) { r = Relu(x) y = Neg(r) }"
    io.save(model_of(text), folder / "free.onnx")

    code, out, _ = graphopt(*pruning("channels=0.5", "--json", model="free.onnx"))

    assert code == 0
    (remark,) = [d for d in json.loads(out)["diagnostics"] if d["code"] == "PRUNE001"]
    assert "nothing can be pruned" in remark["message"]


def test_a_channel_dimension_that_is_dynamic_stays(folder, graphopt):
    """What depends on it is pinned; the rest of the network is pruned."""
    text = """g (float[N, C, 8, 8] x) => (float[N, 10, 8, 8] y) {
        a = Sigmoid(x)
        [narrow] m = Conv(a, w)
        [first] h = Conv(m, w1, b1)
        [head] y = Conv(h, v)
    }"""
    weights = {"w": RNG.standard_normal((3, 3, 1, 1)).astype(np.float32), "w1": WEIGHTS["w1"][:, :, :1, :1].copy()}
    more = {"b1": WEIGHTS["b1"], "v": RNG.standard_normal((10, 16, 1, 1)).astype(np.float32)}
    io.save(model_of(text, weights=weights | more), folder / "free.onnx")

    code, _, _ = graphopt(*pruning("channels=0.5,align=0,ignore=narrow", "--data", "data.npz", model="free.onnx"))

    after = io.load(folder / "out.onnx")
    assert code == 0
    assert static_shape(value_of(after, "w")) == (3, 3, 1, 1)
    assert static_shape(value_of(after, "v")) == (10, 8, 1, 1)


def test_a_quantized_model_is_refused_with_the_order_to_use(folder, graphopt):
    optimize(
        folder / "net.onnx", output=folder / "int8.onnx", pipeline="insert-qdq{placement=all}", data=folder / "data.npz"
    )

    code, _, error = graphopt(*pruning("macs=0.5", "--data", "data.npz", model="int8.onnx"))

    assert code == 2
    assert "quantized already" in error
    assert "prune the float model and quantize behind it" in error
    assert not (folder / "out.onnx").exists()


TWICE = "prune-channels{macs=0.6, align=0, steps=2}, prune-weights{sparsity=0.3}"


def test_every_run_writes_the_same_bytes_in_another_process_too(folder):
    """The order of sets of strings, which differs from process to process, has no influence."""
    call = f"optimize('net.onnx', output='other.onnx', pipeline='{TWICE}', data='data.npz')"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    other = subprocess.Popen(
        [sys.executable, "-c", f"from graphopt.driver import optimize; {call}"],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ROOT},
    )
    for name in ("first", "again"):
        optimize(folder / "net.onnx", output=folder / f"{name}.onnx", pipeline=TWICE, data=folder / "data.npz")

    assert other.wait(timeout=120) == 0
    written = [(folder / f"{name}.onnx").read_bytes() for name in ("first", "again", "other")]
    assert written[0] == written[1] == written[2]


UNSIMPLIFIED = """g (float[N, 3, 8, 8] x) => (float[N, 10] y) {
    [first] h = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Relu(h)
    [down] d = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(r, w2)
    cut = Slice(r, from, till, axes, step)
    amount = Constant<value_ints = [0, 0, 0, 0, 8, 8]>()
    missing = Constant<value_ints = [2]>()
    zeros = ConstantOfShape(missing)
    others = Cast<to = 7>(zeros)
    every = Concat<axis = 0>(amount, others)
    pairs = Reshape(every, by_two)
    turned = Slice(pairs, last, least, first_axis, last)
    flipped = Transpose<perm = [1, 0]>(turned)
    flat = Reshape(flipped, last)
    pads = Cast<to = 7>(flat)
    shortcut = Pad(cut, pads)
    s = Add(d, shortcut)
    t = Relu(s)
    [third] e = Conv(t, w3)
    p = GlobalAveragePool(e)
    sizes = Shape(p)
    n = Gather(sizes, zero)
    one = Unsqueeze(n, first_axis)
    to = Concat<axis = 0>(one, last)
    f = Reshape(p, to)
    [head] y = Gemm(f, w4)
}"""
"""As exported: a shortcut that pads channels by numbers turned round by five operators, and a Reshape to a Shape."""


def unsimplified() -> Model:
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (32, 16, 3, 3), "w3": (24, 32, 1, 1), "w4": (24, 10)}
    numbers = {"from": [0, 0], "till": [2**62] * 2, "axes": [2, 3], "step": [2, 2], "by_two": [-1, 2], "last": [-1]}
    numbers |= {"least": [-(2**62)], "first_axis": [0]}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    integers = {name: np.array(values, np.int64) for name, values in numbers.items()}
    return model_of(UNSIMPLIFIED, weights=weights | integers | {"zero": np.array(0)})


def kept(model: Model) -> dict[str, int]:
    return {name: (static_shape(value_of(model, name)) or (0,))[0] for name in ("w1", "w2", "w3")}


def test_an_export_whose_pads_are_computed_is_pruned_whole_behind_lossless(folder, graphopt):
    io.save(unsimplified(), folder / "raw.onnx")
    options = "channels=0.5,align=0"

    code, out, error = graphopt(*pruning(options, "--data", "data.npz", "--remarks", model="raw.onnx"))
    assert code == 0
    assert "channels stay: the padding is computed" in out + error
    assert "the preset lossless, run before" in out + error
    assert kept(io.load(folder / "out.onnx")) == {"w1": 16, "w2": 32, "w3": 12}
    assert "the padding is computed" in graphopt("show", "raw.onnx", "--channels")[1]

    assert graphopt("optimize", "raw.onnx", "-o", "plain.onnx")[0] == 0
    code, out, error = graphopt(*pruning(options, "--data", "data.npz", "--remarks", model="plain.onnx"))
    assert code == 0
    assert "is computed" not in out + error
    assert kept(io.load(folder / "out.onnx")) == {"w1": 8, "w2": 16, "w3": 12}


def scales(model: Model) -> dict[str, float]:
    """Return the scale of each value that is quantized, by the name of what reads the result."""
    found = {}
    for node in nodes(model):
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is None:
            array = constant(node.inputs[1])
            assert array is not None
            found[str(node.inputs[0].name)] = float(array)
    return found


def test_what_quantization_needs_to_know_it_learns_of_the_pruned_network(folder):
    """In one pipeline as in two: ranges of the network before would be those of other values of the same names."""
    pruned, quantized = "prune-channels{macs=0.6, align=0}", "insert-qdq{placement=all}"
    data = folder / "data.npz"

    together, alone, then = net(), net(), net()
    optimize(together, pipeline=f"{pruned}, {quantized}", data=data)
    optimize(alone, pipeline=quantized, data=data)
    optimize(then, pipeline=pruned, data=data)
    optimize(then, pipeline=quantized, data=data)

    assert scales(together) == scales(then)
    assert {name for name, scale in scales(alone).items() if scale != scales(together).get(name)} >= {"k", "r"}
    check_equivalent(then, together, {"x": IMAGES}, rtol=0)
