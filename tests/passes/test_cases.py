"""Every pass against its golden cases: the text that comes out, the numbers, and a second run (see tests/golden.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.pipeline.registry import PACKAGE, passes
from graphopt.pipeline.spec import parse
from tests.golden import Case, check_case, read_cases

FOLDER = Path(__file__).parent
CASES = [case for file in sorted(FOLDER.glob("*.case")) for case in read_cases(file)[1]]
OWN = sorted(name for name, kind in passes().items() if kind.__module__.startswith(f"{PACKAGE}."))

TEXT = """Comment.

== An Identity goes
pipeline: remove-identities
--- before
g (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }
--- after
g (
   float[2] x
) => (
   float[2] y
)
{
   y = Relu (x)
}

== A Relu stays
pipeline: remove-identities
--- before
g (float[2] x) => (float[2] y) { y = Relu(x) }
--- after
g (
   float[2] x
) => (
   float[2] y
)
{
   y = Relu (x)
}
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file.stem}: {case.title}")
def test_case(case: Case, update_golden: bool) -> None:
    check_case(case, update=update_golden)


@pytest.mark.parametrize("name", OWN)
def test_every_pass_has_a_case(name: str) -> None:
    file = FOLDER / f"{passes()[name].__module__.rsplit('.', 1)[-1]}.case"
    assert file.exists(), f"write a case for {name} in tests/passes/{file.name}"
    assert any(name in {item.name for item in parse(case.pipeline).passes()} for case in read_cases(file)[1]), (
        f"no case in tests/passes/{file.name} runs {name}"
    )


def written(folder: Path, text: str) -> list[Case]:
    file = folder / "some.case"
    file.write_text(text)
    return read_cases(file)[1]


def test_what_comes_out_as_expected_passes(tmp_path):
    for case in written(tmp_path, TEXT):
        check_case(case)


def test_a_difference_is_shown_and_says_how_to_update(tmp_path):
    case = written(tmp_path, TEXT.replace("y = Relu (x)\n", "y = Relu (a)\n", 1))[0]
    with pytest.raises(AssertionError) as caught:
        check_case(case)
    text = str(caught.value)
    assert "some.case: An Identity goes" in text
    assert "-   y = Relu (a)\n+   y = Relu (x)" in text
    assert "--update-golden" in text


def test_an_update_rewrites_the_expected_part_of_its_case_alone(tmp_path):
    wrong = TEXT.replace("   y = Relu (x)\n", "", 1)
    case = written(tmp_path, wrong)[0]
    check_case(case, update=True)
    assert case.file.read_text() == TEXT


def test_remarks_are_expected_too(tmp_path, plug_in):
    plug_in("Says", 'ctx.missed("TEST001", None, "why not", "what helps")', changes="")
    text = TEXT.replace("remove-identities", "says")
    with pytest.raises(AssertionError, match=r"\+remark TEST001 why not \(hint: what helps\)"):
        check_case(written(tmp_path, text)[1])


def test_other_numbers_are_caught(tmp_path, plug_in):
    plug_in("Half", '[ctx.edit.set_operator(node, "Sigmoid") for node in ctx.nodes("Relu")]')
    text = TEXT.replace("remove-identities", "half").replace("y = Relu (x)", "y = Sigmoid (x)")
    with pytest.raises(AssertionError, match="Not equal"):
        check_case(written(tmp_path, text)[1])


def test_a_pass_that_is_not_idempotent_is_caught(tmp_path, plug_in):
    plug_in(
        "Again",
        'for node in ctx.nodes("Relu"): '
        'ctx.edit.set_input(node, 0, ctx.edit.insert_before(node, "Relu", [node.inputs[0]]).outputs[0])',
    )
    case = written(tmp_path, TEXT.replace("remove-identities", "again"))[1]
    with pytest.raises(AssertionError, match="second run"):
        check_case(case, update=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("--- after", "'afterwards'"), ("pipeline: remove-identities\n--- before", "'pipe'")],
)
def test_an_unknown_part_is_refused(tmp_path, wrong, message):
    word = message.strip("'")
    text = TEXT.replace(wrong, f"--- {word}" if wrong.startswith("---") else f"{word}: x\n{wrong}")
    with pytest.raises(ValueError, match=message):
        written(tmp_path, text)
