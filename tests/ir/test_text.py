r"""Models as text: what a dump looks like, what may be written by hand, and what an error says."""

from __future__ import annotations

import math
import struct

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import io
from graphopt.errors import ModelError
from graphopt.ir import Model, fingerprint, tensor_hash
from graphopt.ir.tensors import TYPE_KEY, SparseInitializer, SparseTensor, UnresolvedTensor, quantization_annotation
from graphopt.ir.text import dump, parse

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

EXAMPLE = """\
<
   ir_version: 10,
   opset_import: ["" : 21]
>
main (
   float[N,2] x
) => (
   float[N,2] y
)
<
   float[2,2] w = {0.5, 1.0, -2.0, 1e-10},
   float[2] "b.0" = {0.1, 0.2},
   float[N,2] t
>
{
   [matmul] t = MatMul (x, w)
   y = Add (t, "b.0")
}
"""


def same(text: str) -> Model:
    """Parse ``text``, and check that it prints and parses back to the same model."""
    model = parse(text)
    printed = dump(model)
    assert fingerprint(parse(printed)) == fingerprint(model)
    assert dump(parse(printed)) == printed
    return model


def graph(body: str) -> Model:
    return same(HEADER + body)


def attribute(text: str) -> onnx_ir.Attr:
    model = graph(f"g (float[2] x) => (float[2] y) {{ y = Op <a{text}> (x) }}")
    return model.graph[0].attributes["a"]


def tensor(text: str) -> onnx_ir.TensorProtocol:
    found = graph(f"g () => () <{text}> {{ }}").graph.initializers
    return next(iter(found.values())).const_value


# What a dump looks like


def test_a_dump_has_one_value_and_one_node_a_line():
    assert dump(parse(EXAMPLE)) == EXAMPLE


def test_onnx_reads_the_dump_of_an_ordinary_model():
    proto = onnx.parser.parse_model(EXAMPLE)
    onnx.checker.check_model(proto)
    assert fingerprint(onnx_ir.from_proto(proto)) == fingerprint(parse(EXAMPLE))


def test_a_subgraph_is_indented_below_its_node():
    body = """\
{
   y = If (c) <
      then_branch: graph = yes (
      ) => (
         float[2] r
      )
      {
         r = Neg (x)
      },
      else_branch: graph = no (
      ) => (
         float[2] r
      )
      <
         float[2] one = {1.0, 1.0}
      >
      {
         r = Add (x, one)
      }
   >
}
"""
    text = dump(graph(f"main (float[2] x, bool c) => (float[2] y) {body}"))
    assert text.endswith(body)
    onnx.checker.check_model(onnx.parser.parse_model(text))


def test_a_function_follows_the_graph():
    text = HEADER.replace("]", ', "local" : 1]') + (
        "main (float[2] x) => (float[2] y) { y = local.Scale <by: float = 2.0> (x) }\n"
        '<domain: "local", opset_import: ["" : 21], doc_string: "x times a constant">\n'
        "Scale <by, unused: int = 3> (x) => (y) { c = Constant <value_float: float = @by> () y = Mul (x, c) }"
    )
    model = same(text)
    function = model.functions["local", "Scale", ""]
    assert function.doc_string == "x times a constant"
    assert [a.name for a in function.attributes.values() if a.value is None] == ["by"]
    assert function[0].attributes["value_float"].ref_attr_name == "by"


def test_a_large_weight_is_shown_by_shape_and_hash():
    array = np.arange(17, dtype=np.float32)
    model = graph("g (float[17] x) => (float[17] y) { y = Add (x, x) }")
    weight = onnx_ir.Value(name="w", const_value=onnx_ir.Tensor(array, name="w"))
    model.graph.register_initializer(weight)
    line = f'   float[17] w = ["location": "sha256-{tensor_hash(weight.const_value)}"]\n'
    assert line in dump(model)
    assert "float[17] w = {0.0, 1.0," in dump(model, weights=17)

    unresolved = parse(dump(model))
    assert fingerprint(unresolved) == fingerprint(model)
    assert isinstance(unresolved.graph.initializers["w"].const_value, UnresolvedTensor)

    stored = {tensor_hash(weight.const_value): weight.const_value}
    resolved = parse(dump(model), resolve=stored.__getitem__)
    assert np.array_equal(resolved.graph.initializers["w"].const_value.numpy(), array)

    with pytest.raises(ModelError, match="no tensor with this hash is at hand"):
        parse(dump(model), resolve={}.__getitem__)
    other = onnx_ir.Tensor(array + 1)
    with pytest.raises(ModelError, match="has another content"):
        parse(dump(model), resolve=lambda _: other)


