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
    events = readable[likeness.argmax(axis=1)].tolist()
    alike = (likeness.max(axis=1) > 0).tolist()
    new = (
        (snapshot.table.learned_rows[rows] < 0).tolist()
        if snapshot.model is not None
        else [False] * len(rows)
    )
    said: dict[int, tuple[int, str, str]] = {}  # by event: its row, why it is shown itself, why others are
    for event in set(events):
        row = int(history_rows[event])
        done = deed(history, event, event_types)
        said[event] = row, f"you {done}", f"similar to {titles[row]}, which you {done}"
    explained = []
    for row, event, is_alike, is_new in zip(rows.tolist(), events, alike, new, strict=True):
        of_event, same, similar = said[event]
        why = same if of_event == row else similar if is_alike else _UNTOLD
        explained.append(["new item, matched by its text", why] if is_new else [why])
    return explained


def deed(history: History, event: int, event_types: Sequence[str]) -> str:
    """Say what was done and when, counted from the newest event: event time may lie years back."""
    name = event_types[history.types[event]]
    verb = _VERBS.get(name, f"touched ({name})")
    if event == len(history) - 1:
        return f"{verb} last"
    age = int(history.times[-1] - history.times[event])
    return f"{verb} {span(age)} before the last one" if age >= 1000 else f"{verb} together with the last one"
