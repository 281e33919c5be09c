"""The gate's battery: fixed, seeded attempts to have items shown that nobody asks for, on a model as it would serve.

appended    an attacker can add events to a user's history (a click-jacked page, a shared account).
reworded    an attacker can word an item's text: its vector moves towards that of popular items, by a fixed angle.

Beside them stands what the model shows: the share of users who see each item among their first ten. An item that a
candidate suddenly shows to many, and that nobody of the exam asks for, was pushed, however that was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.attacks.sequential import AppendAttack
from training.data import Batch, make_batch
from training.model import SequenceModel
from training.text_guard import limited

if TYPE_CHECKING:
    from training.gate import Contender, Exam

TOP = 10
_USERS, _TARGETS = 128, 5
_TAIL = 0.5  # of the items by popularity, the rarer half, that targets are drawn from
_EVENTS, _CHECKED = 1, 4  # appended to a history, and candidates tried for each: this runs in every round
_DEGREES = 30.0  # that a reworded item's text vector moves
_MOST_USERS = 0.5  # that an item nobody asks for may come to, however little the model is worth
_POPULAR = 20  # items whose mean vector it moves to


@dataclass(frozen=True)
class Battery:
    """One model under the battery.

    Attributes:
        shown: (N,) share of users who see each item among their first ten. top: (U, 10) rows of what each sees.
        exposure: of the targets, as a share of all places: ``clean``, ``appended``, ``reworded``.
    """

    shown: NDArray[np.float64]
    top: NDArray[np.int64]
    exposure: dict[str, float]

    @property
    def lift(self) -> float:
        """The largest gain in exposure that an attack of the battery brings."""
        return max(self.exposure[kind] for kind in ("appended", "reworded")) - self.exposure["clean"]

    def numbers(self) -> dict[str, Any]:
        """For the record."""
        return {"exposure@10": self.exposure, "exposure_lift": self.lift}


def run_battery(contender: Contender, exam: Exam) -> Battery:
    """Show lists to the users of the exam, clean and attacked; the same users and targets for the same exam."""
    chunks = exam.chunks.take(np.arange(min(len(exam.chunks), _USERS)))
    batch = make_batch(exam.sequences, exam.rows, chunks)
    targets = torch.from_numpy(targets_of(exam))
    model = contender.model.eval()
    text = exam.table.text if contender.text is None else contender.text
    slots = torch.from_numpy(contender.slots)
    with torch.no_grad():
        items = model.item_representations(torch.from_numpy(text), slots)
    clean = _lists(model, items, batch, exam)
    exposure = {"clean": _exposure(clean, targets)}
    attacked = AppendAttack(_CHECKED).attack(model, items, batch, targets, _EVENTS) if len(targets) else batch
    exposure["appended"] = _exposure(_lists(model, items, attacked, exam), targets)
    with torch.no_grad():
        reworded = model.item_representations(torch.from_numpy(_reworded(text, exam, targets)), slots)
    # Histories hold what they held: only what is ranked has changed.
    exposure["reworded"] = _exposure(_lists(model, items, batch, exam, reworded), targets)
    shown = np.bincount(clean.flatten(), minlength=len(exam.table)) / max(len(clean), 1)
    return Battery(shown, clean, exposure)


def targets_of(exam: Exam) -> NDArray[np.int64]:
    """(T,) rows of items from the rarer half that have a text; the same for the same exam."""
    known = np.flatnonzero(exam.table.text.any(axis=1))
    rare = known[np.argsort(exam.popularity[known], kind="stable")][: max(round(_TAIL * len(known)), 1)]
    picked = np.random.default_rng(0).choice(rare, min(_TARGETS, len(rare)), replace=False)
    return np.sort(picked)


@torch.no_grad()
def _lists(
    model: SequenceModel, items: Tensor, batch: Batch, exam: Exam, ranked: Tensor | None = None
) -> NDArray[np.int64]:
    history = items[batch.items] * batch.mask.unsqueeze(-1)
    candidates = items if ranked is None else ranked
    scores = model.next_scores(history, batch.types, batch.times, batch.mask, candidates, batch.items)
    if exam.unseen_only:
        seen = torch.zeros_like(scores, dtype=torch.bool)
        seen.scatter_(1, batch.items, batch.mask)
        scores = scores.masked_fill(seen, float("-inf"))
    found: NDArray[np.int64] = scores.topk(min(TOP, scores.shape[1]), dim=1).indices.numpy()
    return found


def _exposure(lists: NDArray[np.int64], targets: Tensor) -> float:
    """Share of all places that the targets take."""
    return float(np.isin(lists, targets.numpy()).mean()) if lists.size else 0.0


def _reworded(text: NDArray[np.float32], exam: Exam, targets: Tensor) -> NDArray[np.float32]:
    changed = text.copy()
    goal = text[np.argsort(-exam.popularity, kind="stable")[:_POPULAR]].mean(axis=0)
    at = targets.numpy()
    changed[at] = limited(text[at], np.broadcast_to(goal, (len(at), len(goal))).copy(), _DEGREES)
    return changed


def stability(one: Battery, other: Battery) -> float:
    """Mean share of items that the lists of two models have in common."""
    if not one.top.size:
        return 1.0
    return float((one.top[:, :, None] == other.top[:, None, :]).any(axis=2).mean())


def pushed(
    candidate: Battery, incumbent: Battery, exam: Exam, hit_rate: float, most: float
) -> list[tuple[int, float, float, int]]:
    """Items that the candidate shows to many more users than the incumbent does, though next to nobody asks for them.

    Args:
        hit_rate: the candidate's HR@10: a place that it gives away is asked for that often, over ten.
        most: share of users by which an item may gain without being looked at.

    Returns:
        (row, share of users before, and now, times asked for) of each, worst first.
    """
    asked = np.bincount(exam.rows[exam.scored], minlength=len(exam.table))
    expected = candidate.shown * int(exam.scored.sum()) * hit_rate / TOP
    gained = candidate.shown - incumbent.shown
    # One in a hundred items shown as often would be asked for so seldom by chance (Poisson, and nobody asks).
    silent = asked <= np.maximum(expected - 2.6 * np.sqrt(expected), -1)
    silent |= (asked == 0) & (expected > 4.6)
    # A weak model's places are hardly ever asked for, and chance explains all: half of all users is too much anyway.
    silent |= (asked == 0) & (gained > _MOST_USERS)
    rows = np.flatnonzero((gained > most) & silent)
    rows = rows[np.argsort(-gained[rows], kind="stable")]
    return [
        (int(row), float(incumbent.shown[row]), float(candidate.shown[row]), int(asked[row])) for row in rows
    ]
