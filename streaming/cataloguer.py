"""The catalogue actor: items topic in, items and text vectors out.

It reads the compacted items topic from where the store stands and encodes new texts in the gaps between
polls, a small batch at a time, so that a new item is servable within about a second. The encoder is handed
in by the composition above: this package knows no model.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streaming import metrics
from streaming.anchors import Guard
from streaming.catalog import CatalogReader, CatalogStore, Float32, Item, parse_item
from streaming.config import KafkaSettings
from streaming.kafka import make_consumer, topic_partitions

log = logging.getLogger(__name__)

_ENCODE_BATCH = 256
_FETCH_WAIT_MS = 250  # an item may take a little longer than an event


class Encoder(Protocol):
    """What turns texts into vectors."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same text would get another vector."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32:
        """(N,) texts to (N, D) vectors."""
        ...


@dataclass(frozen=True)
class CatalogStatus:
    """How far the catalogue actor is.

    Attributes:
        held_back: items whose changed text asks for a vector beyond the guard's cap, so that theirs is at the cap.
    """

    items: int
    encoded: int
    held_back: int
    rejected: int
    lag: int
    error: str | None


class Cataloguer:
    """Keeps the catalogue store up to date; runs in its own thread from construction on.

    Args:
        kafka: broker settings.
        catalog_dir: folder of the store.
        encoder_due: says which encoder is due now; called in the thread, since loading a model takes seconds, and
            between polls, so it is to be cheap while that does not change. Texts are encoded anew when it does.
        guard: what a changed text may do; None: anything. Texts are encoded anew when its fingerprint changes.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        catalog_dir: Path,
        encoder_due: Callable[[], Encoder],
        guard: Guard | None = None,
    ) -> None:
        self._kafka, self._dir, self._encoder_due, self._guard = kafka, catalog_dir, encoder_due, guard
        self._stop = threading.Event()
        self._error: str | None = None
        self._lag = 0
        self._store = CatalogStore(catalog_dir)
        self._reader = CatalogReader(catalog_dir)
        self._thread = threading.Thread(target=self._run, name="cataloguer", daemon=True)
        self._thread.start()

    def status(self) -> CatalogStatus:
        """Progress, for people and for the supervisor."""
        items, encoded = self._reader.counts()
        metrics.CATALOG_ITEMS.set(items)
        metrics.CATALOG_ENCODED.set(min(encoded, items))
        return CatalogStatus(
            items=items,
            encoded=min(encoded, items),
            held_back=self._store.held_back(),
            rejected=self._reader.rejected(),
            lag=self._lag,
            error=self._error,
        )

    def pid(self) -> int:
        """Process id of this actor."""
        return os.getpid()

    def stop(self) -> None:
        """Stop the thread and close the store."""
        self._stop.set()
        self._thread.join(10)
        self._store.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._work()
            except Exception as error:
                self._error = f"{type(error).__name__}: {error}"
                log.exception("the catalogue failed; it starts over in 2 s")
                self._stop.wait(2)

    def _work(self) -> None:
        consumer = make_consumer(self._kafka, fetch_wait_ms=_FETCH_WAIT_MS)
        try:
            topic = self._kafka.items_topic
            assigned = topic_partitions(topic, sorted(consumer.partitions_for_topic(topic) or (0,)))
            consumer.assign(assigned)
            applied, beginning = self._store.applied(), consumer.beginning_offsets(assigned)
            for part in assigned:
                consumer.seek(part, max(applied.get(part.partition, -1) + 1, beginning[part]))
            encoder: Encoder | None = None
            pending = True
            while not self._stop.is_set():
                polled = consumer.poll(timeout_ms=0 if pending else 500)
                for part, records in polled.items():
                    self._apply(part.partition, records)
                    pending = True
                self._lag = sum(
                    (consumer.highwater(part) or 0) - consumer.position(part) for part in assigned
                )
                if not polled:
                    due = self._encoder_due()
                    pending, encoder = pending or due is not encoder, due
                    pending = pending and encode_batch(self._store, encoder, self._guard)
                self._error = None
        finally:
            consumer.close(autocommit=False)

    def _apply(self, partition: int, records: Sequence[Any]) -> None:
        changes: list[tuple[str, Item | None]] = []
        rejected = 0
        for record in records:
            if record.value is None:
                if record.key:
                    changes.append((record.key.decode(errors="replace"), None))
                continue
            item = parse_item(record.key, record.value)
            if isinstance(item, Item):
                changes.append((item.item_id, item))
            else:
                rejected += 1
                log.warning("items partition %d offset %d is no item: %s", partition, record.offset, item)
        self._store.apply(changes, partition, records[-1].offset, rejected)


def encode_batch(store: CatalogStore, encoder: Encoder, guard: Guard | None = None) -> bool:
    """Encode one batch of texts that lack a vector of this encoder and guard; False when nothing was left to do."""
    todo = store.missing(encoder.fingerprint, _ENCODE_BATCH, guard)
    if todo:
        texts = [text for _, text in todo]
        vectors = encoder.encode(guard.clean(texts) if guard is not None else texts)
        store.put_vectors(encoder.fingerprint, todo, vectors, guard)
    return bool(todo)
