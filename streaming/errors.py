"""What can go wrong in `streaming`, as a tree.

- StreamingError
  - BrokerError        the broker cannot be reached or refused
  - GapError           a batch starts past the next expected offset: applying it would lose records
  - FencedError        a batch comes from an ingestor that another one has replaced, or for a shard hosted elsewhere
  - StoreError         a store on disk does not fit the settings it is opened with, or another process hosts it
  - SnapshotError      snapshots cannot be stored or read, or may not be restored where they should be
  - TrustError         a file of trust or of decisions about it is damaged
"""


class StreamingError(Exception):
    """Base of all errors raised by this package."""


class BrokerError(StreamingError):
    """The Kafka broker cannot be reached, or refused what was asked."""


class GapError(StreamingError):
    """A batch starts past the next expected offset, so applying it would lose records."""

    def __init__(self, partition: int, expected: int, got: int) -> None:
        super().__init__(
            f"partition {partition}: expected a batch that starts at or below offset {expected}, "
            f"got one that starts at {got}; rewind to {expected} and send again"
        )
        self.partition, self.expected, self.got = partition, expected, got

    def __reduce__(self) -> tuple[type["GapError"], tuple[int, int, int]]:
        return GapError, (self.partition, self.expected, self.got)


class FencedError(StreamingError):
    """A batch comes from an ingestor that another one has replaced, or for a shard that is hosted elsewhere."""


class StoreError(StreamingError):
    """A store on disk does not fit the settings it is opened with, or another process hosts it."""


class SnapshotError(StreamingError):
    """Snapshots cannot be stored or read, or may not be restored where they should be."""


class TrustError(StreamingError):
    """A file of trust, or of people's decisions about it, is damaged."""
