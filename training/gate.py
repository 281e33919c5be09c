"""The gate: is a candidate good enough, and hard enough to push around, to replace what is being served?

Both models rank the same unseen events (the *exam*), once clean and once while PGD moves the representations of the
histories to make them fail (`training.adversarial.perturb`, the function that training uses); and both are put under
a battery of attempts to have unpopular items shown (`training.battery`). The candidate is promoted if neither NDCG@10
falls below the incumbent's by more than the configured share, if the battery gains little more than with the
incumbent, and if it does not suddenly show to many what nobody asks for. Without an incumbent it has to beat the
popularity ranking. Whatever the verdict, every number and the reason are returned for `eval.json`.

Cost: (2 + steps) passes over the exam per model; 2,000 targets over 2,000 items take about a second on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.adversarial import perturb
from training.battery import pushed, run_battery, stability
from training.config import GateConfig
from training.data import Batch, Chunks, Sequences, cut, make_batch
from training.items import ItemTable
from training.losses import full_softmax
from training.metrics import Ranks, ranks_of, summary
from training.model import SequenceModel
from training.repeats import with_repeats

_LIFT_SHARE = 0.25  # of the incumbent's lift that a candidate may always add
_TOLD = 5  # pushed items in the record
_SCORES_AT_ONCE = 8_000_000  # (targets × items) floats held at a time


Cause = Literal[
    "first_model",
    "no_worse",
    "not_finite",
    "popularity",
    "ndcg",
    "attacked_ndcg",
    "pushed_item",
    "exposure",
    "overlap",
]


@dataclass(frozen=True)
class Contender:
    """A model as it would stand in serving.

    ``slots`` (N,) int64 are its id slots for the exam's items, ``text`` (N, D) its text vectors of them where it has
    its own text encoder; None = the exam's.
    """

    version: str
    model: SequenceModel
    slots: NDArray[np.int64]
    text: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Exam:
    """Unseen events to rank.

    Attributes:
        table: the N items ranked. sequences, rows: the events and their (E,) item-table rows.
        chunks: the histories examined. scored: (E,) bool, the targets that count.
        popularity: (N,) float32, the baseline's scores. name: which windows, for the record.
        unseen_only: rank against items outside the user's history, as serving does by default.
    """

    table: ItemTable
    sequences: Sequences
    rows: NDArray[np.int64]
    chunks: Chunks
    scored: NDArray[np.bool_]
    popularity: NDArray[np.float32]
    name: str
    unseen_only: bool

    @property
    def targets(self) -> int:
        """Number of events ranked."""
        return int(
            sum(
                self.scored[a : b + 1].sum()
                for a, b in zip(self.chunks.first_target, self.chunks.stop, strict=True)
            )
        )


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, why, and every number it looked at; `reason` is for people, `cause` for counting."""

    promote: bool
    cause: Cause
    reason: str
    numbers: dict[str, Any]


def scorable(sequences: Sequences, unseen_only: bool) -> NDArray[np.bool_]:
    """(E,) bool: targets the gate can score; with ``unseen_only`` those new to their user's row."""
    mask = sequences.targets()
    return mask & sequences.first_occurrences() if unseen_only else mask


