"""One request on its way through the stages: state, encode, retrieve, policy."""

from dataclasses import dataclass

import numpy as np

from serving.ask import Ask
from serving.history import History
from serving.items import Bools
from serving.models import Recommendations, UserState
from serving.snapshot import Snapshot
from serving.user_encoder import EncoderInput
from streaming.rows import Int64


@dataclass(slots=True)  # made for each request: frozen ones take three times as long
class Answered:
    """An answer and its entity tag.

    Attributes:
        body: None where the caller has it already.
        tag: None where the answer is not to be kept: without a model, and with exploration.
        rows: (k,) of the items shown, in the item table of the snapshot.
    """

    body: Recommendations | None
    tag: str | None = None
    rows: Int64 | None = None


@dataclass(slots=True)
class Ranking:
    """What is known of one request so far.

    Attributes:
        history: n events. rows: (n,) of them in the item table, -1 for unknown items.
        readable: places in the history that have a vector. state: for the answer.
        start, k: the page that is wanted. list_tag: of the whole list; tag: of the page, None: not to be kept.
        seed: of exploration, -1: none.
        excluded: rows that may not be shown. allowed: (N,) those that may, None: all.
        among: rows to choose from, None: all.
    """

    ask: Ask
    history: History
    rows: Int64
    readable: Int64
    state: UserState
    k: int
    excluded: Int64
    start: int = 0
    list_tag: str = ""
    tag: str | None = None
    seed: int = -1
    allowed: Bools | None = None
    among: Int64 | None = None

    @property
    def end(self) -> int:
        """The place behind the page."""
        return self.start + self.k

    @property
    def known(self) -> Int64:
        """Rows of the history's items that are in the item table."""
        return self.rows[self.rows >= 0]

    def may_show(self, rows: Int64) -> Bools:
        """Which of some rows may be shown, availability aside."""
        shown = ~np.isin(rows, self.excluded)
        if self.allowed is not None:
            shown &= self.allowed[rows]
        if self.among is not None:
            shown &= np.isin(rows, self.among)
        return shown

    def told(self, snapshot: Snapshot) -> EncoderInput:
        """What the encoder reads."""
        places = self.readable
        types = snapshot.type_codes[self.history.types[places]]
        return EncoderInput(self.rows[places], self.history.times[places], types)
