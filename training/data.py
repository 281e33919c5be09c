"""Windows to training sequences: flat arrays, chunks in which every target appears once, padded batches.

A window row is one user's context and new events; targets are its positions from ``max(target_from, 1)`` on, each
predicted from what stands before it. Long rows are cut into chunks of at most L inputs. Consecutive chunks overlap by
``overlap`` inputs, so a target keeps at least that much context where the row has it; the cost of a pass grows by
L / (L - overlap). Moving the cuts from pass to pass (``phase``) gives every target long contexts in some passes
without that cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.errors import DataError

_COLUMNS = ("user", "items", "times", "types", "target_from", "trust")


@dataclass(frozen=True)
class Sequences:
    """R users' event sequences laid end to end (E events in all).

    Attributes:
        items: (E,) uint64 item hashes. times: (E,) int64 epoch ms. types: (E,) uint8 codes.
        offsets: (R + 1,) int64, row r is ``[offsets[r], offsets[r + 1])``.
        target_from: (R,) int64, first new position within the row. trust: (R,) float32 loss weights.
        users: (R,) uint64 user hashes.
        weights: (E,) float32 loss weights of events as targets, times their row's trust; None = 1 for all.
    """

    items: NDArray[np.uint64]
    times: NDArray[np.int64]
    types: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    target_from: NDArray[np.int64]
    trust: NDArray[np.float32]
    users: NDArray[np.uint64]
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.target_from)

    def target_weights(self) -> NDArray[np.float32]:
        """(E,) float32: what each event counts in the loss where it is a target."""
        trust = np.repeat(self.trust, np.diff(self.offsets))
        return trust if self.weights is None else trust * self.weights

    def cumulative_weights(self) -> NDArray[np.float64]:
        """(E + 1,): what all events before each place count together."""
        return np.concatenate([[0.0], np.cumsum(self.target_weights(), dtype=np.float64)])

    def new_events(self) -> NDArray[np.bool_]:
        """(E,) bool: events at or after their row's ``target_from``."""
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return place >= np.repeat(self.target_from, np.diff(self.offsets))

    def targets(self) -> NDArray[np.bool_]:
        """(E,) bool: events that something can predict, i.e. new ones that are not their row's first."""
        mask = self.new_events()
        starts = self.offsets[:-1][np.diff(self.offsets) > 0]
        mask[starts] = False
        return mask

    def first_occurrences(self) -> NDArray[np.bool_]:
        """(E,) bool: events whose item is not among the earlier events of the same row."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        order = np.lexsort((np.arange(len(rows)), self.items, rows))
        first = np.ones(len(rows), dtype=bool)
        same = (rows[order][1:] == rows[order][:-1]) & (self.items[order][1:] == self.items[order][:-1])
        first[order[1:][same]] = False
        return first

    def take(self, rows: NDArray[np.int64]) -> Sequences:
        """The rows named, in that order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Sequences(
            self.items[at],
            self.times[at],
            self.types[at],
            offsets,
            self.target_from[rows],
            self.trust[rows],
            self.users[rows],
            None if self.weights is None else self.weights[at],
        )


