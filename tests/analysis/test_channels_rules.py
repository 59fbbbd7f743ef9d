"""What each operator does with channels: those that go with channel 1 of the six that ``before`` writes."""

import numpy as np
import pytest

from tests.analysis.channel_models import between, find, ints

ALONE = {("before", 0): [1], ("a", 1): [1], ("b", 1): [1], ("after", 1): [1]}


@pytest.mark.parametrize(
    "node",
    [
        "Relu(a)",
        "Identity(a)",
        "Sigmoid(a)",
        "LeakyRelu(a)",
        "HardSwish(a)",
        "Clip(a)",
        "Dropout(a)",
        "Mul(a, a)",
        "MaxPool <kernel_shape=[2,2]> (a)",
        "AveragePool <kernel_shape=[2,2]> (a)",
        "GlobalAveragePool(a)",
        "GlobalMaxPool(a)",
        "LpPool <kernel_shape=[2,2]> (a)",
        "Softmax <axis=2> (a)",
        "ReduceMean <keepdims=1> (a, last)",
        "CumSum(a, one_axis)",
        "Transpose <perm=[0,1,3,2]> (a)",
        "Pad(a, pads)",
        "Tile(a, tiles)",
        "Resize(a, , scales)",
        "Slice(a, zero, two, last)",
    ],
)
def test_operators_that_leave_each_channel_to_itself(node):
    stated = {
        "last": ints(-1),
        "one_axis": np.array(2, np.int64),
        "pads": ints(0, 0, 1, 1, 0, 0, 1, 1),
        "tiles": ints(1, 1, 2, 2),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "zero": ints(0),
        "two": ints(2),
    }

    found = between(f"b = {node}", stated)

    assert found.units == [6]
    assert found.removed_with("before", 0, 1) == ALONE


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        ("Add(a, k)", {"k": (6, 1, 1)}),
        ("Mul(k, a)", {"k": (1, 6, 1, 1)}),
        ("PRelu(a, k)", {"k": (6, 1, 1)}),
        ("Where(mask, a, k)", {"mask": np.zeros((1, 1, 4, 4), np.bool_), "k": (6, 1, 1)}),
    ],
)
def test_constants_that_broadcast_shrink_along(node, weights):
    found = between(f"b = {node}", weights)
    axis = len(weights["k"]) - 3

    assert found.removed_with("before", 0, 1) == {**ALONE, ("k", axis): [1]}


def test_a_constant_of_one_channel_is_left_alone():
    found = between("b = Mul(a, k)", {"k": (1, 1, 1)})

    assert found.removed_with("before", 0, 1) == ALONE


def test_batch_normalization_shrinks_with_its_channel():
    found = between("b = BatchNormalization(a, s, t, m, v)", dict.fromkeys("stmv", (6,)))

    assert found.removed_with("before", 0, 1) == {**ALONE, **{(name, 0): [1] for name in "stmv"}}
    assert not found.channels.groups[0].normalized


def test_instance_normalization_shrinks_with_its_channel():
    found = between("b = InstanceNormalization(a, s, t)", dict.fromkeys("st", (6,)))

    assert found.removed_with("before", 0, 1) == {**ALONE, ("s", 0): [1], ("t", 0): [1]}


@pytest.mark.parametrize(("opset", "size"), [(18, 3), (21, 6)])
def test_group_normalization_loses_whole_groups(opset, size):
    found = between(
        "b = GroupNormalization <num_groups=3> (a, s, t)", {"s": (size,), "t": (size,)}, opset=opset, outputs=6
    )

    gone = found.removed_with("before", 0, 2)
    assert found.units == [3]
    assert gone["before", 0] == gone["after", 1] == [2, 3]
    assert gone["s", 0] == gone["t", 0] == ([1] if size == 3 else [2, 3])


def test_group_normalization_of_one_group_is_pinned():
    found = between("b = GroupNormalization <num_groups=1> (a, s, t)", {"s": (6,), "t": (6,)}, opset=21)

    assert found.units == []
    assert "one group" in found.why("b", 1)


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization"])
def test_layer_normalization_is_told_of(operator):
    found = find(
        f"g (float[5,8] x) => (float[5,4] y) {{ a = MatMul(x, v) b = {operator} (a, s) y = MatMul(b, w) }}",
        {"v": (8, 6), "s": (6,), "w": (6, 4)},
        opset=23,
    )

    assert found.units == [6]
    assert found.removed_with("v", 1, 2) == {(name, axis): [2] for name, axis in [("v", 1), ("a", 1), ("s", 0),
                                                                               ("b", 1), ("w", 0)]}  # fmt: skip
    assert found.channels.groups[0].normalized


