"""What the learner must remember beside weights: windows trained, id slots, popularity, the round in hand.

Saved inside every training checkpoint, so weights and memory are always of the same moment: a worker that comes back
from a checkpoint trains what that checkpoint has not seen, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import Sequences
from training.items import ItemSlots
from training.plan import Plan


class PopularityCounts:
    """Exponentially decayed event counts per item, as of one event time."""

    def __init__(self, half_life_ms: float) -> None:
        self.half_life_ms = half_life_ms
        self.hashes: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.counts: NDArray[np.float64] = np.zeros(0, dtype=np.float64)
        self.at_ms = 0

    def add(self, items: NDArray[np.uint64], times: NDArray[np.int64]) -> None:
        """Count events: (n,) hashes and their times, epoch ms."""
        if len(items) == 0:
            return
        now = max(self.at_ms, int(times.max()))
        aged = self.counts * 0.5 ** ((now - self.at_ms) / self.half_life_ms)
        weights = 0.5 ** ((now - times) / self.half_life_ms)
        self.hashes, where = np.unique(np.concatenate([self.hashes, items]), return_inverse=True)
        self.counts = np.bincount(where, weights=np.concatenate([aged, weights])).astype(np.float64)
        self.at_ms = now

    def copy(self) -> PopularityCounts:
        """Counts that go their own way from here."""
        other = PopularityCounts(self.half_life_ms)
        other.hashes, other.counts, other.at_ms = self.hashes, self.counts, self.at_ms
        return other

    def shares(self, hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """(N,) float32 share of each of ``hashes`` in all counts; 0 where unknown."""
        if len(self.hashes) == 0:
            return np.zeros(len(hashes), dtype=np.float32)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        known = np.where(self.hashes[at] == hashes, self.counts[at], 0.0)
        return np.asarray(known / max(self.counts.sum(), 1e-12), dtype=np.float32)


@dataclass
class Progress:
    """See the module's docstring.

    Attributes:
        number: rounds done so far; round n makes version v000n.
        step: optimiser steps since the beginning.
        trained: window start (epoch ms) -> version that trained on it.
        weights_of: version whose weights the engine holds; None before the first round.
        tuned: what of the text encoder the checkpoint's engine trains, as ``TrainingSettings.tuned`` names it.
        plan: the round whose weights the checkpoint holds; judged again if its verdict was lost.
    """

    slots: ItemSlots
    popularity: PopularityCounts
    number: int = 0
    step: int = 0
    trained: dict[int, str] = field(default_factory=dict)
    weights_of: str | None = None
    plan: Plan | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tuned: str = "frozen"

    @property
    def next_version(self) -> str:
        """Name of the version that the next round will make."""
        return f"v{self.number + 1:04d}"

    def finish(self, plan: Plan, sequences: Sequences, training: dict[str, Any]) -> None:
        """Enter a trained round; ``sequences`` are its new windows, ``training`` its figures."""
        new = sequences.new_events()
        self.popularity.add(sequences.items[new], sequences.times[new])
        self.trained.update(dict.fromkeys(plan.train, plan.version))
        self.number += 1
        self.weights_of = plan.version
        self.plan, self.training = plan, training

    def save(self, folder: Path) -> None:
        """Write progress.json and progress.npz into ``folder``."""
        record = {
            "number": self.number,
            "step": self.step,
            "trained": list(self.trained.items()),
            "weights_of": self.weights_of,
            "plan": self.plan.to_json() if self.plan else None,
            "shape": self.shape,
            "training": self.training,
            "tuned": self.tuned,
            "popularity": {"at_ms": self.popularity.at_ms, "half_life_ms": self.popularity.half_life_ms},
        }
        (folder / "progress.json").write_text(json.dumps(record))
        np.savez(
            folder / "progress.npz",
            slot_hashes=self.slots.hashes,
            slot_used=self.slots.used,
            popularity_hashes=self.popularity.hashes,
            popularity_counts=self.popularity.counts,
        )

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Read what :meth:`save` wrote."""
        record = json.loads((folder / "progress.json").read_text())
        with np.load(folder / "progress.npz", allow_pickle=False) as arrays:
            popularity = PopularityCounts(record["popularity"]["half_life_ms"])
            popularity.hashes, popularity.counts = arrays["popularity_hashes"], arrays["popularity_counts"]
            slots = ItemSlots.from_state(arrays["slot_hashes"], arrays["slot_used"])
        popularity.at_ms = record["popularity"]["at_ms"]
        return cls(
            slots=slots,
            popularity=popularity,
            number=record["number"],
            step=record["step"],
            trained={int(start): version for start, version in record["trained"]},
            weights_of=record["weights_of"],
            plan=Plan.from_json(record["plan"]) if record["plan"] else None,
            shape=record["shape"],
            training=record["training"],
            tuned=record.get("tuned", "frozen"),
        )
