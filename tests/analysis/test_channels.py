"""Groups of channels in the structures that networks are made of."""

import networkx
import numpy as np
import pytest

from graphopt.analysis.channels import Axis, HeadDimensions
from graphopt.analysis.channels.solve import components
from tests.analysis.channel_models import Found, between, find, ints
from tests.helpers import model_of


def test_a_residual_sum_makes_one_group_of_what_is_added():
    found = find(
        """g (float[1,3,4,4] x) => (float[n,c,h,w] y) {
            a = Conv(x, v) p = Relu(a) c = Conv(p, inner) r = Relu(c) d = Conv(r, back) s = Add(d, p) t = Relu(s)
            y = Conv(t, w) }""",
        {"v": (6, 3, 1, 1), "inner": (5, 6, 3, 3), "back": (6, 5, 3, 3), "w": (2, 6, 1, 1)},
    )
    residual, inner = found.channels.groups

    assert (residual.units, inner.units) == (6, 5)
    assert [use.member.axis.value.name for use in residual.writers] == ["v", "back"]
    assert [use.member.axis.value.name for use in residual.readers] == ["inner", "w"]
    assert residual.parameters == 3 + 5 * 9 + 5 * 9 + 2


def test_what_is_concatenated_stays_a_group_of_its_own():
    found = find(
        """g (float[1,3,4,4] x) => (float[n,c,h,w] y) {
            a = Conv(x, v) b = Conv(a, first) p = Concat <axis=1> (a, b) c = Conv(p, second)
            q = Concat <axis=1> (p, c) y = Conv(q, w) }""",
        {"v": (4, 3, 1, 1), "first": (3, 4, 1, 1), "second": (2, 7, 1, 1), "w": (2, 9, 1, 1)},
    )

    assert found.units == [4, 3, 2]
    assert found.removed_with("first", 0, 1) == {("first", 0): [1], ("b", 1): [1], ("p", 1): [5], ("second", 1): [5],
                                                 ("q", 1): [5], ("w", 1): [5]}  # fmt: skip


def test_a_shortcut_that_pads_channels_splits_a_stage_into_old_and_new():
    found = find(
        """g (float[1,3,4,4] x) => (float[n,c,h,w] y) {
            a = Conv(x, v) b = Conv <strides=[2,2]> (a, inner) s = Slice(a, start, end, axes, steps)
            p = Pad(s, pads) q = Add(b, p) y = Conv(q, w) }""",
        {
            "v": (4, 3, 1, 1),
            "inner": (8, 4, 1, 1),
            "w": (2, 8, 1, 1),
            "start": ints(0, 0),
            "end": ints(9, 9),
            "axes": ints(2, 3),
            "steps": ints(2, 2),
            "pads": ints(0, 2, 0, 0, 0, 2, 0, 0),
        },
    )

    assert found.units == [4, 4]
    assert found.removed_with("v", 0, 1) == {("v", 0): [1], ("a", 1): [1], ("inner", 1): [1], ("s", 1): [1],
                                             ("inner", 0): [3], ("b", 1): [3], ("p", 1): [3], ("q", 1): [3],
                                             ("w", 1): [3]}  # fmt: skip
    assert found.removed_with("inner", 0, 7) == {("inner", 0): [7], ("b", 1): [7], ("p", 1): [7], ("q", 1): [7],
                                                 ("w", 1): [7]}  # fmt: skip


def test_a_channel_shuffle_ties_the_same_channel_of_both_halves():
    found = between(
        "c = Reshape(a, halves) d = Transpose <perm=[0,2,1,3,4]> (c) b = Reshape(d, whole)",
        {"halves": ints(1, 2, 3, 4, 4), "whole": ints(1, -1, 4, 4)},
    )

    assert found.units == [3]
    assert found.removed_with("before", 0, 1) == {
        ("before", 0): [1, 4],
        ("a", 1): [1, 4],
        ("c", 2): [1],
        ("d", 1): [1],
        ("b", 1): [2, 3],
        ("after", 1): [2, 3],
    }
    assert "joins" in found.why("c", 1)