def test_convolutions_in_groups_lose_the_same_places_of_every_group():
    found = between("b = Conv <group=2> (a, w)", {"w": (4, 3, 1, 1)}, outputs=4)

    assert found.units == [3, 2]
    assert found.removed_with("w", 1, 2) == {("before", 0): [2, 5], ("a", 1): [2, 5], ("w", 1): [2]}
    assert found.removed_with("w", 0, 1) == {("w", 0): [1, 3], ("b", 1): [1, 3], ("after", 1): [1, 3]}


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions_lose_channel_and_filters_together(multiplier):
    outputs = 6 * multiplier
    found = between("b = Conv <group=6> (a, w, k)", {"w": (outputs, 1, 3, 3), "k": (outputs,)}, outputs=outputs)

    filters = list(range(multiplier, 2 * multiplier))
    assert found.units == [6]
    assert found.removed_with("before", 0, 1) == {
        ("before", 0): [1],
        ("a", 1): [1],
        **dict.fromkeys([("w", 0), ("k", 0), ("b", 1), ("after", 1)], filters),
    }
    assert [use.node.op_type for use in found.channels.groups[0].writers] == ["Conv", "Conv"]


def test_groups_with_one_filter_each_go_as_a_whole():
    found = between("b = Conv <group=3> (a, w)", {"w": (3, 2, 1, 1)}, outputs=3)

    assert found.removed_with("w", 0, 1) == {("before", 0): [2, 3], ("a", 1): [2, 3], ("w", 0): [1], ("b", 1): [1],
                                             ("after", 1): [1]}  # fmt: skip
    assert found.owner("w", 1, 0) is None


def test_transposed_convolution_has_its_outputs_on_the_second_axis():
    found = between("b = ConvTranspose(a, w, k)", {"w": (6, 5, 2, 2), "k": (5,)}, outputs=5)

    assert found.units == [6, 5]
    assert found.removed_with("w", 0, 1) == {("before", 0): [1], ("a", 1): [1], ("w", 0): [1]}
    assert found.removed_with("w", 1, 4) == {("w", 1): [4], ("k", 0): [4], ("b", 1): [4], ("after", 1): [4]}


def test_transposed_convolution_in_groups():
    found = between("b = ConvTranspose <group=2> (a, w)", {"w": (6, 2, 1, 1)}, outputs=4)

    assert found.removed_with("w", 0, 0) == {("before", 0): [0, 3], ("a", 1): [0, 3], ("w", 0): [0, 3]}
    assert found.removed_with("w", 1, 1) == {("w", 1): [1], ("b", 1): [1, 3], ("after", 1): [1, 3]}


def test_depthwise_transposed_convolution():
    found = between("b = ConvTranspose <group=6> (a, w)", {"w": (6, 1, 2, 2)})

    assert found.removed_with("before", 0, 1) == {**ALONE, ("w", 0): [1]}


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a, trans_b):
    turn = "Transpose(a)" if trans_a else "Identity(a)"
    found = find(
        f"""g (float[5,8] x) => (float[5,4] y) {{ a = MatMul(x, v) t = {turn}
            b = Gemm <transA={trans_a}, transB={trans_b}> (t, w, k) y = MatMul(b, u) }}""",
        {"v": (8, 6), "w": (7, 6) if trans_b else (6, 7), "k": (7,), "u": (7, 4)},
    )

    rows, columns = (1, 0) if trans_b else (0, 1)
    assert found.units == [6, 7]
    assert found.removed_with("v", 1, 3) == {("v", 1): [3], ("a", 1): [3], ("t", 0 if trans_a else 1): [3],
                                             ("w", rows): [3]}  # fmt: skip
    assert found.removed_with("w", columns, 2) == {("w", columns): [2], ("k", 0): [2], ("b", 1): [2], ("u", 0): [2]}
    first, second = found.channels.groups
    assert [use.member.axis.value.name for use in first.writers + first.readers] == ["v", "w"]
    assert [use.member.axis.value.name for use in second.writers + second.readers] == ["w", "u"]


def test_matmul_of_three_dimensional_activations():
    found = find(
        "g (float[n,s,8] x) => (float[n,s,4] y) { a = MatMul(x, v) b = Gelu(a) y = MatMul(b, w) }",
        {"v": (8, 6), "w": (6, 4)},
        opset=20,
    )

    assert found.units == [6]
    assert found.removed_with("v", 1, 0) == {("v", 1): [0], ("a", 2): [0], ("b", 2): [0], ("w", 0): [0]}
    assert found.channels.groups[0].parameters == 8 + 4


def test_matmul_with_the_weight_on_the_left():
    found = find(
        "g (float[8,5] x) => (float[4,5] y) { a = MatMul(v, x) b = Relu(a) y = MatMul(w, b) }",
        {"v": (6, 8), "w": (4, 6)},
    )

    assert found.removed_with("v", 0, 1) == {("v", 0): [1], ("a", 0): [1], ("b", 0): [1], ("w", 1): [1]}