def test_a_found_tensor_is_not_renamed_for_a_second_use():
    weight = onnx_ir.Tensor(np.zeros(20, np.float32), name="first")
    place = f'["location": "sha256-{tensor_hash(weight)}"]'
    model = parse(f"g () => () <float[20] first = {place}, float[20] second = {place}> {{ }}", resolve=lambda _: weight)
    assert model.graph.initializers["second"].const_value.name == "second"
    assert weight.name == "first"


# Names and strings


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        'say "hi"',
        '{"json": [1, 2]}',
        "back\\slash",
        "a\nb",
        "1st",
        "ünïcode",
        "a.b/c:0",
        "float",
        "inf",
        "\x00\x1f",
        "#",
    ],
)
def test_any_name_survives(name):
    model = graph("g (float[2] x) => (float[2] y) { [n] y = Op <a: int = 1> (x) }")
    model.graph.name = name
    model.graph.inputs[0].name = name
    model.graph[0].name = name
    model.graph[0].domain = name
    model.graph[0].op_type = name
    model.graph[0].attributes[name] = onnx_ir.AttrString(name, name)
    model.opset_imports[name] = 1
    model.metadata_props[name] = name
    again = parse(dump(model))
    assert fingerprint(again) == fingerprint(model)
    assert again.graph[0].domain == name
    assert again.graph[0].attributes[name].value == name


@given(st.binary())
def test_any_bytes_survive_in_a_string(data):
    model = parse("g () => () { = Op () }")
    try:
        text: str | bytes = data.decode()
    except UnicodeDecodeError:
        text = data
    model.graph[0].attributes["a"] = onnx_ir.Attr("a", onnx_ir.AttributeType.STRINGS, [text, "tail"])
    assert parse(dump(model)).graph[0].attributes["a"].value == (text, "tail")


def test_left_out_inputs_and_outputs_survive():
    model = graph('g (float[2] x) => (float[2] y) { "", y = Op ("", x, "") }')
    assert [value and value.name for value in model.graph[0].inputs] == [None, "x", None]
    assert [value.name for value in model.graph[0].outputs] == ["", "y"]
    assert fingerprint(parse(HEADER + "g (float[2] x) => (float[2] y) { ,y = Op (,x,) }")) != fingerprint(model)


# Types


@pytest.mark.parametrize(
    "text",
    [
        "float",
        "float[]",
        "float16[2,?,N]",
        'bfloat16["N + 1"]',
        "seq(float[N])",
        "optional(seq(int64))",
        "sparse_tensor(float[3,4])",
        'float[N @"DATA_BATCH",3] @"IMAGE"',
        "map(int64, float)",
        'seq(map(string, float[N])) @"TABLE"',
        'opaque("my.domain", "Handle")',
        "int2[4]",
        "float4e2m1[4]",
    ],
)
def test_every_type_is_printed_as_it_is_written(text):
    assert f"   {text} x\n" in dump(graph(f"g ({text} x) => () {{ }}"))


def test_a_map_type_is_kept_as_a_protobuf():
    kept = graph("g (map(int64, float[N]) x) => () { }").graph.inputs[0].meta[TYPE_KEY]
    assert kept.map_type.value_type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_value_may_go_without_a_type():
    assert graph("g (x) => (y) { y = Neg (x) }").graph.inputs[0].type is None


# Tensors


