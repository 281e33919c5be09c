"""Which windows to train on next, and which to be judged by: a pure decision over what is complete.

The exam is the shortest newest run of untrained windows with enough scorable events; every untrained window before it
is trained. So a model is always judged on events that neither it nor the incumbent has trained on, no window is
skipped, none is trained twice, and empty windows never are an exam of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WindowCounts:
    """What a window holds: new events, targets to train on, and targets that an exam could score."""

    events: int
    targets: int
    scorable: int


@dataclass(frozen=True)
class Plan:
    """One round. Windows are named by their start (epoch ms), oldest first; ``first``: nothing is served yet."""

    version: str
    train: tuple[int, ...]
    exam: tuple[int, ...]
    replay: tuple[int, ...]
    first: bool

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Plan:
        """Back from :meth:`to_json`."""
        windows = {name: tuple(stored[name]) for name in ("train", "exam", "replay")}
        return cls(version=stored["version"], first=stored["first"], **windows)


def split(
    windows: Sequence[int],
    trained: set[int],
    counts: Callable[[int], WindowCounts],
    min_targets: int,
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Divide the untrained windows into (train, exam); None while there is nothing to train or to judge by.

    Args:
        windows: complete windows in time order. trained: those already trained on.
        counts: what each holds. min_targets: scorable events that make an exam.
    """
    pending = [window for window in windows if window not in trained]
    scorable = 0
    for at in range(len(pending) - 1, 0, -1):
        scorable += counts(pending[at]).scorable
        if scorable >= min_targets:
            train = pending[:at]
            if any(counts(window).targets for window in train):
                return tuple(train), tuple(pending[at:])
            return None  # only empty windows before the exam: they wait for company
    return None
