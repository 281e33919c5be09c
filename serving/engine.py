"""The recommender as a plain class: state, encode, retrieve, policy. No HTTP, no Ray.

A request takes these stages in one thread; a batch takes each stage once for all its members.
"""

import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from types import TracebackType

import numpy as np

from serving import metrics
from serving.arrange import Arranger
from serving.ask import Ask
from serving.config import ServingSettings
from serving.describe import describe_user, model_list
from serving.errors import GoneError, InvalidRequestError, NotFoundError, ServingError
from serving.experiments.live import Live
from serving.explain import explain
from serving.history import EMPTY, from_row, merged
from serving.impressions import ImpressionLog
from serving.index import Wanted, best_of_both
from serving.limits import Limits
from serving.models import (
    ModelList,
    ModelState,
    PromoteAnswer,
    RankRequest,
    RecommendationRequest,
    Recommendations,
    RecommendedItem,
    SimilarItem,
    SimilarItems,
    UserAnswer,
    UserState,
)
from serving.pages import Cursor, check_same_list, cursor_of, known, list_tag, page_tag
from serving.policy import popular_reasons, reasons
from serving.ranking import Answered, Ranking
from serving.refresh import Refresher
from serving.request_traces import stages, stages_told
from serving.rules import CompiledRules
from serving.snapshot import Snapshot
from serving.user_encoder import Floats
from streaming.config import StreamingSettings
from streaming.hashing import hash_one
from streaming.reader import StateReader
from streaming.rows import Int64
from streaming.traces import make_tracer
from training.errors import RegistryError
from training.registry import Registry

_STAGES = {name: metrics.STAGE_SECONDS.labels(name) for name in ("state", "encode", "retrieve", "policy")}
_BY_MODEL, _BY_POPULARITY = metrics.RANKINGS.labels("model"), metrics.RANKINGS.labels("popularity")
_LEAST_SHARE = np.float32(1e-9)  # of recent events: stands for none