def make_exam(
    sequences: Sequences,
    table: ItemTable,
    popularity: NDArray[np.float32],
    config: GateConfig,
    *,
    length: int,
    name: str,
) -> Exam:
    """An exam of at most about ``config.max_targets`` events, the same for the same window.

    Args:
        sequences: the unseen window. table: items to rank, covering the window's. popularity: (N,) baseline scores.
        config: sizes and whether repeats count. length: L, inputs the models read. name: for the record.
    """
    scored = scorable(sequences, config.unseen_only)
    chunks = cut(sequences, length, overlap=length // 2)
    worth = np.array(
        [scored[a : b + 1].sum() for a, b in zip(chunks.first_target, chunks.stop, strict=True)],
        dtype=np.int64,
    )
    order = np.random.default_rng(0).permutation(len(chunks))
    order = order[worth[order] > 0]
    enough = np.cumsum(worth[order]) - worth[order] < config.max_targets
    picked = chunks.take(np.sort(order[enough]))
    rows = table.rows_of(sequences.items)
    return Exam(table, sequences, rows, picked, scored, popularity, name, config.unseen_only)


def judge(candidate: Contender, incumbent: Contender | None, exam: Exam, config: GateConfig) -> Verdict:
    """Compare on the exam; see the module's docstring for the rule."""
    numbers: dict[str, Any] = {
        "exam": {"windows": exam.name, "targets": exam.targets, "items": len(exam.table)},
        "attack": {"epsilon": config.pgd_epsilon, "steps": config.pgd_steps},
        "tolerance": {
            "ndcg": config.ndcg_tolerance,
            "attacked_ndcg": config.attacked_ndcg_tolerance,
            "exposure_lift": config.lift_tolerance,
            "push": config.push_tolerance,
            "overlap": config.min_overlap,
        },
        "candidate": {"version": candidate.version, **_measure(candidate, exam, config)},
        "popularity": summary(_popularity_ranks(exam)),
    }
    broken = [
        name for name, weight in candidate.model.state_dict().items() if not torch.isfinite(weight).all()
    ]
    if broken:
        return Verdict(False, "not_finite", f"weights are not finite: {', '.join(broken[:3])}", numbers)
    if incumbent is None:
        return _against_popularity(numbers, config)
    numbers["incumbent"] = {"version": incumbent.version, **_measure(incumbent, exam, config)}
    mine, theirs = run_battery(candidate, exam), run_battery(incumbent, exam)
    numbers["candidate"] |= mine.numbers()
    numbers["incumbent"] |= theirs.numbers()
    numbers["stability"] = stability(mine, theirs)
    found = pushed(mine, theirs, exam, numbers["candidate"]["hit_rate@10"], config.push_tolerance)
    numbers["pushed"] = [
        {
            "item": exam.table.ids[row],
            "hash": str(exam.table.hashes[row]),
            "before": was,
            "now": now,
            "asked": n,
        }
        for row, was, now, n in found[:_TOLD]
    ]
    return _against_incumbent(numbers, config)


def _against_popularity(numbers: dict[str, Any], config: GateConfig) -> Verdict:
    mine, floor = numbers["candidate"]["ndcg@10"], numbers["popularity"]["ndcg@10"]
    comparison = f"NDCG@10 {mine:.4f} against popularity {floor:.4f}"
    if mine > floor * (1 + config.min_gain_over_popularity):
        return Verdict(True, "first_model", f"first model: {comparison}", numbers)
    needed = f"needs more than {1 + config.min_gain_over_popularity:.2f} times as much"
    return Verdict(False, "popularity", f"no better than popularity: {comparison}, {needed}", numbers)


def _against_incumbent(numbers: dict[str, Any], config: GateConfig) -> Verdict:
    mine, theirs = numbers["candidate"], numbers["incumbent"]
    checks: tuple[tuple[str, Cause, str, float], ...] = (
        ("ndcg@10", "ndcg", "NDCG@10", config.ndcg_tolerance),
        ("attacked_ndcg@10", "attacked_ndcg", "NDCG@10 under PGD", config.attacked_ndcg_tolerance),
    )
    for key, cause, label, tolerance in checks:
        floor = theirs[key] * (1 - tolerance)
        if not mine[key] >= floor:
            reason = (
                f"{label} {mine[key]:.4f} is below {floor:.4f} ({theirs['version']} has {theirs[key]:.4f}, "
            )
            return Verdict(False, cause, reason + f"tolerance {tolerance:.0%})", numbers)
    if manipulable := _easier_to_manipulate(numbers, config):
        return Verdict(False, *manipulable, numbers)
    told = ", ".join(f"{label} {mine[key]:.4f} against {theirs[key]:.4f}" for key, _, label, _ in checks)
    return Verdict(True, "no_worse", f"no worse than {theirs['version']}: {told}", numbers)


def _easier_to_manipulate(numbers: dict[str, Any], config: GateConfig) -> tuple[Cause, str] | None:
    """Why a candidate must not serve though it is good enough; None if nothing speaks against it."""
    mine, theirs = numbers["candidate"], numbers["incumbent"]
    if numbers["pushed"]:
        worst = numbers["pushed"][0]
        return "pushed_item", (
            f"item {worst['item'] or '#' + worst['hash']} is pushed: shown to {worst['now']:.0%} of users instead of "
            f"{worst['before']:.0%}, and asked for {worst['asked']} times ({len(numbers['pushed'])} such items)"
        )
    # Where a catalogue is small the battery's gains are large, and so is what they vary by.
    allowed = max(config.lift_tolerance, _LIFT_SHARE * theirs["exposure_lift"])
    if not mine["exposure_lift"] <= theirs["exposure_lift"] + allowed:
        return "exposure", (
            f"easier to manipulate: attacks gain {mine['exposure_lift']:.4f} exposure@10, with {theirs['version']} "
            f"{theirs['exposure_lift']:.4f} (tolerance {allowed:.4f})"
        )
    if not numbers["stability"] >= config.min_overlap:
        return "overlap", (
            f"lists have only {numbers['stability']:.0%} in common with those of {theirs['version']}, at least "
            f"{config.min_overlap:.0%} is asked for"
        )
    return None


def _measure(contender: Contender, exam: Exam, config: GateConfig) -> dict[str, float]:
    """Clean and attacked metrics of one model."""
    contender.model.eval()
    with torch.no_grad():
        text = exam.table.text if contender.text is None else contender.text
        slots = torch.from_numpy(contender.slots)
        items = contender.model.item_representations(torch.from_numpy(text), slots)
    clean, attacked = [], []
    length = contender.model.config.length
    size = max(1, min(config.batch_size, _SCORES_AT_ONCE // max(len(exam.table) * length, 1)))
    for at in range(0, len(exam.chunks), size):
        chunks = exam.chunks.take(np.arange(at, min(at + size, len(exam.chunks))))
        batch = make_batch(exam.sequences, exam.rows, chunks)
        clean.append(_ranks(contender.model, items, batch, chunks, exam, None))
        attacked.append(_ranks(contender.model, items, batch, chunks, exam, config))
    under_attack = {f"attacked_{name}": value for name, value in summary(_join(attacked)).items()}
    return {**summary(_join(clean)), **under_attack}


def _join(parts: list[Ranks]) -> Ranks:
    return np.concatenate(parts) if parts else np.zeros(0)


def _ranks(
    model: SequenceModel, items: Tensor, batch: Batch, chunks: Chunks, exam: Exam, attack: GateConfig | None
) -> Ranks:
    """Ranks of the scored targets of one batch, under PGD if ``attack`` is given."""
    history = items[batch.items] * batch.mask.unsqueeze(-1)  # (B, L, d)
    at = chunks.stop[:, None] - batch.mask.shape[1] + np.arange(batch.mask.shape[1])  # flat input positions
    wanted = batch.targets >= 0
    wanted &= torch.from_numpy(exam.scored[np.minimum(np.maximum(at, 0) + 1, len(exam.scored) - 1)])
    targets = batch.targets[wanted]

    def loss_of(moved: Tensor) -> Tensor:
        users = model(moved, batch.types, batch.times, batch.mask)[wanted]
        return full_softmax(model, users, items, targets).sum()

    if attack is not None:
        history = history + perturb(loss_of, history, epsilon=attack.pgd_epsilon, steps=attack.pgd_steps)
    with torch.no_grad():
        encoded = model(history, batch.types, batch.times, batch.mask)
        users, copies = encoded[wanted], None
        if model.repeats is not None:
            copies = model.repeats(encoded, history, batch.times, batch.mask)[wanted]
    rows = wanted.nonzero(as_tuple=True)[0]  # (T,) of the batch
    places = (at + 1)[wanted.numpy()]
    starts = exam.sequences.offsets[:-1][np.broadcast_to(chunks.row[:, None], at.shape)[wanted.numpy()]]
    ranks, stride = [], max(1, _SCORES_AT_ONCE // max(len(exam.table), 1))
    for k in range(0, len(targets), stride):
        scores = model.scores(users[k : k + stride], items).detach()
        if copies is not None:
            scores = with_repeats(scores, copies[k : k + stride], batch.items[rows[k : k + stride]])
        excluded = _histories(exam, starts[k : k + stride], places[k : k + stride])
        ranks.append(ranks_of(scores, targets[k : k + stride], excluded))
    return _join(ranks)


def _histories(exam: Exam, starts: NDArray[np.int64], places: NDArray[np.int64]) -> Tensor | None:
    """(T, N) bool: items that each target's user had before it; None if repeats count."""
    if not exam.unseen_only:
        return None
    seen = np.zeros((len(places), len(exam.table)), dtype=bool)
    for query, (start, place) in enumerate(zip(starts, places, strict=True)):
        seen[query, exam.rows[start:place]] = True
    return torch.from_numpy(seen)


def _popularity_ranks(exam: Exam) -> Ranks:
    """Ranks of the same targets by popularity alone."""
    scores = torch.from_numpy(exam.popularity)
    ranks = []
    chunks = exam.chunks
    for first, stop, row in zip(chunks.first_target, chunks.stop, chunks.row, strict=True):
        places = np.arange(first, stop + 1)
        places = places[exam.scored[places]]
        starts = np.full(len(places), exam.sequences.offsets[row])
        excluded = _histories(exam, starts, places)
        targets = torch.from_numpy(exam.rows[places])
        ranks.append(ranks_of(scores.expand(len(places), -1), targets, excluded))
    return _join(ranks)
