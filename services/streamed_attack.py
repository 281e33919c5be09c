"""A shilling attack on a running system: fake users whose events go into its topic like anybody's.

The attacker knows what is public: what people did in the closed windows, the catalogue, and what ids look like in the
topic. It sends well-formed records in the shape that the settings give the source, in event-time order. By default
the fake users act in the window that is open now, so that one window is attacked and none closes early; each is as
busy there as a person is in one window.

Legend: E events, U fake users, N items of the catalogue, T targets.
"""

import difflib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.client import ApiClient
from services.sender import Sender
from services.settings import Settings
from services.user_ids import newest_ids
from streaming.catalog import CatalogReader, CatalogSnapshot
from streaming.config import Source
from streaming.formats.shape import RecordShape, ShapeError
from streaming.hashing import UInt64, stable_hash
from streaming.kafka import make_producer
from streaming.reader import StateReader
from streaming.windows import complete_windows, iso, read_window, window_of
from training.attacks import ATTACKS, Budget, View
from training.attacks.shilling import Shilling
from training.data import concat, from_window
from training.trust.simulation import view_of

Int64 = NDArray[np.int64]

KINDS: dict[str, type[Shilling]] = {
    name: attack for name, attack in ATTACKS.items() if issubclass(attack, Shilling)
}  # the others train models of their own first
_WINDOWS = 16  # newest closed ones that the attacker has watched
_RARE = 0.25  # of the items that people had, the least frequent, that targets are drawn from
_SAMPLE = 200  # newest records that show what user ids look like
_TRIES = 4  # times the ids wanted, after which ids get a digit more


class AttackError(Exception):
    """The attack cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        kind: one of `KINDS`. size: fake users as a share of the users in the newest windows.
        targets: how many, drawn from the rarest items. items: ids of targets instead.
        seed: of targets, fake users and their ids. span_ms: event time from the newest event on in which they act;
            None: the window that is open now.
    """

    kind: str = "bandwagon"
    size: float = 0.05
    targets: int = 5
    items: tuple[str, ...] = ()
    seed: int = 0
    span_ms: int | None = None


@dataclass(frozen=True)
class Planned:
    """An attack that is ready to be sent.

    Attributes:
        users: U ids. honest_users: in the windows that the attacker has watched.
        targets: ids of the items. titles: theirs. before: (T,) events of theirs in those windows.
        user: (E,) place in ``users``. item: E item ids. times: (E,) epoch ms, in order. type: of all events.
        windows: names of those that the events count into. start_ms, stop_ms: the span.
    """

    order: Order
    topic: str
    users: list[str]
    honest_users: int
    targets: list[str]
    titles: list[str]
    before: list[int]
    user: Int64
    item: list[str]
    times: Int64
    type: str
    windows: list[str]
    start_ms: int
    stop_ms: int

    def report(self) -> dict[str, Any]:
        """As JSON: enough to find every fake user again."""
        named = zip(self.targets, self.titles, self.before, strict=True)
        return {
            "kind": self.order.kind,
            "size": self.order.size,
            "seed": self.order.seed,
            "topic": self.topic,
            "honest_users": self.honest_users,
            "fake_users": self.users,
            "targets": [{"item_id": item, "title": title, "events": n} for item, title, n in named],
            "events": len(self.times),
            "type": self.type,
            "start": iso(self.start_ms),
            "stop": iso(self.stop_ms),
            "windows": self.windows,
        }


def plan(settings: Settings, order: Order) -> Planned:
    """Make the fake users of an attack on the system whose data directory this is; sends nothing.

    Raises:
        AttackError: no window is closed yet, a target is unknown, the kind is, or no JSON source takes events.
        StreamingError: the broker cannot be reached.
    """
    if order.kind not in KINDS:
        raise AttackError(_unknown_kind(order.kind))
    source = _source(settings)
    catalog = _catalog(settings)
    view, honest = _watched(settings, catalog)
    rng = np.random.default_rng(order.seed)
    targets = _targets(order, catalog, view, rng)
    kind = source.constants.get("type") or _usual_type(settings, view)
    reader = StateReader(settings.data_dir / "state", settings.streaming)
    try:
        budget = _budget(settings, order, reader.newest_ms(), max(1, round(order.size * len(honest))))
        fakes = KINDS[order.kind]().poison(view, targets, budget, rng)
        users = _ids(settings, source, budget.users, honest, reader, rng)
    finally:
        reader.close()
    times = fakes.sequences.times
    sent = np.argsort(times, kind="stable")
    length_ms = int(settings.streaming.windows.length_s * 1000)
    return Planned(
        order=order,
        topic=source.topic,
        users=users,
        honest_users=len(honest),
        targets=[catalog.ids[row] for row in targets],
        titles=[catalog.titles[row] for row in targets],
        before=view.counts[targets].astype(int).tolist(),
        user=np.repeat(np.arange(len(users)), np.diff(fakes.sequences.offsets))[sent],
        item=[catalog.ids[row] for row in fakes.codes[sent]],
        times=times[sent],
        type=kind,
        windows=[iso(start) for start in np.unique(window_of(times, length_ms)).tolist()],
        start_ms=budget.start_ms,
        stop_ms=budget.stop_ms,
    )