def test_squeeze_and_excitation_gates_its_channels():
    found = between(
        """p = GlobalAveragePool(a) s = Conv(p, down, down_bias) r = Relu(s) u = Conv(r, up) g = HardSigmoid(u)
           b = Mul(a, g)""",
        {"down": (2, 6, 1, 1), "down_bias": (2,), "up": (6, 2, 1, 1)},
    )

    assert found.units == [6, 2]
    assert found.removed_with("before", 0, 3)["up", 0] == [3]
    assert found.removed_with("down", 0, 1) == {("down", 0): [1], ("down_bias", 0): [1], ("s", 1): [1], ("r", 1): [1],
                                                ("up", 1): [1]}  # fmt: skip


ATTENTION = """g (float[2,5,8] x) => (float[2,5,8] y) {
    q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, split) q = Transpose <perm=[0,2,1,3]> (q2)
    k0 = MatMul(x, wk) k2 = Reshape(k0, split) k = Transpose <perm=[0,2,3,1]> (k2)
    v0 = MatMul(x, wv) v2 = Reshape(v0, split) v = Transpose <perm=[0,2,1,3]> (v2)
    s0 = MatMul(q, k) s1 = Div(s0, scale) s = Softmax <axis=-1> (s1) c = MatMul(s, v)
    c1 = Transpose <perm=[0,2,1,3]> (c) c2 = Reshape(c1, join) y = MatMul(c2, wo) }"""
ATTENTION_WEIGHTS = {
    **dict.fromkeys(("wq", "wk", "wv"), (8, 12)),
    "bq": (12,),
    "wo": (12, 8),
    "split": ints(0, 0, 3, 4),
    "join": ints(0, 0, 12),
    "scale": np.array(2, np.float32),
}


def test_attention_loses_whole_heads():
    found = find(ATTENTION, ATTENTION_WEIGHTS)

    gone = found.removed_with("wq", 1, 5)
    assert found.units == [3]
    for place in [("wq", 1), ("wk", 1), ("wv", 1), ("bq", 0), ("wo", 0)]:
        assert gone[place] == [4, 5, 6, 7]
    assert gone["s", 1] == [1]
    (group,) = found.channels.groups
    assert [use.member.axis.value.name for use in group.writers] == ["wq", "wk", "wv"]
    assert [use.member.axis.value.name for use in group.readers] == ["wo"]
    assert group.parameters == 3 * 8 * 4 + 4 + 4 * 8


def test_attention_can_lose_the_same_dimension_of_every_head_instead():
    found = find(ATTENTION, ATTENTION_WEIGHTS, kind=HeadDimensions)

    assert found.units == [4, 4]
    assert found.removed_with("wq", 1, 5)["wk", 1] == [1, 5, 9]
    assert ("wv", 1) not in found.removed_with("wq", 1, 5)
    assert found.removed_with("wv", 1, 2)["wo", 0] == [2, 6, 10]


@pytest.mark.parametrize(
    ("take", "shape"),
    [
        ("q0, k0, v0 = Split <axis=-1, num_outputs=3> (p)", ()),
        (
            """p1 = Reshape(p, three) p2 = Transpose <perm=[2,0,1,3]> (p1) q0 = Gather(p2, i0) k0 = Gather(p2, i1)
               v0 = Gather(p2, i2)""",
            ("three",),
        ),
    ],
)
def test_one_projection_for_queries_keys_and_values(take, shape):
    body = ATTENTION.split("q0 = MatMul(x, wq)")[1].replace("k0 = MatMul(x, wk)", "").replace("v0 = MatMul(x, wv)", "")
    found = find(
        f"g (float[2,5,8] x) => (float[2,5,8] y) {{ p = MatMul(x, w) {take} {body}",
        {
            **{name: given for name, given in ATTENTION_WEIGHTS.items() if name not in ("wq", "wk", "wv")},
            "w": (8, 36),
            **dict.fromkeys(shape, ints(0, 0, 3, 12)),
            **{f"i{index}": np.array(index, np.int64) for index in range(3)},
        },
    )

    assert found.units == [3]
    assert found.removed_with("w", 1, 0)["w", 1] == [0, 1, 2, 3, 12, 13, 14, 15, 24, 25, 26, 27]


