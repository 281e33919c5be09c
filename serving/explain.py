"""Which past events moved an item, by attribution through the model.

Every event of the history is left out once, the rest is encoded again, and what the item's score loses is the
event's effect: occlusion (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2), the one attribution whose numbers
mean just what they say. A history of n events costs one forward pass of n histories, some 4 ms for 50 on one core.
Effects of events that say the same do not add up to the score: each alone changes little where the other remains.
"""

from collections.abc import Sequence

import numpy as np

from serving.describe import iso
from serving.history import History
from serving.models import Contribution
from serving.policy import deed
from serving.snapshot import Snapshot
from serving.user_encoder import Encoded, EncoderInput, Floats
from streaming.rows import Int64

_TOLD = 3  # events named for an item


def explain(
    snapshot: Snapshot,
    told: EncoderInput,
    rows: Int64,
    history: History,
    events: Int64,
    event_types: Sequence[str],
) -> list[list[Contribution]]:
    """Tell the events that moved items most, strongest first.

    Args:
        snapshot: with an encoder. told: what the encoder read, n events. rows: (k,) the items to be explained.
        history: what the user did. events: (n,) places in it of what the encoder read.
        event_types: names of the type codes.
    """
    found = effects(snapshot, told, rows)
    events = events[-len(found) :]
    titles, ids = snapshot.table.titles, snapshot.table.ids
    explained = []
    for column in found.T:
        strongest = np.lexsort((-events, -np.abs(column).round(4)))[:_TOLD]  # the newest of equals first
        said = []
        for place in strongest:
            event, row = int(events[place]), int(told.rows[len(told.rows) - len(found) + place])
            effect, title = round(float(column[place]), 4), titles[row] or "an item without a name"
            said.append(
                Contribution(
                    item_id=ids[row] or None,
                    title=titles[row],
                    type=event_types[history.types[event]],
                    time=iso(int(history.times[event])),
                    effect=effect,
                    text=f"you {deed(history, event, event_types)}: {title} ({effect:+.2f})",
                )
            )
        explained.append(said)
    return explained


def effects(snapshot: Snapshot, told: EncoderInput, rows: Int64) -> Floats:
    """(n, k): what each of the newest n events adds to the score of each item; a single event adds all of it."""
    encoder, vectors = snapshot.encoder, snapshot.vectors
    if encoder is None or snapshot.model is None:
        raise ValueError("there is no model to attribute to")
    scale = snapshot.model.bundle.config.scale
    whole = _scores(encoder.encode([told], vectors), vectors, rows, scale)
    if min(len(told.rows), encoder.length) < 2:
        return whole
    return whole - _scores(encoder.without_each(told, vectors), vectors, rows, scale)


def _scores(encoded: Encoded, vectors: Floats, rows: Int64, scale: float) -> Floats:
    """(B, k) scores of items: what the history holds by its copies, where the model copies."""
    scores: Floats = (encoded.users @ vectors[rows].T) * np.float32(scale)
    for place, (held, copied) in enumerate(encoded.repeats or ()):
        at = np.searchsorted(held, rows).clip(max=len(held) - 1)
        scores[place] = np.where(held[at] == rows, copied[at], scores[place])
    return scores
