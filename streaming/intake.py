"""Where records wait until a micro-batch is worth sending.

A shard pays for every user that a batch touches, whether by one event or by ten, and for every commit, so under
backlog large batches are several times cheaper per event. Records wait as they came only until there are enough to
decode them at once; as columns they take less room. Without backlog waiting would only make events old: then
whatever came is sent at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from streaming.events import Events
from streaming.rows import Int64, end_to_end
from streaming.source import Header, Part, Records

_DECODED_AT_ONCE = 20_000  # records of all partitions
_DECODED_AT_ONCE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Decoded:
    """What consecutive records of one partition say.

    Args:
        events: the N valid ones; their `record` counts within the decoding that they come from.
        offset: (N,) of each event.
        ingested_ms: (N,) Kafka timestamp of each event's record.
        upto_offset: of the last record, be it valid or not.
        dead_letters: offsets of those that are not.
        records: how many they were.
    """

    events: Events
    offset: Int64
    ingested_ms: Int64
    upto_offset: int
    dead_letters: Int64
    records: int

    @classmethod
    def of(cls, batch: Records, events: Events, rejected: Sequence[int]) -> "Decoded":
        """Records, the events among them, and the positions of the others."""
        return cls(
            events=events,
            offset=batch.offsets[events.record],
            ingested_ms=batch.timestamps_ms[events.record],
            upto_offset=int(batch.offsets[-1]),
            dead_letters=batch.offsets[list(rejected)],
            records=len(batch),
        )

    @classmethod
    def joined(cls, parts: Sequence["Decoded"]) -> "Decoded":
        """Several of one partition, in order, as one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            end_to_end([part.events for part in parts]),
            np.concatenate([part.offset for part in parts]),
            np.concatenate([part.ingested_ms for part in parts]),
            parts[-1].upto_offset,
            np.concatenate([part.dead_letters for part in parts]),
            sum(part.records for part in parts),
        )


class Intake:
    """Gathers records per partition; bounded by whoever asks `full` before reading on.

    Args:
        decode: makes events of records, and sees to those that are none.
        batch_records: records from which on a micro-batch is complete.
    """

    def __init__(self, decode: Callable[[Records], Decoded], batch_records: int) -> None:
        self._decode, self._batch = decode, batch_records
        self._raw: dict[Part, list[Records]] = {}
        self._decoded: dict[Part, list[Decoded]] = {}
        self._raw_records = self._raw_bytes = 0
        self._waits: dict[Part, int] = {}  # records, raw or decoded

    def add(self, polled: Iterable[Records]) -> None:
        """Take in what a poll brought."""
        for records in polled:
            part = records.topic, records.partition
            self._raw.setdefault(part, []).append(records)
            self._waits[part] = self._waits.get(part, 0) + len(records)
            self._raw_records += len(records)
            self._raw_bytes += sum(len(value) for value in records.values if value is not None)
            if self._raw_bytes >= _DECODED_AT_ONCE_BYTES:
                self.decode()
        self.decode(_DECODED_AT_ONCE)

    def decode(self, at_least: int = 0) -> None:
        """Decode what waits as it came, if it is so many records; the fewer at once, the dearer each."""
        if self._raw_records < at_least:
            return
        for part, waiting in self._raw.items():
            self._decoded.setdefault(part, []).append(self._decode(_joined(waiting)))
        self._raw.clear()
        self._raw_records = self._raw_bytes = 0

    def __len__(self) -> int:
        return sum(self._waits.values())

    def waits(self, part: Part) -> int:
        """Records of a partition that are not sent yet."""
        return self._waits.get(part, 0)

    def full(self) -> bool:
        """Whether a micro-batch is complete."""
        return len(self) >= self._batch

    def take(self) -> dict[Part, Decoded]:
        """All that waits, by partition."""
        self.decode()
        taken = {part: Decoded.joined(parts) for part, parts in self._decoded.items()}
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget everything: it will be read again."""
        self._raw.clear()
        self._decoded.clear()
        self._waits.clear()
        self._raw_records = self._raw_bytes = 0


def _joined(parts: Sequence[Records]) -> Records:
    """Consecutive records of one partition as one."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([len(part) for part in parts])

    def headers(record: int) -> list[Header]:
        place = int(np.searchsorted(ends, record, side="right"))
        return parts[place].headers(record - int(ends[place] - len(parts[place])))

    return Records(
        parts[0].topic,
        parts[0].partition,
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.timestamps_ms for part in parts]),
        [key for part in parts for key in part.keys],
        [value for part in parts for value in part.values],
        headers,
    )