def from_window(table: pa.Table) -> Sequences:
    """Sequences of one window as written by ``streaming.windows`` (columns there).

    Raises:
        DataError: a column is missing, list columns disagree in length, or a trust is no number from 0 to 1.
    """
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(
            f"expected window columns {list(_COLUMNS)}, {missing} missing; was another version writing?"
        )
    lists = {name: table[name].combine_chunks() for name in ("items", "times", "types")}
    flat = {name: np.asarray(_flatten(column)) for name, column in lists.items()}
    lengths = np.asarray(lists["items"].value_lengths()).astype(np.int64)
    for name in ("times", "types"):
        if not np.array_equal(np.asarray(lists[name].value_lengths()), lengths):
            raise DataError(
                f"expected `{name}` as long as `items` in every row of the window; the file is damaged"
            )
    trust = np.asarray(table["trust"]).astype(np.float32)
    wrong = np.flatnonzero(~((trust >= 0) & (trust <= 1)))
    if len(wrong):
        raise DataError(
            f"expected `trust` from 0 to 1 in every row of the window; got {trust[wrong[0]]} in row {wrong[0]}: "
            "the file is damaged"
        )
    return Sequences(
        items=flat["items"].astype(np.uint64),
        times=flat["times"].astype(np.int64),
        types=flat["types"].astype(np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_from=np.asarray(table["target_from"]).astype(np.int64),
        trust=trust,
        users=np.asarray(table["user"]).astype(np.uint64),
    )


def _flatten(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):  # an empty table combines to no chunk at all
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    return column.flatten()


def concat(parts: Sequence[Sequences]) -> Sequences:
    """Several windows as one; at least one is expected."""
    offsets, base = [np.zeros(1, dtype=np.int64)], 0
    for part in parts:
        offsets.append(part.offsets[1:] + base)
        base += int(part.offsets[-1])
    return Sequences(
        items=np.concatenate([part.items for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        types=np.concatenate([part.types for part in parts]),
        offsets=np.concatenate(offsets),
        target_from=np.concatenate([part.target_from for part in parts]),
        trust=np.concatenate([part.trust for part in parts]),
        users=np.concatenate([part.users for part in parts]),
        weights=_joined_weights(parts),
    )


def _joined_weights(parts: Sequence[Sequences]) -> NDArray[np.float32] | None:
    if all(part.weights is None for part in parts):
        return None
    ones = (np.ones(len(part.items), np.float32) if part.weights is None else part.weights for part in parts)
    return np.concatenate(list(ones))


@dataclass(frozen=True)
class Chunks:
    """C pieces of sequences, as positions in their flat arrays.

    Inputs are ``[start, stop)``; targets are positions ``[first_target, stop]``, target t predicted at input t - 1.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    first_target: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def take(self, at: NDArray[np.int64]) -> Chunks:
        """The chunks named, in that order."""
        return Chunks(self.start[at], self.stop[at], self.first_target[at], self.row[at])


def cut(sequences: Sequences, length: int, overlap: int = 0, phase: int = 0) -> Chunks:
    """Cut rows into chunks of at most ``length`` inputs; every target lies in exactly one chunk.

    Args:
        sequences: rows to cut.
        length: L, the most inputs a chunk may have.
        overlap: inputs shared by consecutive chunks, in [0, length).
        phase: targets in a row's first chunk (modulo length - overlap; 0 = a full one).
    """
    if not 0 <= overlap < length:
        raise ValueError(f"overlap must lie in [0, length); got overlap = {overlap}, length = {length}")
    stride = length - overlap
    short = (stride - phase % stride) % stride  # the first chunk is this many targets short
    sizes = np.diff(sequences.offsets)
    first = np.maximum(sequences.target_from, 1)
    targets = np.maximum(sizes - first, 0)
    pieces = np.where(targets > 0, -(-(targets + short) // stride), 0)
    row = np.repeat(np.arange(len(sequences)), pieces)
    k = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    base = sequences.offsets[:-1][row]
    from_ = base + first[row] + np.maximum(k * stride - short, 0)
    to = np.minimum(
        base + first[row] + (k + 1) * stride - short, base + sizes[row]
    )  # one past the last target
    keep = to > from_  # a row with fewer targets than the phase leaves nothing for its first piece
    stop = to - 1
    start = np.maximum(stop - length, base)
    return Chunks(start[keep], stop[keep], from_[keep], row[keep])


@dataclass(frozen=True)
class Batch:
    """B right-aligned chunks, L wide (the longest chunk's length).

    Attributes:
        items: (B, L) int64 rows of the item table, 0 where padded. types, times: (B, L) int64. mask: (B, L) bool.
        targets: (B, L) int64 rows to predict at each position, -1 = none.
        weights: (B, L) float32, what each target counts in the loss.
    """

    items: Tensor
    types: Tensor
    times: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))

    def first(self, rows: int) -> Batch:
        """The first so many rows."""
        return Batch(*(tensor[:rows] for tensor in vars(self).values()))


def make_batch(sequences: Sequences, rows: NDArray[np.int64], chunks: Chunks) -> Batch:
    """Pad ``chunks`` into one batch; ``rows`` (E,) int64 are the item-table rows of ``sequences.items``."""
    width = int((chunks.stop - chunks.start).max(initial=1))
    at = chunks.stop[:, None] - width + np.arange(width)[None, :]  # (B, L) flat positions
    mask = at >= chunks.start[:, None]
    safe = np.where(mask, at, 0)
    is_target = mask & (at + 1 >= chunks.first_target[:, None])
    following = np.minimum(safe + 1, max(len(rows) - 1, 0))
    return Batch(
        items=torch.from_numpy(np.where(mask, rows[safe], 0)),
        types=torch.from_numpy(np.where(mask, sequences.types[safe], 0).astype(np.int64)),
        times=torch.from_numpy(np.where(mask, sequences.times[safe], 0)),
        mask=torch.from_numpy(mask),
        targets=torch.from_numpy(np.where(is_target, rows[following], -1)),
        weights=torch.from_numpy(_weights(sequences, chunks, following)),
    )


def _weights(sequences: Sequences, chunks: Chunks, following: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, L): a chunk's trust, times the weight of the event that each position predicts."""
    trust = np.broadcast_to(sequences.trust[chunks.row][:, None], following.shape)
    return trust.copy() if sequences.weights is None else trust * sequences.weights[following]
