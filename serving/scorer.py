"""From a user's history to a user vector, with the encoder of one bundle.

The model is invariant to left padding and to the norm of the item vectors it reads (see `training.model`),
so a history is encoded at its own length, from the unit vectors that retrieval uses anyway.

Cost: 0.6 ms for one history of 50 events on one core, most of it the fixed price of some forty small
operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from streaming.rows import Int64
from training.model import SequenceModel
from training.repeats import summed_by_item


@dataclass(frozen=True)
class EncoderInput:
    """One history in terms of the item table; all of length n >= 1, newest last."""

    rows: Int64  # rows of the vector matrix
    times: Int64  # epoch ms
    types: Int64  # type codes of the bundle


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of B histories.

    Attributes:
        users: (B, d) float32 of unit length.
        repeats: per history its items, ascending rows, and their scores (float32, on the scale of the item scores)
            as repeats; None where the model does not copy.
    """

    users: torch.Tensor
    repeats: list[tuple[Int64, np.ndarray]] | None


class Scorer:
    """Encodes histories.

    Args:
        model: in evaluation mode.
        vectors: (N, d) float32, L2-normalised item vectors.
    """

    def __init__(self, model: SequenceModel, vectors: torch.Tensor) -> None:
        self._model = model
        self._vectors = vectors
        self.length = model.config.length

    def encode(self, histories: Sequence[EncoderInput]) -> Encoded:
        """Encode B histories."""
        B, L = len(histories), min(self.length, max(len(history.rows) for history in histories))
        rows_BL, types_BL, times_BL = np.zeros((3, B, L), np.int64)
        mask_BL = np.zeros((B, L), bool)
        for position, history in enumerate(histories):
            n = min(L, len(history.rows))
            rows_BL[position, L - n :] = history.rows[-n:]
            types_BL[position, L - n :] = history.types[-n:]
            times_BL[position, L - n :] = history.times[-n:]
            mask_BL[position, L - n :] = True
        with torch.inference_mode():
            mask = torch.from_numpy(mask_BL)
            items_BLd = self._vectors[torch.from_numpy(rows_BL)] * mask.unsqueeze(-1)
            times = torch.from_numpy(times_BL)
            users_B1d = self._model(items_BLd, torch.from_numpy(types_BL), times, mask)[:, -1:]
            users = normalize(users_B1d[:, 0].float(), dim=-1)
            if self._model.repeats is None:
                return Encoded(users, None)
            copies_BL = self._model.repeats(users_B1d, items_BLd, times, mask)[:, 0].numpy()
        copied = zip(rows_BL, copies_BL, mask_BL, strict=True)
        return Encoded(users, [summed_by_item(rows[here], scores[here]) for rows, scores, here in copied])


def text_representations(model: SequenceModel, text: np.ndarray) -> torch.Tensor:
    """Represent items by their text alone: (N, D) text vectors give (N, d) unit vectors."""
    with torch.inference_mode():
        slots = torch.full((len(text),), -1, dtype=torch.int64)
        return normalize(model.item_representations(torch.from_numpy(text), slots), dim=-1)
