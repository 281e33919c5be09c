"""What can go wrong while a stream is replayed, as a tree.

- ReplayError      the replay cannot go on: the system did not do its part in time
  - SendError      the broker refused a record or did not acknowledge it in time
  - ApiError       the API did not answer, or not with what was asked
"""


class ReplayError(Exception):
    """The replay cannot go on: the system did not do its part in time."""


class SendError(ReplayError):
    """The broker refused a record or did not acknowledge it in time."""


class ApiError(ReplayError):
    """The API did not answer, or not with what was asked."""
