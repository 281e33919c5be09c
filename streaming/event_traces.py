"""The traces of events within an ingestor: found as records are decoded, handed on with their micro-batch."""

from dataclasses import replace

import numpy as np

from streaming.batch import ActorBatch
from streaming.events import Events
from streaming.source import Records
from streaming.traces import Span, Traced, Tracer, sampled

_MOST = 32  # followed of a micro-batch


class EventTraces:
    """What is traced of the records that wait to be sent.

    Args:
        tracer: tells spans. num_shards: logical ones.
    """

    def __init__(self, tracer: Tracer, num_shards: int) -> None:
        self._tracer, self._num_shards = tracer, num_shards
        self._waiting: list[Traced] = []

    def look(self, batch: Records, events: Events) -> None:
        """Find the traces of decoded records; what was no event has none."""
        for place in range(len(events)):
            if len(self._waiting) == _MOST:
                return
            record = int(events.record[place])
            parent = sampled(batch.headers(record))
            if parent is not None:
                shard = int(events.user[place] % np.uint64(self._num_shards))
                self._waiting.append(Traced(shard, parent, int(batch.timestamps_ms[record])))

    def clear(self) -> None:
        """Forget what waits: it will be read again."""
        self._waiting.clear()

    def send(self, batches: list[ActorBatch], records: int) -> tuple[list[ActorBatch], Span | None]:
        """The batches with what is traced in them, and the span of the micro-batch, which ends with the answers."""
        if not self._waiting:
            return batches, None
        handed_on = []
        for event in self._waiting:
            span = self._tracer.begin("ingest", event.parent, kind="consumer", start_ms=event.time_ms)
            handed_on.append(event._replace(parent=span.traceparent))
            span.end({"batch.records": records})
        self.clear()
        whole = self._tracer.begin(
            "batch",
            handed_on[0].parent,
            links=[event.parent for event in handed_on],
            attributes={"batch.records": records},
        )
        return [
            replace(batch, traced=tuple(event for event in handed_on if event.shard in batch.shards))
            for batch in batches
        ], whole
