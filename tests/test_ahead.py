"""Work done ahead comes in order, and no further ahead than there are threads."""

from __future__ import annotations

import pytest

from graphopt.ahead import ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    taken: list[int] = []

    def items():
        for item in range(8):
            taken.append(item)
            yield item

    for count, result in enumerate(ahead(lambda item: item * item, items(), threads)):
        assert result == count * count
        assert len(taken) == min(8, count + threads + 1)


def test_an_error_comes_in_its_results_place() -> None:
    results = ahead(lambda item: 1 // item, [2, 1, 0, 1])

    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
