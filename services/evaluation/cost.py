"""What a step of defended training costs beside a clean one, measured so that a busy machine does not decide.

Two engines begin at the same weights and take turns on the same rows, a few steps each. CPU time is compared within a
turn, when both met the same load, and the median over turns is kept. Timing whole windows one after the other was
found to wander by a third.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np

from services.evaluation.poisoned import Stage
from training.offline import Fitted

_TURNS = 8
_STEPS = 10  # of a turn, or so


def step_cost(stage: Stage, bare: Stage) -> float:
    """CPU time of a training step on a stage's window over that of the same stage with other defences, or none."""
    weights, table = stage.before(), stage.learner.table(stage.high)
    window = stage.learner.window_rows(stage.low, stage.high)
    rows = window.take(np.arange(min(len(window), _STEPS * stage.settings.batch_size)))

    def turns(one: Stage) -> Callable[[], Fitted]:
        trainer = one.learner.trainer(weights)
        return lambda: trainer.fit(rows, table, epochs=1, lr=one.settings.window_lr)

    return turned(turns(stage), turns(bare))


def turned(defended: Callable[[], Fitted], clean: Callable[[], Fitted], count: int = _TURNS) -> float:
    """Median over turns of the ratio of CPU seconds per step; the first turn warms up and does not count."""
    ratios = []
    for turn in range(count + 1):
        pair = (defended, clean)
        found = [one() for one in (pair if turn % 2 else pair[::-1])]
        mine, bare = (one.seconds / max(one.steps, 1) for one in (found if turn % 2 else found[::-1]))
        ratios.append(mine / bare)
    return median(ratios[1:])
