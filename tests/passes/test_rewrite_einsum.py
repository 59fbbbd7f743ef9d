"""rewrite-einsum: each kind of equation gives what onnxruntime's Einsum gives, in operators that NPUs have."""

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "d": 7, "c": 8, "w": 2}


def einsum(equation: str, shapes: list[list[int]], *, constants: dict[int, np.ndarray] | None = None, opset: int = 17):
    """Return a model of one Einsum whose operands a0, a1, ... have these shapes; some may be constant."""
    fixed = constants or {}
    ends = ", ".join(f"float{shape} a{n}" for n, shape in enumerate(shapes) if n not in fixed)
    names = ", ".join(f"a{n}" for n in range(len(shapes)))
    body = f'g ({ends}) => (float y) {{ [e] t = Einsum <equation = "{equation}"> ({names}) y = Identity(t) }}'
    model = model_of(body, opset=opset, weights={f"a{n}": array for n, array in fixed.items()})
    model.graph.outputs[0].shape = None
    return model


def arrays(shapes: list[list[int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


EQUATIONS = [
    *("ij,jk->ik", "ij,jk->ki", "ij,kj->ik", "ji,jk->ik", "ij,jk", "i,i->", "ij,j->i", "j,ij->i", "i,j->ij", "i,j->ji"),
    *("bij,bjk->bik", "bhid,bhjd->bhij", "bihd,bjhd->bhij", "bhij,bjhd->bihd", "bchw,bkc->bkhw", "bhwc,hkc->bhwk"),
    *("bij,bij->b", "bij,bij->bij", "bij,bij->ij", "bij,bij->", "bij,bi->bj", "bij,k->kb", "bij,bk->ijk"),
    *("bid,dk->bik", "bid,dhk->bihk", "dk,bid->bik", "bcij,ck->bkij"),
    *("ij->ji", "ij->", "ij->j", "ijk->ki", "ij->ij", "bij", "bij,jk,kd->bid", "i,j,k->kji", "bi,bi,bi->b"),
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_it_is_written_out_and_computes_the_same(equation):
    shapes = [[SIZES[letter] for letter in term] for term in equation.partition("->")[0].split(",")]
    before = einsum(equation, shapes)

    after, _ = optimized(before, "rewrite-einsum")

    assert "Einsum" not in operators(after)
    check_equivalent(before, after, {f"a{n}": array for n, array in enumerate(arrays(shapes))})


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("...ij,...jk->...ik", [[2, 3, 4, 5], [2, 3, 5, 6]]),
        ("...ij,jk->...ik", [[2, 3, 4, 5], [5, 6]]),
        ("b...i,...i->b...", [[2, 3, 4, 5], [3, 4, 5]]),
        ("...ij->...ji", [[2, 4, 5]]),
        ("...ij,...jk", [[2, 4, 5], [2, 5, 6]]),
    ],
)
def test_an_ellipsis_stands_for_the_dimensions_that_have_no_letter(equation, shapes):
    before = einsum(equation, shapes)

    after, _ = optimized(before, "rewrite-einsum")

    assert "Einsum" not in operators(after)
    check_equivalent(before, after, {f"a{n}": array for n, array in enumerate(arrays(shapes))})


@pytest.mark.parametrize("place", [0, 1])
def test_constant_weights_are_the_second_operand_of_the_product(place):
    terms, shapes = ["bid", "kd"], [[2, 4, 7], [6, 7]]
    if place == 0:
        terms, shapes = terms[::-1], shapes[::-1]
    numbers = arrays(shapes)
    before = einsum(f"{','.join(terms)}->bik", shapes, constants={place: numbers[place]})

    after, _ = optimized(before, "rewrite-einsum")

    product = next(node for node in after.graph if node.op_type == "MatMul")
    assert product.inputs[1].const_value.numpy().shape == (7, 6)
    assert "Transpose" not in operators(after)
    check_equivalent(before, after, {f"a{1 - place}": numbers[1 - place]})


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "bij,bjk->bik", "bhid,bhdk->bhik", "bchw,bkc->bkhw", "bhwc,hkc->bhwk"]
)
def test_common_products_need_no_transposition_behind(equation):
    sizes = SIZES | {"b": 1}
    shapes = [[sizes[letter] for letter in term] for term in equation.partition("->")[0].split(",")]

    after, _ = optimized(einsum(equation, shapes), "rewrite-einsum")

    order = [node.op_type for node in after.graph]
    assert "Transpose" not in order[order.index("MatMul") :]


@pytest.mark.parametrize(
    ("equation", "shapes", "why"),
    [
        ("ii->i", [[3, 3]], "twice in one operand"),
        ("...i,...i->...", [[1, 4], [3, 4]], "broadcast"),
    ],
)
def test_what_it_cannot_write_out_stays_and_is_said(equation, shapes, why):
    before = einsum(equation, shapes)

    after, result = optimized(before, "rewrite-einsum")

    assert operators(after) == operators(before)
    said = next(d for d in result.diagnostics if d.code == "EINSUM001")
    assert why in said.message and said.node == "e"


def test_integers_and_older_opsets_stay():
    body = 'g (int32[2,3] a, int32[3,4] b) => (int32[2,4] y) { y = Einsum <equation = "ij,jk->ik"> (a, b) }'
    for before in (model_of(body), einsum("ij,j->i", [[2, 3], [3]], opset=12)):
        after, result = optimized(before, "rewrite-einsum")

        assert operators(after) == operators(before)
        assert "EINSUM001" in codes(result)


def test_one_in_a_nested_graph_is_written_out_too():
    body = """g (bool c, float[2,3] a, float[3,4] b) => (float[2,4] y) {
        y = If (c) <then_branch = t () => (float[2,4] p) { p = Einsum <equation = "ij,jk->ik"> (a, b) },
                    else_branch = e () => (float[2,4] q) { q = MatMul(a, b) }>
    }"""
    before = model_of(body)

    after, _ = optimized(before, "rewrite-einsum")

    assert operators(after)["MatMul"] == 2 and "Einsum" not in operators(after)
    a, b = arrays([[2, 3], [3, 4]])
    check_equivalent(before, after, {"c": np.array(True), "a": a, "b": b})