@pytest.mark.parametrize(
    ("text", "dtype", "values"),
    [
        ("float[3] t = {1, -0.1, 1e-45}", np.float32, [1, -0.1, 1e-45]),
        ("float t = {2.5}", np.float32, 2.5),
        ("float[0,3] t = {}", np.float32, np.zeros((0, 3))),
        ("double[2] t = {0.1, 1e300}", np.float64, [0.1, 1e300]),
        ("float[3] t = {inf, -inf, nan}", np.float32, [math.inf, -math.inf, math.nan]),
        ("int8[2] t = {-128, 127}", np.int8, [-128, 127]),
        ("uint64[1] t = {18446744073709551615}", np.uint64, [2**64 - 1]),
        ("bool[2] t = {1, 0}", np.bool_, [True, False]),
        ("float16[2] t = {15360, 49152}", np.float16, [1, -2]),
        ("complex64[2] t = {1.0, 2.0, 3.0, -4.0}", np.complex64, [1 + 2j, 3 - 4j]),
        ('string[2] t = {"a", "b c"}', object, [b"a", b"b c"]),
    ],
)
def test_elements(text, dtype, values):
    np.testing.assert_array_equal(tensor(text).numpy(), np.array(values, dtype))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("int4[3] t = {-8, 7, 1}", [-8, 7, 1]),
        ("uint4[2] t = {0, 15}", [0, 15]),
        ("int2[5] t = {-2, -1, 0, 1, 1}", [-2, -1, 0, 1, 1]),
        ("float4e2m1[2] t = {2, 10}", [1, -1]),
        ("float8e4m3fn[2] t = {56, 184}", [1, -1]),
        ("bfloat16[2] t = {16256, 49024}", [1, -1]),
        ("float6e2m3[3] t = {8, 40, 8}", [1, -1, 1]),
    ],
)
def test_elements_of_small_types(text, values):
    assert tensor(text).numpy().astype(float).tolist() == values


def test_every_bit_of_a_float_survives():
    patterns = [0x00000000, 0x80000000, 0x00000001, 0x7F7FFFFF, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF]
    for pattern in patterns:
        array = np.array([pattern], np.uint32).view(np.float32)
        model = parse("g () => () { }")
        model.graph.register_initializer(onnx_ir.Value(name="w", const_value=onnx_ir.Tensor(array, name="w")))
        data = parse(dump(model)).graph.initializers["w"].const_value.tobytes()
        assert data == struct.pack("<I", pattern)


@given(st.integers(0, 2**32 - 1))
def test_every_float_is_read_back_exactly(pattern):
    value = struct.unpack("<f", struct.pack("<I", pattern))[0]
    model = parse("g () => () { = Op <a = 1.0> () }")
    model.graph[0].attributes["a"] = onnx_ir.AttrFloat32("a", value)
    assert fingerprint(parse(dump(model))) == fingerprint(model)


def test_data_that_does_not_fill_the_shape_is_shown_as_bytes():
    proto = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], raw_data=b"\x00\x01\x02")
    model = parse("g () => () { }")
    model.graph.register_initializer(onnx_ir.Value(name="w", const_value=onnx_ir.from_proto(proto)))
    assert 'float[2] w = x"000102"' in dump(model).replace("  ", " ")
    assert fingerprint(parse(dump(model))) == fingerprint(model)


def test_a_sparse_initializer_stays_sparse():
    found = tensor("sparse_tensor(float[3,4]) s = (float[2] {1.0, 2.0}, int64[2] {0, 5})")
    assert isinstance(found, SparseInitializer)
    assert found.numpy()[1].tolist() == [0, 2, 0, 0]


def test_an_initializer_may_belong_to_an_input():
    model = graph("g (float[2] x = {1, 2}) => (float[2] y) { y = Neg (x) }")
    assert model.graph.inputs[0].is_initializer()
    assert model.graph.inputs[0].const_value.numpy().tolist() == [1, 2]