def send(
    settings: Settings,
    planned: Planned,
    rate: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Send an attack's events, and return once the broker has them.

    Args:
        rate: events per second; None: as fast as the broker takes them. stopped: asked before each event.

    Returns:
        Events sent.

    Raises:
        AttackError: the source's settings leave no way to write an event.
        SendError: the broker refused a record or was too slow.
        StreamingError: it cannot be reached.
    """
    source = _source(settings)
    timed = RecordShape(source).uses_record_time
    producer = make_producer(settings.kafka)
    try:
        sender = Sender(producer, source.topic)
        began = time.monotonic()
        for place, (user, record) in enumerate(_records(source, planned)):
            if stopped():
                break
            if rate is not None:
                time.sleep(max(0.0, began + place / rate - time.monotonic()))
            sender.send(user, record, int(planned.times[place]) if timed else None)
        sender.drain()
    finally:
        producer.close(timeout=settings.kafka.request_timeout_s)
    return sender.sent


def exposure(client: ApiClient, users: Sequence[str], targets: Sequence[str], k: int = 10) -> float:
    """Share of the places in users' lists that targets take, asked from a live API.

    Raises:
        ApiError: a request failed.
    """
    wanted = set(targets)
    lists = [client.recommend(user, k).items for user in users]
    return sum(item in wanted for items in lists for item in items) / max(sum(map(len, lists)), 1)


def _unknown_kind(kind: str) -> str:
    if kind in ATTACKS:
        return (
            f"{kind!r} trains a model of its own first and is not streamed; expected one of {', '.join(KINDS)}. "
            f"`headrace attack run --kind {kind}` measures it on a recorded stream"
        )
    return f"expected one of {', '.join(KINDS)}; got {kind!r}"


def _source(settings: Settings) -> Source:
    for source in settings.streaming.sources:
        if source.format == "json":
            return source
    topics = ", ".join(source.topic for source in settings.streaming.sources)
    raise AttackError(f"expected a JSON source among streaming.sources; {topics} hold Avro")


def _catalog(settings: Settings) -> CatalogSnapshot:
    reader = CatalogReader(settings.data_dir / "catalog")
    snapshot = reader.snapshot()
    reader.close()
    return snapshot


def _watched(settings: Settings, catalog: CatalogSnapshot) -> tuple[View, UInt64]:
    """What the attacker has seen, items by their row in the catalogue; and who the users were.

    Every visit of a user in a window is a row of its own, so that fake users are as busy as people in one window.
    """
    folder = settings.data_dir / "windows"
    windows = complete_windows(folder, settings.streaming.logical_shards)[-_WINDOWS:]
    if not windows:
        raise AttackError(
            f"no window is closed yet in {folder}: fake users copy what people did. Windows close when events come "
            f"whose time is {settings.streaming.windows.length_s:g} s on; see `windows` in /v1/stats, and whether "
            "data_dir is that of the running system"
        )
    whole = concat([from_window(read_window(window.path)) for window in windows])
    seen = view_of([replace(whole, users=np.arange(len(whole), dtype=np.uint64))])
    known = np.isin(seen.sequences.items, catalog.hashes)  # the attacker must name an item to send it
    if not known.any():
        raise AttackError(
            f"the catalogue ({len(catalog):,} items) knows none of the {len(seen.hashes):,} items in the windows: "
            "send items to the items topic first, as only their ids can be sent"
        )
    rows = np.repeat(np.arange(len(seen.sequences)), np.diff(seen.sequences.offsets))[known]
    sequences = replace(
        seen.sequences,
        items=seen.sequences.items[known],
        times=seen.sequences.times[known],
        types=seen.sequences.types[known],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(seen.sequences)))]),
    )
    names = sorted({name for categories in catalog.categories for name in categories})
    number = {name: place for place, name in enumerate(names)}
    pairs = [
        (row, number[name]) for row, categories in enumerate(catalog.categories) for name in set(categories)
    ]
    codes = np.searchsorted(catalog.hashes, sequences.items)
    view = View(sequences, codes, catalog.hashes, np.array(pairs, np.int64).reshape(-1, 2))
    return view, np.unique(whole.users)


def _targets(order: Order, catalog: CatalogSnapshot, view: View, rng: np.random.Generator) -> Int64:
    """(T,) rows of the catalogue."""
    if order.items:
        row = {item: place for place, item in enumerate(catalog.ids)}
        for item in order.items:
            if item not in row:
                close = difflib.get_close_matches(item, catalog.ids, n=3)
                hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see the items topic"
                raise AttackError(f"the catalogue ({len(catalog):,} items) has no item {item!r}; {hint}")
        return np.unique([row[item] for item in order.items])
    had = np.flatnonzero(catalog.available & (view.counts > 0))
    rare = had[np.argsort(view.counts[had], kind="stable")][: max(round(_RARE * len(had)), order.targets)]
    if len(rare) < order.targets:
        raise AttackError(
            f"expected at most {len(rare)} targets, as people had no more items that are available; got "
            f"{order.targets}"
        )
    return np.sort(rng.choice(rare, order.targets, replace=False))


def _usual_type(settings: Settings, view: View) -> str:
    return settings.streaming.event_types[int(np.bincount(view.sequences.types).argmax())]


def _budget(settings: Settings, order: Order, newest_ms: int | None, users: int) -> Budget:
    """When the fake users act; see `Order.span_ms`."""
    if newest_ms is None:
        raise AttackError(
            f"no state in {settings.data_dir / 'state'}: how far the stream is cannot be told. Run this where the "
            "pipeline keeps its data_dir"
        )
    streaming = settings.streaming
    latest = int((time.time() + streaming.max_future_s) * 1000)
    length_ms = int(streaming.windows.length_s * 1000)
    start = newest_ms // length_ms * length_ms
    if order.span_ms is None:
        return Budget(users, start, min(start + length_ms, latest))
    if newest_ms + order.span_ms > latest:
        raise AttackError(
            f"expected a span that ends by {iso(latest)}, as later events are dead letters "
            f"(streaming.max_future_s); from {iso(newest_ms)}, where the stream is, it ends at "
            f"{iso(newest_ms + order.span_ms)}"
        )
    return Budget(users, newest_ms, newest_ms + order.span_ms)


def _ids(
    settings: Settings,
    source: Source,
    count: int,
    honest: UInt64,
    reader: StateReader,
    rng: np.random.Generator,
) -> list[str]:
    """Ids like those in the topic that nobody has."""
    models = sorted(newest_ids(settings, source, _SAMPLE)) or ["user-1000"]
    known, made, tries = set(honest.tolist()), dict[str, None](), 0
    while len(made) < count:
        name = _varied(models[int(rng.integers(len(models)))], tries // (_TRIES * count), rng)
        tries += 1
        (hashed,) = stable_hash([name]).tolist()
        if hashed not in known and not reader.read([name])["total"][0]:
            made[name] = None
    return list(made)


def _varied(model: str, more: int, rng: np.random.Generator) -> str:
    """An id with other digits where it has any; zeros stay, as they fill up numbers; ``more`` digits at its end."""
    digits = [str(rng.integers(1, 10)) if "1" <= sign <= "9" else sign for sign in model]
    if not any("1" <= sign <= "9" for sign in model):
        more = max(more, 2)
    return "".join(digits) + "".join(str(rng.integers(10)) for _ in range(more))


def _records(source: Source, planned: Planned) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and document of each event, in order."""
    shape, rng = RecordShape(source), np.random.default_rng([planned.order.seed, 1])
    timed = "timestamp" not in source.constants
    rows = zip(planned.user.tolist(), planned.item, planned.times.tolist(), strict=True)
    for user, item, time_ms in rows:
        fields: dict[str, Any] = {
            "event_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
            "user_id": planned.users[user],
            "item_id": item,
            "type": planned.type,
        }
        if timed:
            fields["timestamp"] = time_ms
        try:
            yield planned.users[user], shape.document(fields)
        except ShapeError as error:
            raise AttackError(f"topic {source.topic!r} cannot hold a fake event: {error}") from None
