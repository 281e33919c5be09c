"""From a user's history to a user vector, with the encoder of one bundle.

The model is invariant to left padding and to the norm of the item vectors it reads (see `training.model`),
so a history is encoded at its own length, from the unit vectors that retrieval uses anyway.

ONNX Runtime computes it, from the graph of `serving.encoder_graph`. On one core, histories of 50 events, it takes
0.13 ms for one and 0.07 ms each in a batch of 16; eager PyTorch took 0.41 and 0.17 ms, `torch.compile` 0.24 and
0.13 ms and half a minute for every new version (`python -m tests.bench.encoders`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.encoder_graph import FORBIDDEN, encoder_graph
from streaming.rows import Int64
from training.model import FIRST, SequenceModel
from training.repeats import TIME_BUCKETS, summed_by_item

Floats = npt.NDArray[np.float32]

# its fused node takes more than twice the time of the two it stands for (ONNX Runtime 1.31): a fifth of the pass
_SLOWER = ["SkipLayerNormFusion"]


@dataclass(slots=True)  # made for each request: frozen ones take three times as long
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

    users: Floats
    repeats: list[tuple[Int64, Floats]] | None


class UserEncoder:
    """The user encoder of one bundle; thread-safe.

    Args:
        model: what to compute. threads: of one forward pass.
    """

    def __init__(self, model: SequenceModel, threads: int = 1) -> None:
        self._copies = model.repeats is not None
        self._types = model.config.num_types
        self.length = model.config.length
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            encoder_graph(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
        )

    def encode(self, histories: Sequence[EncoderInput], vectors: Floats) -> Encoded:
        """Encode B histories of items with ``vectors`` (N, d), L2-normalised."""
        B, L = len(histories), min(self.length, max(len(history.rows) for history in histories))
        rows, types, times = np.zeros((3, B, L), np.int64)
        mask = np.zeros((B, L), bool)
        for position, history in enumerate(histories):
            n = min(L, len(history.rows))
            rows[position, L - n :] = history.rows[-n:]
            types[position, L - n :] = history.types[-n:]
            times[position, L - n :] = history.times[-n:]
            mask[position, L - n :] = True
        return self._run(EncoderInput(rows, times, types), mask, vectors)

    def without_each(self, history: EncoderInput, vectors: Floats) -> Encoded:
        """Encode a history of n events n times, each time with another event left out; n >= 2.

        Times stay as they are, so the gap where the event was is the sum of the two around it.
        """
        n = min(self.length, len(history.rows))
        kept = np.arange(n)[None, :].repeat(n, axis=0)[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        newest = [part[-n:][kept] for part in (history.rows, history.times, history.types)]
        return self._run(EncoderInput(*newest), np.ones(kept.shape, bool), vectors)

    def _run(self, padded: EncoderInput, mask: npt.NDArray[np.bool_], vectors: Floats) -> Encoded:
        """Histories as rectangles (B, L), right-aligned, and where in them there are events."""
        rows, times = padded.rows, padded.times
        gaps = np.full(rows.shape, FIRST)
        gaps[:, 1:] = np.where(mask[:, :-1], buckets(times[:, 1:] - times[:, :-1]), FIRST)
        fed = {
            "items": vectors[rows] * mask[..., None],
            "types": np.where(padded.types < self._types, padded.types, 0),
            "gaps": gaps,
            "pad": np.where(mask, np.float32(0), np.float32(FORBIDDEN)),
        }
        if not self._copies:
            return Encoded(self._session.run(["users"], fed)[0], None)
        fed["elapsed"] = buckets(times[:, -1:] - times)
        users, copies = self._session.run(["users", "copies"], fed)
        copied = zip(rows, copies, mask, strict=True)
        return Encoded(users, [summed_by_item(items[here], scores[here]) for items, scores, here in copied])


def buckets(elapsed: Int64) -> Int64:
    """`training.repeats.time_buckets` in numpy, which costs a tenth at these sizes."""
    power = np.frexp(np.maximum(elapsed, 250) / 1000.0)[1].astype(np.int64)
    return np.where(elapsed <= 0, 0, np.minimum(power + 2, TIME_BUCKETS - 1))
