"""What may be shown, and why it is shown."""

from collections.abc import Sequence

import numpy as np

from serving.history import History
from serving.snapshot import Snapshot
from streaming.rows import Int64

_VERBS = {
    "view": "viewed",
    "click": "clicked",
    "like": "liked",
    "rating": "rated",
    "cart": "put in the cart",
    "purchase": "bought",
}
_UNTOLD = "fits what you did lately"
_SPANS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))


def span(milliseconds: int) -> str:
    """Say a duration in its largest whole unit: 200000 → "3 min"."""
    for size, unit in _SPANS:
        if milliseconds >= size:
            return f"{milliseconds // size} {unit}"
    return "moments"


def popular_reasons(snapshot: Snapshot, rows: Int64) -> list[list[str]]:
    """Reasons for items chosen without a history."""
    known = (
        "popular now" if snapshot.popularity.any() else "from the catalogue: no activity has been counted yet"
    )
    return [
        [known if snapshot.popularity[row] > 0 or known != "popular now" else "in the catalogue"]
        for row in rows
    ]


def reasons(
    snapshot: Snapshot, rows: Int64, history: History, history_rows: Int64, event_types: Sequence[str]
) -> list[list[str]]:
    """Name, for each item, the item of the history that is most like it in the eyes of the model.

    Args:
        snapshot: what the answer is made from.
        rows: (k,) the items to be explained.
        history: n events, newest last.
        history_rows: (n,) their rows in the item table, -1 for unknown ones.
        event_types: names of the type codes.
    """
    if not len(rows):
        return []
    titles = snapshot.table.titles
    told = np.flatnonzero((history_rows >= 0) & snapshot.tellable[history_rows])
    if not len(told):
        return [[_UNTOLD] for _ in rows]
    readable = told[::-1]  # newest first: it wins ties
    vectors = snapshot.vectors
    likeness = vectors[rows] @ vectors[history_rows[readable]].T  # (k, n)
    nearest = likeness.argmax(axis=1)
    events = readable[nearest]
    rows_of_events = history_rows[events]
    alike = np.take_along_axis(likeness, nearest[:, None], axis=1)[:, 0] > 0
    new = snapshot.table.learned_rows[rows] < 0 if snapshot.model is not None else np.zeros(len(rows), bool)
    deeds = {event: deed(history, event, event_types) for event in set(events.tolist())}
    explained = []
    for event, of_event, same, is_alike, is_new in zip(
        events.tolist(),
        rows_of_events.tolist(),
        (rows_of_events == rows).tolist(),
        alike.tolist(),
        new.tolist(),
        strict=True,
    ):
        said = ["new item, matched by its text"] if is_new else []
        if same:
            said.append(f"you {deeds[event]}")
        elif is_alike:
            said.append(f"similar to {titles[of_event]}, which you {deeds[event]}")
        else:
            said.append(_UNTOLD)
        explained.append(said)
    return explained


def deed(history: History, event: int, event_types: Sequence[str]) -> str:
    """Say what was done and when, counted from the newest event: event time may lie years back."""
    name = event_types[history.types[event]]
    verb = _VERBS.get(name, f"touched ({name})")
    if event == len(history) - 1:
        return f"{verb} last"
    age = int(history.times[-1] - history.times[event])
    return f"{verb} {span(age)} before the last one" if age >= 1000 else f"{verb} together with the last one"