def test_heads_that_are_folded_into_the_batch():
    """PyTorch's MultiheadAttention: [length, batch * heads, dimension]."""
    found = find(
        """g (float[5,2,8] x) => (float[5,2,8] y) {
            q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose <perm=[1,0,2]> (q1)
            k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose <perm=[1,2,0]> (k1)
            v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose <perm=[1,0,2]> (v1)
            s0 = MatMul(q, k) s = Softmax <axis=-1> (s0) c = MatMul(s, v)
            c1 = Transpose <perm=[1,0,2]> (c) c2 = Reshape(c1, join) y = MatMul(c2, wo) }""",
        {
            **dict.fromkeys(("wq", "wk", "wv"), (8, 12)),
            "wo": (12, 8),
            "split": ints(5, 6, 4),
            "join": ints(5, 2, 12),
        },
    )

    assert found.units == [3]
    assert found.removed_with("wv", 1, 0)["wq", 1] == [0, 1, 2, 3]
    assert found.removed_with("wv", 1, 0)["s", 0] == [0, 3]


def test_gated_perceptron():
    found = find(
        """g (float[5,8] x) => (float[5,8] y) {
            p = MatMul(x, both) gate, up = Split <axis=-1, num_outputs=2> (p) g = Sigmoid(gate) s = Mul(gate, g)
            h = Mul(s, up) y = MatMul(h, down) }""",
        {"both": (8, 12), "down": (6, 8)},
    )

    assert found.units == [6]
    assert found.removed_with("both", 1, 2)["both", 1] == [2, 8]
    assert found.removed_with("both", 1, 2)["down", 0] == [2]


def test_tied_weights_couple_both_of_their_roles():
    """The table that embeds words is turned round to score them: its columns are the width, its rows stay."""
    found = find(
        """g (int64[2,5] x) => (float[2,5,30] y) {
            a = Gather(table, x) b = MatMul(a, inner) c = Relu(b) d = MatMul(c, back) e = Add(a, d)
            t = Transpose(table) y = MatMul(e, t) }""",
        {"table": (30, 6), "inner": (6, 9), "back": (9, 6)},
    )

    assert found.units == [6, 9]
    assert found.removed_with("table", 1, 4) == {("table", 1): [4], ("a", 2): [4], ("inner", 0): [4], ("back", 1): [4],
                                                 ("d", 2): [4], ("e", 2): [4], ("t", 0): [4]}  # fmt: skip


def test_a_bias_that_two_layers_share_couples_them():
    found = find(
        """g (float[1,3,4,4] x) => (float[n,c,h,w] y) {
            a = Conv(x, first, k) b = Conv(x, second, k) c = Concat <axis=1> (a, b) y = Conv(c, w) }""",
        {"first": (4, 3, 1, 1), "second": (4, 3, 1, 1), "k": (4,), "w": (2, 8, 1, 1)},
    )

    assert found.units == [4]
    assert found.removed_with("first", 0, 1)["second", 0] == [1]
    assert found.removed_with("first", 0, 1)["w", 1] == [1, 5]


def test_constants_may_be_nodes():
    found = between("k = Constant <value = float[6,1,1] {1, 2, 3, 4, 5, 6}> () b = Mul(a, k)")

    assert found.removed_with("before", 0, 2)["k", 0] == [2]
    assert found.channels.groups[0].parameters == 3 + 2 + 1


def test_a_group_of_one_unit_is_none():
    found = between("b = Conv(a, w)", {"w": (1, 6, 1, 1)}, outputs=1)

    assert found.units == [6]


def test_units_without_weights_are_no_group():
    """Half of a sum of the input over its axes: nothing would get smaller but activations."""
    found = find("g (float[4,6] x) => (float[4,1] y) { a = Tile(x, times) y = ReduceSum(a, one) }",
                 {"times": ints(1, 2), "one": ints(1)})  # fmt: skip

    assert found.units == []


