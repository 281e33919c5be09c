"""What can go wrong in `serving`, as a tree; each leaf knows its HTTP status (RFC 9110).

- ServingError                     500
  - NotFoundError                  404  unknown user, item or model version
  - ConflictError                  409  what the request builds on has changed
  - GoneError                      410  a user that was erased; holds the proofs
  - InvalidRequestError            422  a field of the request; `pointer` names it (RFC 6901)
  - UnauthorizedError              401  the key or token is missing or wrong
  - ForbiddenError                 403  the caller lacks the scope, or it is switched off by the settings
  - TooManyRequestsError           429  the caller asks more often than allowed
  - UnavailableError               503  a part this request needs does not answer; try again
    - OverloadedError              503  the replica has more to do than it takes on
"""

from collections.abc import Sequence
from typing import ClassVar

from streaming.erasure import Proof


class ServingError(Exception):
    """Base of all errors raised by this package."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_s: float | None = None  # when the same request may succeed, where that can be told


class NotFoundError(ServingError):
    """An unknown user, item or model version."""

    status, title = 404, "Not found"


class ConflictError(ServingError):
    """What the request builds on has changed since."""

    status, title = 409, "Conflict"


class GoneError(ServingError):
    """A user that was erased and has not come back.

    Args:
        proofs: what was erased, when and by which record; oldest first.
    """

    status, title = 410, "Gone"

    def __init__(self, detail: str, proofs: Sequence[Proof]) -> None:
        super().__init__(detail)
        self.proofs = tuple(proofs)


class InvalidRequestError(ServingError):
    """A field of the request is not acceptable.

    Args:
        pointer: JSON pointer to the field in the body, or `path/…`, `query/…`.
        detail: what was expected and what was seen.
    """

    status, title = 422, "Invalid request"

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}")
        self.pointer, self.detail = pointer, detail


class UnauthorizedError(ServingError):
    """The key or token is missing or wrong."""

    status, title = 401, "Unauthorized"


class ForbiddenError(ServingError):
    """The caller lacks the scope, or nobody has it by the settings."""

    status, title = 403, "Forbidden"


class TooManyRequestsError(ServingError):
    """The caller asks more often than allowed.

    Args:
        retry_after_s: until the next request is answered.
    """

    status, title = 429, "Too many requests"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class UnavailableError(ServingError):
    """A part this request needs does not answer; the same request may succeed later.

    Args:
        retry_after_s: when to try again.
    """

    status, title = 503, "Unavailable"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """The replica works on as many requests as it takes on."""