def test_einsum_is_a_product_too():
    found = find(
        'g (float[2,5,8] x) => (float[2,5,4] y) { a = Einsum <equation="bsi,oi->bso"> (x, v) y = MatMul(a, w) }',
        {"v": (6, 8), "w": (6, 4)},
    )

    assert found.removed_with("v", 0, 1) == {("v", 0): [1], ("a", 2): [1], ("w", 0): [1]}
    assert [use.member.axis.value.name for use in found.channels.groups[0].writers] == ["v"]


def test_concat_and_split_move_channels_by_an_offset():
    found = between("c = Conv(x, v) d = Concat <axis=1> (c, a) p, b = Split <axis=1> (d, sizes) q = Relu(p)",
                    {"v": (2, 3, 1, 1), "sizes": ints(3, 5)}, outputs=5)  # fmt: skip

    # Channel 0 of a is read by nothing but a dead node, the others by ``after``.
    assert found.removed_with("after", 1, 1) == {("before", 0): [2], ("a", 1): [2], ("d", 1): [4], ("b", 1): [1],
                                                 ("after", 1): [1]}  # fmt: skip
    assert found.owner("d", 1, 1)[0] != found.owner("d", 1, 4)[0]


def test_slice_and_gather_pick_channels():
    found = between(
        "c = Slice(a, start, end, axis) b = Gather <axis=1> (c, order)",
        {"start": ints(2), "end": ints(6), "axis": ints(1), "order": ints(3, 0, 1, -2, 2, -1)},
    )

    # Channels 4 and 5 are picked twice, 2 and 3 once, and 0 and 1 not at all.
    assert found.units == [2, 2, 2]
    assert found.removed_with("before", 0, 5) == {("before", 0): [5], ("a", 1): [5], ("c", 1): [3], ("b", 1): [0, 5],
                                                  ("after", 1): [0, 5]}  # fmt: skip
    assert found.removed_with("before", 0, 2)["after", 1] == [1]


def test_indices_that_two_gathers_share_do_not_tie_them():
    found = between(
        "c = Conv(x, v) d = Gather <axis=1> (c, order) e = Gather <axis=1> (a, order) b = Concat <axis=1> (d, e)",
        {"v": (6, 3, 1, 1), "order": ints(2, 1, 0)},
    )

    assert found.removed_with("before", 0, 2) == {("before", 0): [2], ("a", 1): [2], ("e", 1): [0], ("b", 1): [3],
                                                  ("after", 1): [3]}  # fmt: skip


def test_a_gathered_scalar_pins_what_it_picks_and_nothing_else():
    found = between("c = Gather <axis=1> (a, two) d = Unsqueeze(c, one) b = Mul(a, d)",
                    {"two": np.array(2, np.int64), "one": ints(1)})  # fmt: skip

    assert found.units == [5]
    assert found.owner("before", 0, 2) is None
    assert "picks" in found.why("a", 1)


def test_embedding_tables_are_written_from_their_columns():
    found = find(
        "g (int64[2,5] x) => (float[2,5,4] y) { a = Gather(table, x) y = MatMul(a, w) }",
        {"table": (30, 6), "w": (6, 4)},
    )

    assert found.removed_with("table", 1, 3) == {("table", 1): [3], ("a", 2): [3], ("w", 0): [3]}
    assert found.channels.groups[0].writers[0].member.axis.value.name == "table"
    assert "computed" in found.why("table", 0)


def test_padded_channels_have_units_of_their_own():
    found = between("b = Pad(a, pads)", {"pads": ints(0, 2, 0, 0, 0, 1, 0, 0)}, outputs=9)

    assert found.units == [6, 3]
    assert found.removed_with("before", 0, 0)["after", 1] == [2]
    assert found.removed_with("after", 1, 0) == {("b", 1): [0], ("after", 1): [0]}


def test_channels_that_a_pad_copies_are_pinned():
    found = between('b = Pad <mode="edge"> (a, pads)', {"pads": ints(0, 2, 0, 0, 0, 1, 0, 0)}, outputs=9)

    assert found.units == []


def test_tile_repeats_channels():
    found = between("b = Tile(a, times)", {"times": ints(1, 2, 1, 1)}, outputs=12)

    assert found.removed_with("before", 0, 1)["after", 1] == [1, 7]