class Recommender:
    """Ranks items for users; thread-safe, and never blocked by a model that is being loaded.

    Args:
        data_dir: what the pipeline writes: `state/`, `catalog/`, `windows/`, `models/`. May still be empty.
        streaming: settings the state was written with.
        serving: settings of serving.
    """

    def __init__(self, data_dir: Path, streaming: StreamingSettings, serving: ServingSettings) -> None:
        self.settings, self.streaming = serving, streaming
        self.limits = Limits(streaming, serving)
        self._arranger = Arranger(serving)
        self._codes = {name: code for code, name in enumerate(streaming.event_types)}
        self._reader = StateReader(data_dir / "state", streaming)
        self._registry = Registry(data_dir / "models")
        self._impressions: ImpressionLog | None = None
        self.tracer = make_tracer(streaming.traces, "api")
        self._snapshot: Snapshot
        self.live = Live(self._rank, data_dir / "models", serving.shadow)
        self.refresher = Refresher(
            data_dir, streaming, serving, self._publish, self.live, serving.canary, self._arranger.prepare
        )
        self.refresher.refresh()  # the first look always publishes

    def start(self) -> "Recommender":
        """Begin to follow the registry and the catalogue."""
        self.refresher.start()
        return self

    def log_to(self, impressions: ImpressionLog) -> None:
        """Have what is shown from now on logged; the log is closed with the recommender."""
        self._impressions = impressions

    def stop(self) -> None:
        """Stop following them and close the state."""
        self.refresher.stop()
        self.live.stop()
        if self._impressions is not None:
            self._impressions.close()
        self._reader.close()

    def __enter__(self) -> "Recommender":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _publish(self, snapshot: Snapshot) -> None:
        before = getattr(self, "_snapshot", None)
        self._snapshot = snapshot
        old = before.model.bundle.version if before and before.model else None
        new = snapshot.model.bundle.version if snapshot.model else None
        if new != old:
            metrics.SWAPS.inc()
        if new != old or before is None:
            metrics.show_model(new, "trained" if new else "popular")
        metrics.ITEMS.set(snapshot.servable())

    def clock_ms(self) -> int:
        """The time that an event without one gets, epoch ms: now, or where the stream is (`stream_clock`)."""
        newest = self._reader.newest_ms() if self.settings.stream_clock else None
        return int(time.time() * 1000) if newest is None else newest

    # --- rankings ----------------------------------------------------------------------------------------

    def recommend(
        self, user_id: str, k: int | None = None, exclude_seen: bool | None = None
    ) -> Recommendations:
        """Rank items for one user. See `recommend_batch`."""
        return self._one(Ask(user_id=user_id, k=k, exclude_seen=exclude_seen))

    def recommend_batch(self, requests: Sequence[RecommendationRequest]) -> list[Recommendations]:
        """Rank items for users and anonymous sessions, all with the same model.

        Raises:
            InvalidRequestError: a request is out of bounds; its pointer names the place in the batch.
            ConflictError: the list that a cursor continues has changed.
        """
        asks = self.limits.asks(requests)
        return [body_of(answered) for answered in self.answer(asks)]

    def rank(self, request: RankRequest) -> Recommendations:
        """Put candidates in order; those that cannot be ranked are named.

        Raises:
            InvalidRequestError: the request is out of bounds.
        """
        return self._one(Ask.by_candidates(request))

    def _one(self, ask: Ask) -> Recommendations:
        self.limits.check_ask(ask)
        return body_of(self.answer([ask])[0])

    def answer(self, asks: Sequence[Ask]) -> list[Answered | ServingError]:
        """Rank for requests that came together; what is wrong with one is its own.

        Args:
            asks: that `Limits.check_ask` has let pass.
        """
        if self.tracer is None:
            answers = self.live.answer(asks)
        else:
            with stages_told(self.tracer, asks):
                answers = self.live.answer(asks)
        if self._impressions is not None:
            self._impressions.log(asks, answers)
        return answers

    def preview(self, asks: Sequence[Ask]) -> list[Answered | ServingError]:
        """Rank as `answer` does, by the model that serves and for nobody to see: no experiment, nothing is logged."""
        return self._rank(self._snapshot, asks)

    def _rank(self, snapshot: Snapshot, asks: Sequence[Ask]) -> list[Answered | ServingError]:
        """Rank with one model: a swap during the request does not reach it."""
        now_s = time.time()
        rules = self._arranger.rules(snapshot, now_s)
        with _stage("state"):
            prepared = self._prepare(snapshot, rules, asks, now_s)
        rankings = [one for one in prepared if isinstance(one, Ranking)]
        found = self._search(snapshot, rules, rankings)
        _BY_MODEL.inc(len(found))
        _BY_POPULARITY.inc(len(rankings) - len(found))
        model = snapshot.state(now_s)
        with _stage("policy"):
            return [
                self._answer(snapshot, rules, one, found.get(id(one)), model)
                if isinstance(one, Ranking)
                else one
                for one in prepared
            ]

    def _prepare(
        self, snapshot: Snapshot, rules: CompiledRules, asks: Sequence[Ask], now_s: float
    ) -> list[Ranking | Answered | ServingError]:
        clock_ms = self.clock_ms() if any(ask.events for ask in asks) else 0
        users = [ask.user_id for ask in asks if ask.user_id is not None]
        stored = iter(self._reader.read(users) if users else ())
        prepared: list[Ranking | Answered | ServingError] = []
        for ask in asks:
            row = next(stored) if ask.user_id is not None else None
            past = EMPTY if row is None or row["total"] == 0 else from_row(row)
            history = merged(past, ask.events, self._codes, clock_ms, self.streaming.sequence_length)
            rows = snapshot.table.rows_of(history.items)
            readable = np.flatnonzero(rows >= 0)
            readable = readable[snapshot.scored[rows[readable]]]
            state = _user_state(row, len(history), now_s)
            k = ask.k or self.settings.k_default
            ranking = Ranking(ask, history, rows, readable, state, k, self._excluded(snapshot, ask, rows))
            try:
                prepared.append(self._narrowed(snapshot, rules, ranking, now_s))
            except ServingError as error:
                prepared.append(error)
        return prepared

    def _excluded(self, snapshot: Snapshot, ask: Ask, rows: Int64) -> Int64:
        seen = self.settings.exclude_seen if ask.exclude_seen is None else ask.exclude_seen
        excluded = rows if seen else rows[:0]
        if ask.exclude:
            excluded = np.concatenate([excluded, snapshot.table.rows_named(ask.exclude)])
        return excluded[excluded >= 0]

    def _narrowed(
        self, snapshot: Snapshot, rules: CompiledRules, ranking: Ranking, now_s: float
    ) -> Ranking | Answered:
        """Find the page that is wanted, whether the caller has it, and what may stand on it."""
        ask, state, cursor = ranking.ask, ranking.state, cursor_of(ranking.ask)
        ranking.list_tag = list_tag(
            ask,
            (
                *snapshot.identity,
                *self._arranger.identity(rules, ranking.k, now_s),
                state.partition,
                state.offset,
            ),
        )
        check_same_list(cursor, ranking.list_tag)
        ranking.start = cursor.start if cursor else 0
        depth = self.settings.page_depth
        if ranking.end > depth:
            raise InvalidRequestError(
                f"{ask.place}/cursor", f"lists end at item {depth} (setting serving.page_depth)"
            )
        ranking.seed = self._arranger.seed(ask, cursor)
        if snapshot.model is not None and ranking.seed < 0:
            ranking.tag = page_tag(ranking.list_tag, ranking.start, ranking.k, ask.explain)
            if known(ask.tags, ranking.tag):
                return Answered(None, ranking.tag)
        ranking.allowed = self._arranger.allowed(snapshot, rules, ask)
        if ask.among is not None:
            rows = snapshot.table.rows_named(ask.among)
            ranking.among = np.unique(rows[rows >= 0])
        return ranking

    def _search(
        self, snapshot: Snapshot, rules: CompiledRules, rankings: Sequence[Ranking]
    ) -> dict[int, tuple[Int64, Floats]]:
        """Rows and scores, best first, for those that the model has something to read of; by ``id``."""
        encoder, index = snapshot.encoder, snapshot.index
        read = [ranking for ranking in rankings if len(ranking.readable)]
        if not read or encoder is None or index is None:
            return {}
        with _stage("encode"):
            encoded = encoder.encode([ranking.told(snapshot) for ranking in read], snapshot.vectors)
        with _stage("retrieve"):
            offsets = rules.offsets
            wanted = [
                Wanted(
                    self._arranger.candidates(rules, ranking),
                    # what the history holds is scored by its copies, where the model copies
                    ranking.excluded
                    if encoded.repeats is None
                    else np.union1d(ranking.excluded, ranking.known),
                    ranking.allowed,
                    ranking.among,
                    offsets,
                )
                for ranking in read
            ]
            found = index.search(encoded.users, wanted)
            if encoded.repeats is not None:
                for place, (rows, scores) in enumerate(encoded.repeats):
                    shown = snapshot.table.available[rows] & read[place].may_show(rows)
                    added = scores if offsets is None else scores + offsets[rows]
                    again = rows[shown], added[shown]
                    found[place] = best_of_both(found[place], again, wanted[place].k)
        return dict(zip(map(id, read), found, strict=True))

    def _answer(
        self,
        snapshot: Snapshot,
        rules: CompiledRules,
        ranking: Ranking,
        found: tuple[Int64, Floats] | None,
        model: ModelState,
    ) -> Answered | ServingError:
        by_model = found is not None
        if found is None:
            found = _popular(snapshot, rules, self._arranger.candidates(rules, ranking), ranking)
        page = self._arranger.page(snapshot, rules, ranking, *found)
        rows, scores = page.rows, page.scores if by_model else snapshot.popularity[page.rows]
        said = (
            reasons(snapshot, rows, ranking.history, ranking.rows, self.streaming.event_types)
            if by_model
            else popular_reasons(snapshot, rows)
        )
        table, ask = snapshot.table, ranking.ask
        items = [
            RecommendedItem(table.ids[row], table.titles[row], score, why)
            for row, score, why in zip(
                rows.tolist(), scores.astype(np.float64).round(6).tolist(), said, strict=True
            )
        ]
        extra: dict[str, object] = {}
        if page.propensities is not None:
            for item, chance in zip(items, page.propensities.tolist(), strict=True):
                item.propensity = None if isnan(chance) else round(chance, 6)
        if ask.explain and by_model:
            told, events = ranking.told(snapshot), ranking.readable
            effects = explain(snapshot, told, rows, ranking.history, events, self.streaming.event_types)
            for item, effect in zip(items, effects, strict=True):
                item.explanation = effect
        if page.more:
            extra["next"] = Cursor(ranking.list_tag, ranking.end, ranking.seed).text()
        if ask.among is not None:
            ranked = {item.item_id for item in items}
            extra["unknown"] = [item for item in ask.among if item not in ranked] if not page.more else []
        body = Recommendations(user_id=ask.user_id, items=items, model=model, state=ranking.state, **extra)
        return Answered(body, ranking.tag, rows)

    # --- everything else ---------------------------------------------------------------------------------

    def similar(self, item_id: str, k: int | None = None) -> SimilarItems:
        """Find the nearest neighbours of an item by the cosine of their vectors.

        Raises:
            NotFoundError: no such item, or no vector for it yet.
        """
        snapshot = self._snapshot
        row = int(snapshot.table.rows_of(np.array([hash_one(item_id)], np.uint64))[0])
        if row < 0:
            raise NotFoundError(
                f"no item {item_id!r} in the catalogue or the model; publish it to the items topic"
            )
        if snapshot.index is None or not snapshot.scored[row]:
            raise NotFoundError(
                f"item {item_id!r} has no vector yet; its text is encoded a few seconds after it arrives"
            )
        query = snapshot.vectors[row : row + 1]
        wanted = Wanted(k or self.settings.k_default, np.array([row]))
        [(rows, _)] = snapshot.index.search(query, [wanted])
        likeness = snapshot.vectors[rows] @ query[0]
        table = snapshot.table
        items = [
            SimilarItem(item_id=table.ids[near], title=table.titles[near], similarity=round(float(cosine), 4))
            for near, cosine in zip(rows, likeness, strict=True)
        ]
        return SimilarItems(
            item_id=item_id, title=table.titles[row], items=items, model=snapshot.state(time.time())
        )

    def user(self, user_id: str) -> UserAnswer:
        """Tell a user's rolling state in words.

        Raises:
            NotFoundError: no event of this user has been applied.
            GoneError: the user was erased and has not come back.
        """
        row = self._reader.read([user_id])[0]
        proofs = self._reader.erasures(user_id)
        if row["total"] == 0 and proofs:
            raise GoneError(f"user {user_id!r} was erased", proofs)
        if row["total"] == 0:
            raise NotFoundError(f"no event of user {user_id!r} has been applied yet")
        state = _user_state(row, int(row["count"]), time.time())
        return describe_user(user_id, row, state, self._snapshot.table, self.streaming, proofs)

    def models(self) -> ModelList:
        """List every model version with its verdict."""
        return model_list(self._registry, self._snapshot.state(time.time()))

    def promote(self, version: str, reason: str) -> PromoteAnswer:
        """Make another version the current one; this replica takes it up at once, others within refresh_s.

        Raises:
            NotFoundError: no such version.
        """
        previous = self._registry.current()
        try:
            self._registry.promote(version, reason)
        except RegistryError as error:
            raise NotFoundError(str(error)) from error
        self.refresher.wake()
        return PromoteAnswer(current=version, previous=previous)

    def model_state(self) -> ModelState:
        """Which model answers now."""
        return self._snapshot.state(time.time())

    def servable(self) -> int:
        """How many items can be recommended now; 0 means not ready."""
        return self._snapshot.servable()


