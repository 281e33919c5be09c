"""Items that a user had before: left out of what is learned, or predicted by copying from the history.

Legend: B rows, L positions of a history, Q query positions (the last Q of the row), d width, T targets, N items.

With ``model.repeats = "copied"`` the next item is either *new* to the user, scored by its cosine, or a *repeat*,
scored by pointing back at the positions of the history that hold it, both in one softmax (CopyNet: Gu et al. 2016,
arXiv:1603.06393, eq. 4-6; the split into repeat and explore: RepeatNet, Ren et al. 2019, arXiv:1812.02646). A
position's score depends on the user now, the item there, how many events ago and how long ago that was; an item that
stands at several positions gets the log of the sum of their exponentials. So the cost of repeats does not depend on
the size of the catalogue.

With ``"excluded"`` there are no repeats to predict: only items new to the user are targets, and no item of the
history takes part in the softmax. That is the question that serving asks where it leaves out what a user has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

TIME_BUCKETS = 40
OUT = (
    -1e9
)  # the score of what takes no part; finite: a log-sum over nothing else keeps a gradient without NaN


def time_buckets(elapsed: Tensor) -> Tensor:
    """Bucket durations: about one bucket per factor of two.

    Args:
        elapsed: int64 milliseconds of any shape.

    Returns:
        int64 of that shape in [0, TIME_BUCKETS): 0 for no time at all or less, otherwise
        ``3 + floor(log2(seconds))``, at least 1.
    """
    seconds = elapsed.to(torch.float64) / 1000.0
    power = torch.frexp(seconds.clamp(min=0.25)).exponent  # seconds < 2**power
    return (power + 2).clamp(max=TIME_BUCKETS - 1).masked_fill(elapsed <= 0, 0).long()


class RepeatHead(nn.Module):
    """Scores of the positions of a history as places to copy the next item from.

    Args:
        dim: d, width of user and item representations. length: the longest history.
    """

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.user_bias = nn.Linear(dim, 1)
        self.distance_bias = nn.Embedding(length, 1)
        self.time_bias = nn.Embedding(TIME_BUCKETS, 1)

    def forward(self, users: Tensor, items: Tensor, times: Tensor, mask: Tensor) -> Tensor:
        """Score every position up to the query's own.

        Args:
            users: (B, Q, d) outputs of the user encoder at the last Q positions.
            items: (B, L, d) item representations of any positive norm. times: (B, L) epoch ms.
            mask: (B, L) bool, True where there is an event.

        Returns:
            (B, Q, L) float32 on the scale of the item scores; far below all others where nothing can be copied.
        """
        d, L, Q = users.shape[-1], items.shape[1], users.shape[1]
        keys = self.key(fn.normalize(items, dim=-1) * d**0.5)
        scores = self.query(users) @ keys.transpose(1, 2) / d**0.5 + self.user_bias(users)
        at = torch.arange(L, device=mask.device)
        distance = at[L - Q :, None] - at[None, :]  # (Q, L)
        elapsed = time_buckets(times[:, L - Q :, None] - times[:, None, :])
        scores = scores + self.distance_bias(distance.clamp(min=0)).squeeze(-1)
        scores = scores + self.time_bias(elapsed).squeeze(-1)
        nowhere = ~(mask[:, None, :] & (distance >= 0))
        copies: Tensor = scores.float().masked_fill(nowhere, OUT)
        return copies


@dataclass(frozen=True)
class Past:
    """Which items stand where in the histories of a batch, for T targets in them.

    Attributes:
        first: (B, N) int16, the first position of each item in each row; L where it is not in it.
        row, place: (T,) int64, the position that each target is predicted at.
        copies: (T, L) scores of each target's history as places to copy from; None = nothing is copied.
        same: (T, L) bool, positions of any target's row that hold the target.
    """

    first: Tensor
    row: Tensor
    place: Tensor
    copies: Tensor | None = None
    same: Tensor | None = None

    def holds(self, items: Tensor) -> Tensor:
        """(T, C) bool for candidates (C,): whether the history of each target holds each."""
        held: Tensor = self.first[:, items][self.row] <= self.place[:, None].to(self.first.dtype)
        return held

    def holds_own(self, targets: Tensor) -> Tensor:
        """(T,) bool for one item (T,) per target: whether its history holds it."""
        return self.first[self.row, targets] <= self.place

    def summed(self, new: Tensor, own: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Add the scores of repeats to those of new items.

        Args:
            new: (T,) log of the sum of all new items' exponentials. own: (T,) score of each target as a new item.
            targets: (T,) items.

        Returns:
            (T,) log of the sum with the repeats, and the score of each target as what it is.
        """
        if self.copies is None or self.same is None:
            return new, own
        total = torch.logaddexp(new, torch.logsumexp(self.copies, dim=1))
        copied = torch.logsumexp(self.copies.masked_fill(~self.same, OUT), dim=1)
        return total, torch.where(self.holds_own(targets), copied, own)


def past_of(items: Tensor, mask: Tensor, wanted: Tensor, count: int) -> Past:
    """See `Past`.

    Args:
        items: (B, L) int64 item rows below ``count``. mask, wanted: (B, L) bool, events and where targets are asked.
    """
    B, L = items.shape
    place = torch.arange(L, device=items.device, dtype=torch.int16).expand(B, L)
    first = torch.full((B, count), L, device=items.device, dtype=torch.int16)
    first.scatter_reduce_(1, items, place.masked_fill(~mask, L), "amin")
    row, at = wanted.nonzero(as_tuple=True)
    return Past(first, row, at)


def only_new(past: Past, targets: Tensor) -> tuple[Past, Tensor]:
    """The past of those targets (T,) that are new to their users, and which they are: (T,) bool."""
    new = ~past.holds_own(targets)
    return Past(past.first, past.row[new], past.place[new]), new


def with_repeats(scores: Tensor, copies: Tensor, rows: Tensor) -> Tensor:
    """Item scores in which what the history holds is scored by copying.

    Args:
        scores: (B, N). copies: (B, L) from `RepeatHead`, one query per row. rows: (B, L) int64, the item at each
            position; any where nothing can be copied.
    """
    best = torch.full_like(scores, OUT).scatter_reduce_(1, rows, copies, "amax")
    summed = torch.zeros_like(scores).scatter_add_(1, rows, (copies - best.gather(1, rows)).exp())
    return torch.where(best > OUT, best + summed.log(), scores)


def summed_by_item(
    rows: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What `with_repeats` does to one history: its distinct items, ascending, with the score of each.

    Args:
        rows: (n,) items at the positions. scores: (n,) of the positions.
    """
    distinct, place = np.unique(rows, return_inverse=True)
    best = np.full(len(distinct), OUT)
    np.maximum.at(best, place, scores)
    return distinct, (best + np.log(np.bincount(place, np.exp(scores - best[place])))).astype(np.float32)