@pytest.mark.parametrize(("mode", "channels"), [("DCR", [1, 3, 5, 7]), ("CRD", [4, 5, 6, 7])])
def test_depth_to_space_takes_the_same_channel_of_every_place(mode, channels):
    found = find(
        f"""g (float[1,3,4,4] x) => (float[n,c,h,w] y) {{
            a = Conv(x, v) b = DepthToSpace <blocksize=2, mode="{mode}"> (a) y = Conv(b, w) }}""",
        {"v": (8, 3, 1, 1), "w": (2, 2, 1, 1)},
    )

    assert found.units == [2]
    assert found.removed_with("w", 1, 1)["v", 0] == channels


def test_space_to_depth_repeats_a_channel():
    found = between("b = SpaceToDepth <blocksize=2> (a)", outputs=24)

    assert found.removed_with("before", 0, 1)["after", 1] == [1, 7, 13, 19]


@pytest.mark.parametrize(
    "nodes",
    [
        "c = Flatten(p) b = Gemm(c, w)",
        "c = Reshape(p, shape) b = MatMul(c, w)",
        "c = Reshape(p, rest) b = MatMul(c, w)",
    ],
)
def test_a_channel_owns_its_pixels_behind_flatten(nodes):
    found = find(
        f"""g (float[n,3,4,4] x) => (float[n,5] b) {{ a = Conv(x, v) p = MaxPool <kernel_shape=[3,3]> (a) {nodes} }}""",
        {"v": (6, 3, 1, 1), "w": (24, 5), "shape": ints(-1, 24), "rest": ints(0, -1)},
    )

    assert found.units == [6]
    assert found.removed_with("v", 0, 1) == {("v", 0): [1], ("a", 1): [1], ("p", 1): [1], ("c", 1): [4, 5, 6, 7],
                                             ("w", 0): [4, 5, 6, 7]}  # fmt: skip


def test_squeeze_and_unsqueeze_keep_channels():
    found = between("p = GlobalAveragePool(a) s = Squeeze(p, places) b = Unsqueeze(s, places)", {"places": ints(2, 3)})

    assert found.removed_with("before", 0, 1) == {**ALONE, ("p", 1): [1], ("s", 1): [1]}


def test_expand_keeps_what_it_does_not_repeat():
    found = between("p = GlobalAveragePool(a) b = Expand(p, shape)", {"shape": ints(1, 6, 4, 4)})

    assert found.removed_with("before", 0, 1) == {**ALONE, ("p", 1): [1]}
    assert "repetition" in found.why("b", 2)


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"])
def test_sums_over_channels_are_over_those_that_stay(operator):
    found = between(f"s = {operator} (a, one) b = Mul(a, s)", {"one": ints(1)})

    assert found.units == [6]


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_hidden_units_own_a_row_of_every_gate(operator, directions):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    direction = "bidirectional" if directions == 2 else "forward"
    found = find(
        f"""g (float[5,2,8] x) => (float[5,2,4] y) {{
            s = {operator} <hidden_size=3, direction="{direction}"> (x, w, r, k)
            t = Transpose <perm=[0,2,1,3]> (s) f = Reshape(t, shape) y = MatMul(f, v) }}""",
        {
            "w": (directions, gates * 3, 8),
            "r": (directions, gates * 3, 3),
            "k": (directions, gates * 6),
            "shape": ints(0, 0, -1),
            "v": (3 * directions, 4),
        },
    )

    gone = found.removed_with("r", 2, 1)
    assert found.units == [3]
    assert gone["w", 1] == gone["r", 1] == [3 * gate + 1 for gate in range(gates)]
    assert gone["k", 1] == [3 * gate + 1 for gate in range(2 * gates)]
    assert gone["v", 0] == [1, 4][:directions]


def test_a_table_of_scales_lies_along_the_channels():
    found = between(
        "q = QuantizeLinear <axis=1> (a, s, z) b = DequantizeLinear <axis=1> (q, s, z)",
        {"s": (6,), "z": np.zeros(6, np.uint8)},
    )

    assert found.removed_with("before", 0, 1) == {**ALONE, ("s", 0): [1], ("z", 0): [1], ("q", 1): [1]}


def test_samplers_keep_channels():
    found = find(
        "g (float[1,3,4,4] x, float[1,2,2,2] places) => (float[n,c,h,w] y) "
        "{ a = Conv(x, v) b = GridSample(a, places) y = Conv(b, w) }",
        {"v": (6, 3, 1, 1), "w": (2, 6, 1, 1)},
    )

    assert found.units == [6]


def test_einsum_of_two_terms_alike_sums_over_what_both_have():
    found = find(
        'g (float[5,8] x) => (float[5] y) { a = MatMul(x, v) y = Einsum <equation="bi,bi->b"> (a, w) }',
        {"v": (8, 6), "w": (5, 6)},
    )

    (group,) = found.channels.groups
    assert [use.member.axis.value.name for use in group.readers] == ["w"]
    assert [use.member.axis.value.name for use in group.writers] == ["v"]
