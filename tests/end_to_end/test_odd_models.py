"""Models that are valid and unusual: ``lossless`` keeps outputs and interface; a second run finds nothing to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from graphopt import io
from graphopt.driver import optimize
from graphopt.pipeline.instruments import Verify
from graphopt.runtime import Session

X = np.array([1.5, -2.0], np.float32)
IMAGE = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
CHANNELS = np.array([1.5, 0.5, 2.0], np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 2, 1, 1)).astype(np.float32)
ROOT = Path(__file__).resolve().parents[2]
Feeds = Mapping[str, Any]


def parsed(
    body: str, *, opset: int = 17, ir: int = 8, weights: Feeds | None = None, domains: str = "", functions: str = ""
) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>\n{body}\n{functions}')
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def check(before: onnx.ModelProto, *feeds: Feeds) -> onnx.ModelProto:
    """Assert equal interface and outputs on each of ``feeds``, and that a second run has nothing to do."""
    original = before.SerializeToString()
    after = io.to_proto(optimize(original, instruments=[Verify()]).model)
    found = after.SerializeToString()
    assert [info.name for info in after.graph.output] == [info.name for info in before.graph.output]
    for feed in feeds:
        wanted, got = (dict(Session(model, optimize=False).run(feed)) for model in (original, found))
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            same(got[name], value)
        Session(found)
    assert optimize(found).run.ctx.rewrites == []
    return after


def same(got: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            same(one, other)
        return
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.kind == "f":
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(got, wanted)


OUTPUTS = {
    "an initializer": ("(float[2] w, float[2] y) { y = Relu(x) }", {"w": X}),
    "an input": ("(float[2] x, float[2] y) { y = Relu(x) }", {}),
    "an input by an Identity, twice": ("(float[2] y, float[2] z) { y = Identity(x) z = Identity(x) }", {}),
    "the same twice": ("(float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }", {}),
    "equal constants": ("(float[2] y, float[2] z) { y = Neg(w) z = Neg(w) }", {"w": X}),
    "read again": ("(float[2] y, float[2] z) { y = Neg(x) z = Neg(y) }", {}),
    "one branch's and another's": (
        "(float[2] y, float[2] z) { t = Relu(x) y = If(k) <then_branch = a () => (r) { s = Neg(t) r = Abs(s) }, "
        "else_branch = b () => (float[2] r) { r = Neg(t) }> z = Neg(t) }",
        {"k": np.array(False)},
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name):
    body, weights = OUTPUTS[name]
    check(parsed(f"g (float[2] x) => {body}", weights=weights), {"x": X})


def test_no_nodes_and_no_outputs():
    check(parsed("g (float[2] x) => () { }"))
    check(parsed("g (float[2] x) => (float[2] x) { }"), {"x": X})


OVERRIDABLE: dict[str, tuple[str, Feeds, Feeds, Sequence[Feeds]]] = {
    "a weight": (
        "g (float[2] x, float[2] w) => (float[2] y) { a = Neg(w) y = Add(x, a) }", {"w": X}, {"x": X}, [{"w": 3 * X}],
    ),
    "the kernel of a Conv": (
        "g (float[1,2,4,4] x, float[3,2,1,1] k) => (float[1,3,4,4] y) { c = Conv(x, k) "
        "y = BatchNormalization(c, s, s, s, s) }",
        {"k": KERNEL, "s": CHANNELS}, {"x": IMAGE}, [{"k": KERNEL + 1}],
    ),
    "the scale of a BatchNormalization": (
        "g (float[1,2,4,4] x, float[3] t) => (float[1,3,4,4] y) { c = Conv(x, k) "
        "y = BatchNormalization(c, t, s, s, s) }",
        {"k": KERNEL, "s": CHANNELS, "t": CHANNELS}, {"x": IMAGE}, [{"t": CHANNELS + 1}],
    ),
    "a condition": (
        "g (float[2] x, bool k) => (float[2] y) { y = If(k) <then_branch = a () => (float[2] r) { r = Relu(x) }, "
        "else_branch = b () => (float[2] r) { r = Neg(x) }> }",
        {"k": np.array(True)}, {"x": X}, [{"k": np.array(False)}],
    ),
    "axes": (
        "g (float[1,2,4,4] x, int64[1] a) => (y) { y = ReduceSum(x, a) }",
        {"a": np.array([1])}, {"x": IMAGE}, [{"a": np.array([2])}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_what_callers_may_override_can_still_be_overridden(name):
    body, weights, feeds, others = OVERRIDABLE[name]
    check(parsed(body, weights=weights), feeds, *({**feeds, **other} for other in others))


def test_ir_version_3_lists_initializers_as_inputs():
    body = "g (float[2] x, float[2] w) => (float[2] y) { a = Neg(w) y = Add(x, a) }"
    after = check(parsed(body, weights={"w": X}, ir=3, opset=7), {"x": X})
    assert [node.op_type for node in after.graph.node] == ["Add"]


def test_names_of_all_kinds():
    names = ["a b", "q\"uo'te", '{"j": [1]}', "naïve→日本", "x/y:0", "%z", "back\\slash", "new\nline"]
    nodes, last = [], 'in put "1"'
    for index, name in enumerate(names):
        operator = ("Relu", "Abs", "Neg", "Sigmoid")[index % 4]
        nodes.append(helper.make_node(operator, [last], [f"{name} out"], name=name if index % 3 else ""))
        last = f"{name} out"
    nodes.append(helper.make_node("Clip", [last, "", 'max "m"'], ["clip ped"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, 'g "raph', [info('in put "1"', 1, ['N "x"', 2])], [info("clip ped", 1, None), info(last, 1, None)],
        [numpy_helper.from_array(np.float32(0.6), 'max "m"')],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    check(model, {'in put "1"': np.stack([X, 2 * X, -X])})


FUNCTIONS = {
    "in functions, with references to attributes": (
        "y = loc.outer <a = 0.25> (x)",
        """<domain: "loc", opset_import: ["" : 17]> inner <a> (x) => (y) { y = LeakyRelu <alpha: float = @a> (x) }
        <domain: "loc", opset_import: ["" : 17, "loc" : 1]> outer <a> (x) => (y) {
          t = loc.inner <a: float = @a> (x)  u = loc.inner <a = 0.5> (t)  y = Add(u, x)
        }""",
    ),
    "with a constant": (
        "y = loc.f <c = 2.5> (x)",
        '<domain: "loc", opset_import: ["" : 17]> f <c> (x) => (y) { k = Constant <value_float: float = @c> () '
        "y = Mul(x, k) }",
    ),
    "with an If": (
        "k = Constant <value_int = 0> () b = Cast <to = 9> (k) y = loc.f(x, b)",
        '<domain: "loc", opset_import: ["" : 17]> f (x, c) => (y) { y = If(c) <then_branch = t () => (a) '
        "{ a = Relu(x) }, else_branch = e () => (b) { b = Neg(x) }> }",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    body, functions = FUNCTIONS[name]
    model = parsed(f"g (float[2] x) => (float[2] y) {{ {body} }}", domains=', "loc" : 1', functions=functions)
    assert not check(model, {"x": X}).functions


def nested(depth: int) -> onnx.GraphProto:
    info = helper.make_tensor_value_info
    if depth == 0:
        return helper.make_graph([helper.make_node("Relu", ["x"], ["z0"])], "leaf", [], [info("z0", 1, [2])])
    other = helper.make_graph([helper.make_node("Neg", ["x"], [f"e{depth}"])], "else", [], [info(f"e{depth}", 1, [2])])
    node = helper.make_node("If", [f"c{depth}"], [f"z{depth}"], then_branch=nested(depth - 1), else_branch=other)
    return helper.make_graph([node], f"g{depth}", [], [info(f"z{depth}", 1, [2])])


def test_branches_as_deep_as_protobuf_reads():
    depth, info = 28, helper.make_tensor_value_info
    graph = nested(depth)
    graph.input.extend([info("x", 1, [2]), *(info(f"c{index}", 9, []) for index in range(1, depth + 1))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for wrong in (0, 3, depth):
        check(model, {"x": X, **{f"c{index}": np.array(index != wrong) for index in range(1, depth + 1)}})


TYPES = {
    "sequence": (
        "g (float[2] x) => (float[4] y, int64 n) { s = SequenceConstruct(x, w) t = Identity(s) "
        "y = ConcatFromSequence <axis = 0> (t) n = SequenceLength(t) }",
        17,
    ),
    "sequence of constants": (
        "g (float[2] x) => (seq(float[2]) s) { e = SequenceEmpty <dtype = 1> () s = SequenceInsert(e, w) }", 17,
    ),
    "optional": (
        "g (float[2] x) => (float[2] y, bool b) { o = Optional(x) y = OptionalGetElement(o) "
        "b = OptionalHasElement(o) }",
        18,
    ),
    "operators of the runtime": (
        "g (float[2] x) => (float[2] y) { a = com.microsoft.Gelu(w) b = com.microsoft.Gelu(x) y = Add(a, b) }", 17,
    ),
    "no elements": (
        "g (float[2] x) => (float[n] y, float z) { e = Slice(x, two, two) c = Concat <axis = 0> (e, x, e) "
        "y = Relu(c) z = ReduceSum <keepdims = 0> (e, zero) }",
        17,
    ),
    "wrapping integers": (
        "g (float[2] x) => (uint8[2] y, int32[2] z) { u = Cast <to = 2> (w) a = Add(u, k) b = Add(a, k) y = Sub(b, k) "
        "i = Cast <to = 6> (x) z0 = Mul(i, h) z = Mul(z0, h) }",
        17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_types(name):
    body, opset = TYPES[name]
    constants = {"w": np.abs(X), "two": [2], "zero": [0], "k": np.uint8(200), "h": np.int32(1 << 30)}
    weights = {key: value for key, value in constants.items() if f" {key}" in body or f"({key}" in body}
    check(parsed(body, opset=opset, weights=weights, domains=', "com.microsoft" : 1'), {"x": X})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "int4", "uint4"])
def test_small_element_types(dtype):
    weight = np.array([[1, 2, 3]]).astype(getattr(ml_dtypes, dtype))
    body = (
        "g (float[1,3] x) => (float[1,3] y) { t = Transpose(w) u = Transpose(t) c = Cast <to = 1> (u) y = Add(x, c) }"
    )
    after = check(parsed(body, opset=21, ir=10, weights={"w": weight}))
    feeds = {"x": np.ones((1, 3), np.float32)}
    same(next(iter(Session(after.SerializeToString()).run(feeds).values())), np.array([[2, 3, 4]], np.float32))


def test_strings():
    body = "t = Identity(s) r = Reshape(w, two) y = Concat <axis = 0> (t, x, r) e = Equal(y, y)"
    model = parsed(f"g (string[1] x) => (string[4] y, bool[4] e) {{ {body} }}", opset=19, weights={"two": [2]})
    model.graph.initializer.append(helper.make_tensor("s", onnx.TensorProto.STRING, [1], [b"a"]))
    model.graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.STRING, [1, 2], ["é".encode(), b""]))
    check(model, {"x": np.array(["x"], object)})


def test_sizes_of_zero_and_of_others_by_one_shape_arithmetic():
    body = (
        "g (float[n,2,4] x) => (float[a,b] y) { s = Shape(x) g = Gather <axis = 0> (s, zero) k = Mul(g, two) "
        "t = Concat <axis = 0> (k, four) y = Reshape(x, t) }"
    )
    model = parsed(body, weights={"zero": [0], "two": [2], "four": [4]})
    check(model, *({"x": np.ones((size, 2, 4), np.float32)} for size in (0, 1, 3)))


BOMBS = """
import resource
import onnx.parser
from graphopt.driver import optimize

def run(nodes):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (y) <int64[2] s = {50000, 50000}, '
    text += 'int64[4] p = {0, 0, 50000, 50000}, int64[2] r = {1000, 1000}, float[1,1] o = {1.0}, '
    text += 'float z = {0.0}, float l = {3e9}, float d = {1.0}> {'
    text += nodes + ' f = Cast<to=1>(b) m = ReduceMax<keepdims=0>(f) y = Add(x, m) }'
    return optimize(onnx.parser.parse_model(text).SerializeToString()).diagnostics

bombs = ['b = ConstantOfShape(s)', 'b = Expand(o, s)', 'b = Tile(o, s)', 'b = Range(z, l, d)', 'b = Pad(o, p)',
         't = Tile(o, r) u = Tile(t, r) b = Tile(u, r)', 'c = ConstantOfShape(s) b = NonZero(c)']
assert not list(run('b = Neg(o)'))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in bombs:
    assert any(item.code.startswith('FOLD') for item in run(bomb)), bomb
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_folding_bombs_take_no_memory():
    done = subprocess.run([sys.executable, "-c", BOMBS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64  # MiB