def test_what_stays_of_each_axis():
    found = between("b = Conv <group=6> (a, w)", {"w": (12, 1, 1, 1)}, outputs=12)
    removed = np.array([True, False, True, False, False, False])

    kept = {(axis.value.name, axis.axis): stays.tolist() for axis, stays in found.channels.kept({0: removed}).items()}

    each = [False, True, False, True, True, True]
    assert kept["before", 0] == kept["a", 1] == each
    assert kept["w", 0] == kept["after", 1] == [stays for stays in each for _ in range(2)]
    assert set(kept) == {("before", 0), ("a", 1), ("w", 0), ("b", 1), ("after", 1)}
    assert found.channels.kept({0: np.zeros(6, np.bool_)}) == {}


def test_shapes_that_the_model_computes_are_told():
    """What Reshape, Slice and Expand are given is computed from a shape that pruning changes."""
    found = between(
        """s = Shape(a) c = Gather(s, one) half = Div(c, two) d = Slice(a, zero, half, axis)
           n = Gather(s, zero) all = Concat <axis=0> (n, half, rest) b = Reshape(d, all)""",
        {"one": ints(1), "two": ints(2), "zero": ints(0), "axis": ints(1), "rest": ints(4, 4)},
        outputs=3,
    )

    told = {(node.op_type, index): numbers for (node, index), numbers in found.channels.operands.items()}
    assert told == {("Slice", 2): (3,), ("Reshape", 1): (1, 3, 4, 4)}
    assert found.units == [3, 3]
    assert found.removed_with("before", 0, 1)["after", 1] == [1]
    assert ("after", 1) not in found.removed_with("before", 0, 4)


def test_a_reshape_computed_from_unknown_sizes_is_stated_with_0_and_minus_1():
    found = find(
        """g (float[n,s,8] x) => (float[n,s,4] y) {
            a = MatMul(x, v) z = Shape <end=2> (x) to = Concat <axis=0> (z, tail) b = Reshape(a, to)
            c = ReduceSum(b, last) y = MatMul(c, w) }""",
        {"v": (8, 6), "tail": ints(2, 3), "last": ints(-1), "w": (2, 4)},
    )

    assert list(found.channels.operands.values()) == [(0, 0, 2, 3)]
    assert found.units == [3]


def test_axes_are_found_by_value_and_number():
    found = between("b = Relu(a)")
    (axis,) = (pin.axis for pin in found.channels.pins if pin.axis.value.name == "y" and pin.axis.axis == 1)

    assert found.channels.sizes[Axis(axis.value, 1)] == 2
    assert all(group.index == place for place, group in enumerate(found.channels.groups))


def test_the_order_of_groups_does_not_hang_on_hashes():
    texts = [
        [(g.units, [m.axis.value.name for m in g.members]) for g in find(ATTENTION, ATTENTION_WEIGHTS).channels.groups]
        for _ in range(2)
    ]

    assert texts[0] == texts[1]


def test_components_are_those_of_networkx():
    draw = np.random.default_rng(7)
    for count in (1, 10, 300):
        first, second = (draw.integers(0, count, count * 2 // 3) for _ in range(2))
        graph = networkx.Graph(zip(first.tolist(), second.tolist(), strict=True))
        graph.add_nodes_from(range(count))

        label = components(count, first, second)

        for component in networkx.connected_components(graph):
            assert {int(label[each]) for each in component} == {min(component)}


def chain(length: int) -> Found:
    nodes = " ".join(f"c{i} = Conv(s{i}, w{i}) r{i} = Relu(c{i}) s{i + 1} = Add(s{i}, r{i})" for i in range(length))
    weights = {f"w{i}": np.zeros((4, 4, 1, 1), np.float32) for i in range(length)}
    body = f"g (float[1,3,2,2] x) => (float[n,c,h,w] y) {{ s0 = Conv(x, v) {nodes} y = Conv(s{length}, w) }}"
    weights |= {"v": np.zeros((4, 3, 1, 1), np.float32), "w": np.zeros((2, 4, 1, 1), np.float32)}
    return Found(model_of(body, opset=18, weights=weights))


def test_a_long_chain_is_one_group():
    found = chain(300)

    assert found.units == [4]
    assert len(found.channels.groups[0].writers) == 301