# Attributes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (": int = 3", 3),
        (" = 3", 3),
        (" = -9223372036854775808", -(2**63)),
        (": float = 3", 3.0),
        (" = 0.5", 0.5),
        (" = -inf", -math.inf),
        (" = inf", math.inf),
        (' = "it\\"s"', 'it"s'),
        (' = x"ff00"', b"\xff\x00"),
        (": ints = []", ()),
        (" = [1, 2]", (1, 2)),
        (" = [1, 2.5]", (1.0, 2.5)),
        (': strings = ["a", "b"]', ("a", "b")),
    ],
)
def test_plain_attributes(text, value):
    assert attribute(text).value == value


def test_tensor_attributes():
    assert attribute(": tensor = float[2] {1, 2}").value.numpy().tolist() == [1, 2]
    assert attribute(' = int64 "its name" {7}').value.name == "its name"
    several = attribute(": tensors = [float {1.0}, int64[1] t {2}]")
    assert [item.numpy().tolist() for item in several.value] == [1.0, [2]]
    sparse = attribute(": sparse_tensor = sparse_tensor(float[4]) (float[1] {9.0}, int64[1] {2})").value
    assert isinstance(sparse, SparseTensor)
    assert sparse.dense().tolist() == [0, 0, 9, 0]


def test_type_and_graph_attributes():
    found = attribute(": type_proto = seq(float[N])").value
    assert isinstance(found.type, onnx_ir.SequenceType)
    assert found.shape == ["N"]
    graphs = attribute(': graphs = [one () => () { }, "the other" () => () { = Op (x) }]').value
    assert [g.name for g in graphs] == ["one", "the other"]


# What ONNX's syntax has no form for


def test_notes():
    model = same(
        '<ir_version: 11, opset_import: ["" : 21], device_configurations: [["pair", 2, ["CPU", "GPU"]]]>\n'
        'g (float[2] x @{doc_string: "image", metadata_props: ["k": "v"]}) => (float[2] y) @{doc_string: "the graph"}\n'
        '<float[2] w @{quantization_annotation: ["SCALE_TENSOR": "s"]} = {1, 2} @{doc_string: "a weight"},\n'
        ' float s = {1}, t @{metadata_props: ["deep": "value"]}>\n'
        '{ t = Add <a: int = 1 @{doc_string: "one"}> (x, w)\n'
        '    @{metadata_props: ["pass": "fuse"],\n'
        '      device_configurations: [["pair", [["x", [0, 1], [[-1, [0, 1]]], [[0, [[2, 2]]]]]], 1]]}\n'
        "  y = Relu (t) }"
    )
    add = model.graph[0]
    assert model.graph.inputs[0].metadata_props == {"k": "v"}
    assert model.graph.doc_string == "the graph"
    assert quantization_annotation(model.graph.initializers["w"]) == {"SCALE_TENSOR": "s"}
    assert model.graph.initializers["w"].const_value.doc_string == "a weight"
    assert add.outputs[0].metadata_props == {"deep": "value"}
    assert add.attributes["a"].doc_string == "one"
    assert add.metadata_props == {"pass": "fuse"}
    (configuration,) = add.device_configurations
    assert configuration.configuration is model.device_configurations[0]
    assert configuration.pipeline_stage == 1
    assert configuration.sharding_specs[0].value is model.graph.inputs[0]
    assert configuration.sharding_specs[0].sharded_dims[0].simple_shardings[0].num_shards == 2


def test_a_text_without_header_gets_a_recent_version():
    model = parse("g (x) => (y) { y = Neg (x) }")
    assert (model.ir_version, model.opset_imports) == (10, {"": 21})


def test_nodes_may_stand_in_any_order_and_comments_anywhere():
    model = graph(
        "g (float[2] x, bool c) => (float[2] y) { # out of order\n"
        " y = If (c) <then_branch = t () => (r) { r = Neg (a) }, else_branch = e () => (r) { r = Abs (a) }>\n"
        " a = Exp (x) }"
    )
    assert model.graph[0].attributes["then_branch"].value[0].inputs[0] is model.graph[1].outputs[0]


# Errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] x) => (float[2] y) { y = Neg x }", "expected '(', found 'x'"),
        ("g (float[2] x) => (float[2] y) { y = Neg (z) }", "'z' is not defined"),
        ("g (float[2] image) => (y) { y = Neg (imge) }", "did you mean 'image'?"),
        ("g (float[2] x) => (z) { y = Neg (x) }", "'z' is not defined"),
        ("g (x) => (y) <float[2] t> { y = Neg (x) }", "'t' is not defined"),
        ("g (x) => (x) { x = Neg (x) }", "'x' is defined twice"),
        ("g (x, x) => (x) { }", "'x' is defined twice"),
        ("g () => () <float w = {1}, float w = {2}> { }", "'w' is defined twice"),
        ("g (floot[2] x) => (x) { }", "unknown type 'floot'"),
        ("g (seq(?) x) => (x) { }", "needs another type of element"),
        ("g () => () <float[2] w = {1}> { }", "has 2 elements, here are 1"),
        ("g () => () <float[N] w = {1}> { }", "a tensor of known shape"),
        ("g () => () <int8[1] w = {200}> { }", "lie between -128 and 127"),
        ("g () => () <uint4[1] w = {-1}> { }", "lie between 0 and 15"),
        ("g () => () <int8[1] w = {1.5}> { }", "an element is no int8"),
        ("g () => () <float[1] w = {1e999999}> { }", "an element is no float"),
        ("g () => () <float[1] w = {1e39}> { }", "an element is no float"),
        ("g () => () { = Op <a: float = 1e39> () }", "does not fit a float"),
        ("g () => () <float[1] w = {a}> { }", "expected a number, found 'a'"),
        ('g () => () <float[1] w = ["location": "w.bin"]> { }', "sha256-<64 hex digits>"),
        ("g () => () { = Op <a: intt = 1> () }", "did you mean 'int'?"),
        ("g () => () { = Op <a: int = 1.5> () }", "is declared int, its value is not"),
        ("g () => () { = Op <a: int = [1]> () }", "one int is no list"),
        ("g () => () { = Op <a = []> () }", "kind of an empty list"),
        ('g () => () { = Op <a = [1, "b"]> () }', "must be of one kind"),
        ("g () => () { = Op <a = 1, a = 2> () }", "given twice"),
        ("g () => () { = Op <a = 99999999999999999999> () }", "does not fit 64 bits"),
        ('g () => () { = Op <a: float = x"00"> () }', "has 4 bytes"),
        ("g () => () { = Op <a = )> () }", "expected the value of an attribute"),
        ('g () => () { [x"ff"] = Op () }', "no UTF-8 text"),
        ('g () => () { = Op <a = "never ends> () }', "this string is not closed"),
        ("g () => () { $ }", "unexpected '$'"),
        ("g () => () {", "the end of the text"),
        ("<ir_versoin: 8> g () => () { }", "did you mean 'ir_version'?"),
        (
            'g () => () { } <domain: "d"> F <a: graph = h () => () { }> () => () { }',
            "cannot have a graph as its default",
        ),
        ("", "expected a name, found the end of the text"),
    ],
)
def test_a_wrong_text_is_refused(text, message):
    with pytest.raises(ModelError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert caught.value.where.startswith("line ")


def test_an_error_points_at_the_place():
    with pytest.raises(ModelError) as caught:
        parse("g (float[2] image) => (float[2] y)\n{\n   y = Add (image, imagee)\n}")
    assert str(caught.value).splitlines() == [
        "line 3, column 20: 'imagee' is not defined",
        "  |    y = Add (image, imagee)",
        "  |                    ^",
        "  hint: did you mean 'image'?",
    ]


def test_what_only_files_hold_comes_through_text_too():
    text = HEADER + (
        "g (map(int64, float) m) => (float[4] y)\n"
        "<sparse_tensor(float[4]) s = (float[1] {9.0}, int64[1] {2})>\n"
        "{ t = custom.FromMap (m) y = Add (t, s) }"
    )
    proto = io.to_proto(same(text.replace("]>", ', "custom" : 1]>', 1)))
    assert proto.graph.input[0].type.map_type.key_type == onnx.TensorProto.INT64
    assert len(proto.graph.sparse_initializer) == 1
    assert fingerprint(parse(dump(io.from_proto(proto)))) == fingerprint(io.from_proto(proto))
