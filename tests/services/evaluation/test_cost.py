"""The cost of a step is compared within turns, so that a load that comes and goes does not decide."""

import itertools

import pytest

from services.evaluation.cost import turned
from training.offline import Fitted


def test_a_load_that_doubles_every_turn_does_not_show() -> None:
    calls: list[str] = []

    def fits(name: str, cost: float):
        load = itertools.accumulate(itertools.repeat(2.0), lambda now, by: now * by, initial=1.0)

        def fit() -> Fitted:
            calls.append(name)
            return Fitted({}, None, 0.0, 0, seconds=5 * cost * next(load), steps=5)  # type: ignore[arg-type]

        return fit

    assert turned(fits("defended", 2.1), fits("clean", 1.0), 4) == pytest.approx(2.1)
    assert len(calls) == 2 * (4 + 1)  # one turn to warm up
    assert calls[:4] == ["clean", "defended", "defended", "clean"]  # neither is always first


def test_one_slow_turn_does_not_show() -> None:
    seconds = iter([9.0, 2.0, 2.0, 2.0])

    def fitted(found: float) -> Fitted:
        return Fitted({}, None, 0.0, 0, seconds=found, steps=1)  # type: ignore[arg-type]

    assert turned(lambda: fitted(next(seconds)), lambda: fitted(1.0), 3) == pytest.approx(2.0)
