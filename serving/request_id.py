"""A name for each request, in its answer and in what is logged about it."""

import logging
import re
import secrets
from contextvars import ContextVar

NONE = "-"  # outside of requests
_current: ContextVar[str] = ContextVar("request_id", default=NONE)
_SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")  # fits a log line and a header as it is

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


def begin(given: bytes | None) -> str:
    """Name the request that this task now serves.

    Args:
        given: what the caller sent as X-Request-ID; taken where it is 1 to 128 plain characters.
    """
    name = given.decode("ascii") if given and _SANE.fullmatch(given) else secrets.token_hex(12)
    _current.set(name)
    return name


def current() -> str:
    """The request that is served now; a dash outside of requests."""
    return _current.get()


class RequestIdFilter(logging.Filter):
    """Gives each record the attribute `request_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        record.request_id = current()
        return True


def configure_logging(logger: logging.Logger) -> None:
    """Write what a logger and those below it log to standard error, with the id of the request. Safe to repeat."""
    if any(isinstance(known, RequestIdFilter) for handler in logger.handlers for known in handler.filters):
        return
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.propagate = False
