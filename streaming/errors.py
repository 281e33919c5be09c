"""What can go wrong in `streaming`, as a tree.

- StreamingError
  - BrokerError        the broker cannot be reached or refused
  - GapError           a batch starts past the next expected offset: applying it would lose records
  - StoreError         a store on disk does not fit the settings it is opened with
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


class StoreError(StreamingError):
    """A store on disk does not fit the settings it is opened with."""
