"""From candidates to the page that is shown: diversity, exploration, rules, and where the page ends.

Whatever rearranges does so among a fixed number of candidates and builds the list from its top, so the pages of a
list fit together. Diversity comes first; epsilon exploration draws from its order, Plackett-Luce from the scores.
Rules have the last word: pins stand where they are pinned, and what a cap holds back stands in a later page.
"""

import time
from dataclasses import dataclass

import numpy as np

from serving.ask import Ask
from serving.columns import Float64
from serving.conditions import FilterError
from serving.config import ServingSettings
from serving.diversity import diverse
from serving.errors import InvalidRequestError
from serving.exploration import draw, new_seed
from serving.filters import parse
from serving.items import Bools
from serving.pages import Cursor
from serving.ranking import Ranking
from serving.rules import CompiledRules, RuleBook
from serving.snapshot import Snapshot
from serving.user_encoder import Floats
from streaming.rows import Int64

NO_SEED = -1


@dataclass(slots=True)  # made for each request: frozen ones take three times as long
class Page:
    """What is shown.

    Attributes:
        rows, scores: (k,) best first. propensities: (k,) with exploration, NaN where a cap may have had a part.
        more: whether another page follows.
    """

    rows: Int64
    scores: Floats
    propensities: Float64 | None
    more: bool


class Arranger:
    """What settings and requests say of how a list is put together.

    Args:
        settings: of serving.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._book = RuleBook(settings.rules)
        self._explores = settings.exploration.kind != "off"

    def prepare(self, snapshot: Snapshot, before: Snapshot | None) -> None:
        """Build what rules need of a new snapshot, and the columns that filters asked for in the one before."""
        if before is not None:
            snapshot.columns.warm(before.columns)
        self.rules(snapshot, time.time())

    def rules(self, snapshot: Snapshot, now_s: float) -> CompiledRules:
        """The rules of now, epoch s, over the items of a snapshot."""
        return self._book.compiled(snapshot.columns, now_s)

    def identity(self, rules: CompiledRules, k: int, now_s: float) -> tuple[float, int]:
        """What of the rules a list depends on: which were active, and with caps how long its pages are."""
        return self._settings.rules.since_s(now_s), k if rules.limits else 0

    def seed(self, ask: Ask, cursor: Cursor | None) -> int:
        """The seed of a list's exploration, that of the page before if there was one; `NO_SEED` without."""
        if not self._explores or ask.among is not None:
            return NO_SEED
        return new_seed() if cursor is None else cursor.seed

    def allowed(self, snapshot: Snapshot, rules: CompiledRules, ask: Ask) -> Bools | None:
        """(N,) the rows that rules and filter let pass; None: all.

        Raises:
            InvalidRequestError: the filter is wrong.
        """
        if ask.filter is None:
            return rules.allowed
        try:
            chosen = parse(ask.filter).rows(snapshot.columns)
        except FilterError as error:
            raise InvalidRequestError(f"{ask.place}/filter", str(error)) from None
        return chosen if rules.allowed is None else chosen & rules.allowed

    def candidates(self, rules: CompiledRules, ranking: Ranking) -> int:
        """How many of the best rows are needed: one more than are shown says whether a page follows."""
        needed = [rules.candidates(ranking.end + 1)]
        if self._diversity(ranking):
            needed.append(self._settings.diversity.candidates)
        if ranking.seed != NO_SEED:
            needed.append(self._settings.exploration.candidates)
        return max(needed)

    def page(
        self, snapshot: Snapshot, rules: CompiledRules, ranking: Ranking, rows: Int64, scores: Floats
    ) -> Page:
        """Cut the page out of the candidates, best first; their scores hold what boosts and pins add."""
        propensities: Float64 | None = None
        pins, rows, scores = rules.lift(rows, scores, ranking.end + 1)
        if diversity := self._diversity(ranking):
            pool = slice(0, self._settings.diversity.candidates)
            order = diverse(snapshot.vectors[rows[pool]], scores[pool], len(rows[pool]), diversity)
            rows[pool], scores[pool] = rows[order], scores[order]
        if ranking.seed != NO_SEED:
            pool = slice(0, self._settings.exploration.candidates)
            drawn = draw(scores[pool], len(rows[pool]), self._settings.exploration, ranking.seed)
            rows[pool], scores[pool] = rows[drawn.order], scores[drawn.order]
            propensities = np.ones(len(rows))  # behind the pool nothing is drawn
            propensities[pool] = drawn.propensities
        if len(pins) or rules.limits:
            kept = rules.cap(rows, ranking.end + 1, pins, per=ranking.k)
            order = rules.place(pins, len(kept), ranking.end + 1, per=ranking.k)
            rows = np.concatenate([rows[kept], pins.rows])[order]
            scores = np.concatenate([scores[kept], pins.scores])[order]
            if propensities is not None:
                chances = np.concatenate([propensities[kept], np.ones(len(pins))])[order]
                propensities = np.full(len(rows), np.nan) if rules.limits else chances
        more = len(rows) > ranking.end and ranking.end < self._settings.page_depth
        page = slice(ranking.start, ranking.end)
        shown = None if propensities is None else propensities[page]
        return Page(rows[page], scores[page], shown, more)

    def _diversity(self, ranking: Ranking) -> float:
        """0..1; candidates that were given are put in order by score unless the request says otherwise."""
        asked = ranking.ask.diversity
        if asked is None:
            return 0.0 if ranking.ask.among is not None else self._settings.diversity.default
        return asked
