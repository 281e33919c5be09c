"""Records that were read and not yet sent: what turns many small fetches into few large micro-batches.

A row is read and written once per micro-batch, however many of its user's events are in it, so under backlog large
batches are several times cheaper per event. Without backlog waiting would only make events old: then
whatever came is sent at once.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from streaming.source import Header, Part, Records


class Intake:
    """Gathers records per partition; bounded by whoever asks `full` before reading on.

    Args:
        batch_records: most records in one micro-batch.
        buffered_records: records over all partitions from which on nothing more is read.
        buffered_bytes: the same for the bytes of their values.
    """

    def __init__(self, batch_records: int, buffered_records: int, buffered_bytes: int) -> None:
        self._batch, self._most, self._most_bytes = batch_records, buffered_records, buffered_bytes
        self._bytes: dict[Part, int] = {}
        self._waiting: dict[Part, list[Records]] = {}

    def add(self, polled: Iterable[Records]) -> None:
        """Take in what a poll brought."""
        for records in polled:
            part = records.topic, records.partition
            self._waiting.setdefault(part, []).append(records)
            size = sum(len(value) for value in records.values if value is not None)
            self._bytes[part] = self._bytes.get(part, 0) + size

    def __len__(self) -> int:
        return sum(len(records) for waiting in self._waiting.values() for records in waiting)

    def waits(self, part: Part) -> int:
        """Records of a partition that are not sent yet."""
        return sum(len(records) for records in self._waiting.get(part, ()))

    def full(self) -> bool:
        """Whether a micro-batch is complete, or no more may be held."""
        held = len(self) >= self._most or sum(self._bytes.values()) >= self._most_bytes
        return held or any(self.waits(part) >= self._batch for part in self._waiting)

    def take(self) -> Records | None:
        """The partition with the most records waiting, as one micro-batch; None where nothing waits."""
        part = max(self._waiting, key=self.waits, default=None)
        if part is None:
            return None
        del self._bytes[part]
        return _joined(self._waiting.pop(part))

    def clear(self) -> None:
        """Forget everything: it will be read again."""
        self._waiting.clear()
        self._bytes.clear()


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