def body_of(answered: Answered | ServingError) -> Recommendations:
    """The answer to a request that named no entity tag, or the error it ended with."""
    if isinstance(answered, ServingError):
        raise answered
    assert answered.body is not None  # nobody told of a tag
    return answered.body


def _popular(snapshot: Snapshot, rules: CompiledRules, k: int, ranking: Ranking) -> tuple[Int64, Floats]:
    """The k most popular rows that may be shown, and logarithms of their shares with what rules add."""
    head = snapshot.popular_rows
    if rules.offsets is None and ranking.allowed is None and ranking.among is None:
        head = head[: k + len(ranking.excluded)]  # however many are excluded, k remain
    rows = head[ranking.may_show(head)]
    scores = np.log(np.maximum(snapshot.popularity[rows], _LEAST_SHARE))
    if rules.offsets is not None:
        scores = scores + rules.offsets[rows]
        order = np.argsort(-scores, kind="stable")
        rows, scores = rows[order], scores[order]
    return rows[:k], scores[:k]


def _user_state(row: np.void | None, events: int, now_s: float) -> UserState:
    if row is None or row["total"] == 0:
        return UserState(known=False, events=events, partition=None, offset=None, age_ms=None)
    age_ms = round(now_s * 1000 - int(row["ingested_ms"]), 3)
    partition, offset = int(row["partition"]), int(row["offset"])
    return UserState(known=True, events=events, partition=partition, offset=offset, age_ms=age_ms)


class _stage:  # noqa: N801  # a context manager; as a generator it costs three times as much
    """Measures the duration of a stage."""

    __slots__ = ("_name", "_started")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        duration_s = time.perf_counter() - self._started
        _STAGES[self._name].observe(duration_s)
        told = stages.get()
        if told is not None:
            told.append((self._name, duration_s, time.time()))
