"""From candidates to the page that is shown: filters, rules, diversity, exploration, and where the page ends."""

from serving.ask import Ask
from serving.config import ServingSettings
from serving.items import Bools
from serving.pages import Cursor
from serving.ranking import Ranking
from serving.snapshot import Snapshot
from serving.user_encoder import Floats
from streaming.rows import Int64


class Arranger:
    """What settings and requests say of how a list is put together.

    Args:
        settings: of serving.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings

    def seed(self, ask: Ask, cursor: Cursor | None) -> int:
        """The seed of a request's exploration: a new one, or that of the page before; -1: no exploration."""
        return -1

    def allowed(self, snapshot: Snapshot, ask: Ask) -> Bools | None:
        """(N,) the rows that filter and rules let pass; None: all.

        Raises:
            InvalidRequestError: the filter is wrong.
        """
        return None

    def candidates(self, snapshot: Snapshot, ranking: Ranking) -> int:
        """How many of the best rows are needed: one more than are shown says whether a page follows."""
        return ranking.end + 1

    def page(
        self, snapshot: Snapshot, ranking: Ranking, rows: Int64, scores: Floats
    ) -> tuple[Int64, Floats, Floats | None, bool]:
        """Cut the page out of the candidates, best first.

        Returns:
            rows and scores of the page; with exploration the propensity of each; whether another page follows.
        """
        more = len(rows) > ranking.end and ranking.end < self._settings.page_depth
        page = slice(ranking.start, ranking.end)
        return rows[page], scores[page], None, more
