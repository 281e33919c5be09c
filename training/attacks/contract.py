"""What every attack is given and what it gives back.

An attacker knows the public stream (`View`): who did what, when, and the catalogue. It may add so many users within
one span of time (`Budget`). It hands in fake users as sequences (`Poison`), which can be trained on like any window
or be sent to a topic as events.

Legend: E events, R users, N items, T targets, U fake users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from training.data import Sequences

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """The stream as an outsider sees it.

    Attributes:
        sequences: honest users, one row each, in time order. codes: (E,) int64 item of each event, below N.
        hashes: (N,) uint64 of the items. categories: (M, 2) int64 pairs of an item and one of its categories.
    """

    sequences: Sequences
    codes: Int64
    hashes: NDArray[np.uint64]
    categories: Int64

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.hashes)

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """(N,) events of each item."""
        return np.bincount(self.codes, minlength=self.num_items).astype(np.float64)

    @cached_property
    def lengths(self) -> Int64:
        """(R',) events per user who did anything."""
        lengths = np.diff(self.sequences.offsets)
        return lengths[lengths > 0]

    @cached_property
    def gaps(self) -> Int64:
        """Milliseconds between consecutive events of one user, of all users."""
        gaps = np.diff(self.sequences.times)
        ends = self.sequences.offsets[1:-1] - 1  # between two rows is no gap
        inside: Int64 = np.delete(gaps, ends[(ends >= 0) & (ends < len(gaps))])
        return inside

    def alike(self, items: Int64) -> NDArray[np.float64]:
        """(N,) how many categories of ``items`` (T,) each item shares, one of several of them several times."""
        item, category = self.categories.T
        theirs = np.bincount(category[np.isin(item, items)], minlength=int(category.max(initial=-1)) + 1)
        return np.bincount(item, theirs[category], self.num_items).astype(np.float64)

    def beside(self, items: Int64) -> NDArray[np.float64]:
        """(N,) how many of the users of each item also had one of ``items`` (T,)."""
        rows = np.repeat(np.arange(len(self.sequences)), np.diff(self.sequences.offsets))
        pairs = np.unique(np.stack([rows, self.codes]), axis=1)
        had = np.zeros(len(self.sequences), bool)
        had[pairs[0][np.isin(pairs[1], items)]] = True
        return np.bincount(pairs[1][had[pairs[0]]], minlength=self.num_items).astype(np.float64)


@dataclass(frozen=True)
class Budget:
    """What an attacker can spend: fake users, and the span of time (epoch ms) in which they act."""

    users: int
    start_ms: int
    stop_ms: int

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"users must be at least 1; got {self.users}")
        if self.stop_ms <= self.start_ms:
            raise ValueError(f"stop_ms must lie behind start_ms = {self.start_ms}; got {self.stop_ms}")


@dataclass(frozen=True)
class Poison:
    """What an attack adds to a stream: U fake users, one row each; their item codes (E,) beside."""

    sequences: Sequences
    codes: Int64


class Attack(Protocol):
    """A named way to add fake users."""

    name: ClassVar[str]
    reference: ClassVar[str]
    promotes: ClassVar[bool]  # targets up; else down

    def poison(self, view: View, targets: Int64, budget: Budget, rng: np.random.Generator) -> Poison:
        """Fake users for these targets (T,) item codes; the same for the same generator state."""


def fake_users(
    profiles: Sequence[Int64], view: View, budget: Budget, rng: np.random.Generator, *, event_type: int
) -> Poison:
    """Profiles (item codes in order, one array per fake user) as users who act at the pace of real ones.

    Gaps are drawn from those of honest users; who would not be done by the end of the span is sped up.
    """
    lengths = np.array([len(profile) for profile in profiles], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    row = np.repeat(np.arange(len(profiles)), lengths)
    span = budget.stop_ms - budget.start_ms
    gaps = rng.choice(view.gaps, offsets[-1]) if len(view.gaps) else np.zeros(offsets[-1], np.int64)
    gaps[offsets[:-1]] = 0
    elapsed = np.cumsum(gaps)
    elapsed = (elapsed - elapsed[offsets[:-1]][row]).astype(np.float64)
    lasts = elapsed[offsets[1:] - 1]
    elapsed *= np.minimum(1.0, (span - 1) / np.maximum(lasts, 1))[row]
    begins = rng.random(len(profiles)) * (span - 1 - elapsed[offsets[1:] - 1])
    codes = np.concatenate(profiles).astype(np.int64)
    taken = set(view.sequences.users.tolist())
    users: list[int] = []
    while len(users) < len(profiles):
        name = int(rng.integers(1, 2**63))
        if name not in taken:
            taken.add(name)
            users.append(name)
    sequences = Sequences(
        items=view.hashes[codes],
        times=budget.start_ms + (begins[row] + elapsed).astype(np.int64),
        types=np.full(len(codes), event_type, np.uint8),
        offsets=offsets,
        target_from=np.ones(len(profiles), np.int64),
        trust=np.ones(len(profiles), np.float32),
        users=np.array(users, np.uint64),
    )
    return Poison(sequences, codes)
