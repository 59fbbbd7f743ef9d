"""Finding passes by name, plug-ins of other packages included."""

import pytest

from graphopt.errors import UsageError
from graphopt.pipeline import lookup, parse, passes, registry


def test_a_plug_in_is_found_by_its_entry_point(plug_in):
    plug_in("Halve", "pass", changes="")

    assert "halve" in passes()
    assert lookup("halve").summary() == "A pass of a test."
    assert str(parse("halve,remove-dead")) == "halve,remove-dead"


def test_a_plug_in_that_takes_the_name_of_another_pass_is_refused(plug_in):
    plug_in("Decompose", "pass")

    with pytest.raises(UsageError, match=r"two passes are called 'decompose'.*passes\.decompose and plug_in_decompose"):
        passes()


def test_a_plug_in_that_is_no_pass_is_refused(monkeypatch):
    class Entry:
        @staticmethod
        def load():
            return dict

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry])
    registry.passes.cache_clear()
    try:
        with pytest.raises(UsageError, match="not a subclass"):
            passes()
    finally:
        registry.passes.cache_clear()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        lookup("remove-deed")

    assert caught.value.hint == "did you mean 'remove-dead'?"


def test_passes_are_listed_in_alphabetical_order():
    assert list(passes()) == sorted(passes())
