"""Pipelines as text and TOML: two spellings of one thing, and what a wrong one is answered with."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.pipeline import Fixpoint, Pipeline, from_toml, load_config, load_preset, parse, passes, presets, to_toml


def values_of(field):
    bounds = field.metadata["bounds"]
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if isinstance(field.default, bool):
        return st.booleans()
    if isinstance(field.default, int):
        return st.integers(
            bounds.get("ge", bounds.get("gt", -(10**9)) + 1), bounds.get("le", bounds.get("lt", 10**9) - 1)
        )
    if isinstance(field.default, float):
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        edges = {"exclude_min": "gt" in bounds, "exclude_max": "lt" in bounds}
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **edges)
    if isinstance(field.default, str):
        return st.text(max_size=12)
    return st.lists(
        st.tuples(st.text('abc.[] 1"', min_size=1), st.integers(1, 99)), max_size=3, unique_by=lambda p: p[0]
    ).map(lambda pairs: tuple(sorted(pairs)))


def built(kind):
    return st.fixed_dictionaries({}, optional={f.name: values_of(f) for f in dataclasses.fields(kind)}).map(
        lambda options: kind(**options)
    )


single = st.sampled_from(list(passes().values())).flatmap(built)
steps = st.recursive(
    single,
    lambda inner: st.builds(Fixpoint, st.lists(inner, max_size=3).map(tuple), st.integers(1, 99)),
    max_leaves=6,
)
pipelines = st.lists(steps, max_size=4).map(lambda found: Pipeline(tuple(found)))


@given(pipelines)
def test_the_text_of_a_pipeline_parses_back_to_it(pipeline):
    assert parse(str(pipeline)) == pipeline


@given(pipelines)
def test_the_toml_of_a_pipeline_parses_back_to_it(pipeline):
    assert from_toml(to_toml(pipeline)) == pipeline


@given(st.text(alphabet='abz-_{}(),="\\ 1.\n', max_size=30))
def test_any_text_is_a_pipeline_or_a_usage_error(text):
    try:
        parse(text)
    except UsageError as error:
        assert error.exit_code == 2


def test_whitespace_and_line_breaks_do_not_matter():
    assert parse(" fold-constants {max_growth = 7} ,\n fixpoint ( remove-dead ) ") == parse(
        "fold-constants{max_growth=7},fixpoint(remove-dead)"
    )


def test_the_empty_text_is_the_empty_pipeline():
    assert parse("") == Pipeline(()) == from_toml("steps = []")


@pytest.mark.parametrize(
    ("text", "column", "message", "hint"),
    [
        ("remove-dead,fold-constant", 12, "no pass called 'fold-constant'", "did you mean 'fold-constants'"),
        ("fold-constants{max_grow=3}", 15, "no option 'max_grow'", "did you mean 'max_growth'"),
        ("fold-constants{max_growth=many}", 15, "must be a whole number, not 'many'", None),
        ("fold-constants{max_growth=-1}", 15, "must be at least 0", None),
        ("fold-constants{max_growth=1,max_growth=2}", 28, "given twice", None),
        ("remove-dead remove-dead", 12, "unexpected 'r'", "separated by ','"),
        ("fixpoint(remove-dead", 20, "expected ')'", None),
        ("fixpoint{min=3}(remove-dead)", 0, "has the option 'max', not min", None),
        ("fixpoint{max=0}(remove-dead)", 9, "at least 1", None),
        (")", 0, "unexpected ')'", None),
        ("remove-dead,", 12, "expected the name of a pass", None),
        ("remove-dead,,remove-dead", 12, "expected the name of a pass", None),
    ],
)
def test_an_error_in_the_text_has_a_caret_under_the_place(text, column, message, hint):
    with pytest.raises(UsageError) as caught:
        parse(text)

    shown, caret = caught.value.context.splitlines()
    assert shown == text
    assert message in caught.value.message
    assert caret.index("^") == column
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = [", "not TOML"),
        ("", "not nothing"),
        ("steps = []\nfoo = 1", "not foo"),
        ("steps = [1]", "1 is no step"),
        ('steps = [{preset = "lossles"}]', "no preset called 'lossles'"),
        ('steps = [{preset = "lossless", max = 1}]', "is no step"),
        ('steps = [{pass = "remove-dea"}]', "no pass called 'remove-dea'"),
        ('steps = [{fixpoint = ["remove-dead"], min = 1}]', "not min"),
        ('steps = [{pass = "fold-constants", max_growth = "x"}]', "must be a whole number"),
        ('steps = [{pass = "fold-constants", max_growth = true}]', "must be a whole number"),
    ],
)
def test_an_error_in_the_toml_says_what_is_wrong(text, message):
    with pytest.raises(UsageError) as caught:
        from_toml(text)

    assert message in caught.value.message


def test_a_config_file_is_read_and_a_missing_one_is_a_usage_error(tmp_path):
    file = tmp_path / "pipeline.toml"
    file.write_text('steps = ["remove-dead", {fixpoint = ["fold-constants"], max = 2}]')

    assert str(load_config(file)) == "remove-dead,fixpoint{max=2}(fold-constants)"
    with pytest.raises(UsageError, match="cannot read"):
        load_config(tmp_path / "absent.toml")


def test_every_preset_loads_and_is_found_again_by_its_text():
    assert {"lossless", "none"} <= set(presets())
    for name in presets():
        assert parse(str(load_preset(name))) == load_preset(name)


def test_a_preset_among_the_steps_stands_for_its_own():
    lossless = load_preset("lossless")

    assert from_toml('steps = [{preset = "lossless"}, "remove-dead"]') == parse(f"{lossless},remove-dead")
    inner = from_toml('steps = [{fixpoint = [{preset = "lossless"}], max = 2}]')
    assert str(inner) == f"fixpoint{{max=2}}({lossless})"


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_preset("lossles")

    assert caught.value.hint == "did you mean 'lossless'?"


def test_the_passes_of_a_pipeline_are_listed_in_order():
    names = [
        item.name for item in parse("fold-shapes,fixpoint(fold-constants,fixpoint(remove-dead)),fold-shapes").passes()
    ]

    assert names == ["fold-shapes", "fold-constants", "remove-dead", "fold-shapes"]
