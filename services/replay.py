"""Plays a recorded stream against a live system, through Kafka and HTTP only, and measures what comes back.

It is a client like any other: nothing in here reaches into the pipeline. Three things run beside each other
in the steady part: the schedule (one thread, which alone sends), a small pool that asks for recommendations
before sampled events, and the freshness sampler.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.partitioner.default import murmur2

from services.background import Background
from services.client import ApiClient, Percentiles
from services.datasets import Dataset, EventRows, event_records, item_records, repeat_share
from services.errors import ApiError, ReplayError
from services.freshness import FreshnessSampler, FreshnessScore
from services.prequential import Popularity, Prequential, PrequentialScore, encode
from services.report import make_report, settle
from services.schedule import Done, Schedule
from services.sender import Sender

__all__ = ["Replay", "ReplayError", "ReplayKnobs", "ReplayStats"]

Advance = Callable[[int, int], None]  # (done, of how many)
REPEATS_MATTER = (
    0.10  # share of events that repeat a (user, item) pair above which seen items are not left out
)


@dataclass(frozen=True)
class ReplayKnobs:
    """How to play."""

    rate: float = 100.0  # events/s of the steady part
    requests_per_s: float = 20.0  # prequential requests; rounded so that one event in n is sampled
    freshness_per_s: float = 2.0  # events followed until they are visible
    k: int = 10
    exclude_seen: bool | None = None  # None: chosen by how often the dataset repeats itself
    lookahead_s: float = 0.15  # how early before its event a request may start
    workers: int = 4  # requests under way at once
    max_waiting: int = 16  # requests waiting for a worker beyond which a sampled event is sent unasked


@dataclass(frozen=True)
class ReplayStats:
    """A moment of the replay, for the live view."""

    produced: int
    total: int
    rate_per_s: float  # sent over the last seconds
    prequential: PrequentialScore
    freshness: FreshnessScore
    request_ms: Percentiles
    errors: int
    last_error: str | None
    exclude_seen: bool
    sample_rate: float  # share of the steady events that are asked about first


class Replay:
    """Plays one dataset: `publish_items`, `publish_events`, `start_steady`, `stop_steady`, `settle`.

    Args:
        dataset: what to play.
        producer: a Kafka producer with `acks="all"`; closed by whoever made it.
        client: the API under test.
        started_at: when the user's command began (`time.monotonic()`), for `seconds_to_first_recommendation`.
    """

    def __init__(
        self,
        dataset: Dataset,
        producer: KafkaProducer,
        client: ApiClient,
        knobs: ReplayKnobs | None = None,
        events_topic: str = "events",
        items_topic: str = "items",
        started_at: float | None = None,
    ) -> None:
        self.dataset, self.knobs = dataset, knobs or ReplayKnobs()
        self.repeat_share = repeat_share(dataset)
        chosen = self.knobs.exclude_seen
        self.exclude_seen = self.repeat_share <= REPEATS_MATTER if chosen is None else chosen
        self.prequential = Prequential(self.knobs.k)
        self.popularity = Popularity(dataset, self.exclude_seen)
        self.client = client
        self.freshness = FreshnessSampler(client, self.knobs.freshness_per_s)
        self._producer = producer
        self._events = Sender(producer, events_topic)
        self._items = Sender(producer, items_topic)
        self._started_at = time.monotonic() if started_at is None else started_at
        self._waiting = threading.Semaphore(self.knobs.workers + self.knobs.max_waiting)
        self._steady = Background("steady replay")
        self._more = 0

    @property
    def produced(self) -> int:
        """Events sent so far, those of others that `more` told of included."""
        return self._events.sent + self._more

    def more(self, events: int) -> None:
        """Somebody else sent events that the system is to account for."""
        self._more += events

    def publish_items(self, advance: Advance = lambda done, total: None) -> int:
        """Send the catalogue, keyed by item, and wait until all of it is acknowledged.

        Raises:
            SendError: the broker refused a record or was too slow.
        """
        total = int(self.dataset.items.num_rows)
        for record in item_records(self.dataset):
            self._items.send(record["item_id"], record)
            if self._items.sent % 500 == 0:
                advance(self._items.sent, total)
        self._items.drain()
        advance(total, total)
        return total

    def publish_events(
        self,
        start: int,
        stop: int,
        advance: Advance = lambda done, total: None,
        halt: threading.Event | None = None,
    ) -> int:
        """Send rows [start, stop) as fast as the broker takes them, wait for all acknowledgements.

        Returns:
            The row after the last one sent (before `stop` only when `halt` was set).

        Raises:
            SendError: the broker refused a record or was too slow.
        """
        done = start
        for batch in event_records(self.dataset, start, stop, batch_size=1000):
            if halt is not None and halt.is_set():
                break
            for record in batch:
                self._events.send(record["user_id"], record)
            self.popularity.sent(done, done + len(batch))
            done += len(batch)
            advance(done - start, stop - start)
        self._events.drain()
        return done

    def wait_for_trained_model(
        self, timeout_s: float, poll_s: float = 0.5, halt: threading.Event | None = None
    ) -> float:
        """Ask for a user's recommendations until a trained model answers.

        Returns:
            Seconds from the start of the command to that answer.

        Raises:
            ReplayError: none did in time, or `halt` was set.
        """
        user = self.dataset.interactions["user_id"][0].as_py()
        pause = halt or threading.Event()
        deadline = time.monotonic() + timeout_s
        while self.client.first_trained_at is None:
            try:
                self.client.recommend(user, self.knobs.k, self.exclude_seen)
            except ApiError as error:
                if time.monotonic() > deadline:
                    raise ReplayError(
                        f"no trained model answered within {timeout_s:.0f} s: {error}"
                    ) from error
            if self.client.first_trained_at is None and (time.monotonic() > deadline or pause.wait(poll_s)):
                raise ReplayError(
                    f"no trained model answered within {timeout_s:.0f} s; see the learner's status"
                )
        return self.client.first_trained_at - self._started_at

    def settle(self, timeout_s: float = 30.0, advance: Advance = lambda done, total: None) -> dict[str, Any]:
        """Wait until every event is accounted for (or the time is up) and return the report."""
        settled, stats = settle(self.client, self.produced, timeout_s, advance)
        return make_report(self, stats, settled)

    def start_steady(self, start: int, stop: int | None = None) -> None:
        """Begin to send rows [start, stop) at the steady rate, on a thread of its own."""
        stop = len(self.dataset) if stop is None else min(stop, len(self.dataset))
        self.freshness.start()
        self._steady.begin(lambda halt: self._play(start, stop, halt))

    def steady_done(self) -> bool:
        """Whether the steady part has sent all its rows.

        Raises:
            SendError: it failed; this is where its error comes out.
        """
        return self._steady.done()

    def stop_steady(self, timeout_s: float = 10.0) -> int:
        """End the steady part now: what is due is sent and acknowledged, the sampler stops.

        Returns:
            The row after the last one sent.
        """
        try:
            return self._steady.finish(timeout_s)
        finally:
            self.freshness.close()

    def close(self) -> None:
        """Stop whatever still runs and close the client, without looking at results; after Ctrl-C, say."""
        self._steady.cancel(timeout_s=5.0)
        self.freshness.close()
        self.client.close()

    def _play(self, start: int, stop: int, halt: threading.Event) -> int:
        users, num_users = encode(self.dataset.interactions["user_id"])
        names = (
            self.dataset.interactions["user_id"].combine_chunks().dictionary_encode().dictionary.to_pylist()
        )
        partitions = sorted(self._producer.partitions_for(self._events.topic))
        # the producer's own rule (DefaultPartitioner), to know which events share a partition
        lanes = [partitions[(murmur2(name.encode()) & 0x7FFFFFFF) % len(partitions)] for name in names]
        assert len(lanes) == num_users
        pages = EventRows(self.dataset)

        def send(row: int) -> None:
            record = pages[row]
            self.popularity.sent_one(row)
            called_at = time.monotonic()
            future = self._events.send(record["user_id"], record)
            self.freshness.offer(record["user_id"], called_at, future)

        pool = ThreadPoolExecutor(self.knobs.workers, thread_name_prefix="prequential")

        def ask(row: int, done: Done) -> bool:
            if not self._waiting.acquire(blocking=False):
                self.prequential.skip()
                return False
            pool.submit(self._ask, pages[row], self.popularity.rank(row), done)
            return True

        knobs = self.knobs
        schedule = Schedule(users.tolist(), lanes, knobs.rate, self.every, send, ask, knobs.lookahead_s)
        try:
            reached = schedule.run(start, stop, halt)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # queued ones are left only when it was halted
        self._events.drain()
        return reached

    def _ask(self, record: dict[str, Any], popular_rank: int | None, done: Done) -> None:
        try:
            answer = self.client.recommend(record["user_id"], self.knobs.k, self.exclude_seen)
            self.prequential.score(record["item_id"], answer, popular_rank)
        except ApiError:  # the client counts it, too
            self.prequential.score(record["item_id"], None, popular_rank)
        finally:
            self._waiting.release()
            done()

    @property
    def seconds_to_first_recommendation(self) -> float | None:
        """From the start of the command to the first answer by a trained model, s; None before it."""
        first = self.client.first_trained_at
        return None if first is None else round(first - self._started_at, 3)

    @property
    def every(self) -> int:
        """One steady event in this many is asked about first; 0 for none."""
        per_s = self.knobs.requests_per_s
        return max(1, round(self.knobs.rate / per_s)) if per_s > 0 else 0

    def snapshot(self) -> ReplayStats:
        """The state of the replay at this moment."""
        return ReplayStats(
            produced=self.produced,
            total=len(self.dataset),
            rate_per_s=self._events.rate_per_s(),
            prequential=self.prequential.totals(),
            freshness=self.freshness.score(),
            request_ms=self.client.latencies.percentiles(),
            errors=self.client.errors,
            last_error=self.client.last_error,
            exclude_seen=self.exclude_seen,
            sample_rate=round(1 / self.every, 6) if self.every else 0.0,
        )
