"""What processes log: one line each, as text for people or as JSON for collectors.

A line has time, level, logger, message and the role of its process, and says which request or window it is about
where there is one. Ids of users are in no line. Every process calls `configure` once, first thing; what it starts can
take over its settings from `installed`.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pydantic import Field
from pythonjsonlogger.json import JsonFormatter

from streaming.config import Section

PACKAGES = ("streaming", "training", "serving", "services", "headrace")  # roots of our loggers' names
_TEXT = "%(asctime)s %(levelname)s %(name)s %(role)s%(about)s %(message)s"
_JSON = "%(levelname)s %(name)s %(message)s %(role)s %(process)d"
_RENAMED = {"levelname": "level", "name": "logger", "process": "pid", "exc_info": "error"}

_NOTHING = (None, "-")

log = logging.getLogger(__name__)

_window: ContextVar[str | None] = ContextVar("window", default=None)

Context = Callable[[], str | None]


class LogSettings(Section):
    """What processes log, and how a line looks."""

    format: Literal["text", "json"] = Field("text", description="json: one object per line, for collectors")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least level of Headrace's own lines; others are shown from WARNING on"
    )


class _About(logging.Filter):
    """Gives each record the role of the process and what it is about.

    Args:
        role: of the process. context: by name, what gives the present value.
    """

    def __init__(self, role: str, context: dict[str, Context]) -> None:
        super().__init__()
        self._role, self._context = role, context

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        about = {name: value for name, read in self._context.items() if (value := read()) not in _NOTHING}
        vars(record).update(about)  # JSON shows whatever a record has beyond the usual
        record.role = self._role
        record.about = "".join(f" {name}={value}" for name, value in about.items())
        return True


class Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error as the settings say."""

    def __init__(self, settings: LogSettings, role: str, context: dict[str, Context]) -> None:
        # a replica's own: Serve puts one in its place that writes into lines of Serve's log, those above its level
        super().__init__(getattr(sys.stderr, "_original_object", sys.stderr))
        self.settings = settings
        self.addFilter(_About(role, context))
        json = settings.format == "json"
        self.setFormatter(
            JsonFormatter(_JSON, rename_fields=_RENAMED, timestamp="time", reserved_attrs=_reserved())
            if json
            else logging.Formatter(_TEXT)
        )


def _reserved() -> list[str]:
    """Attributes of records that a JSON line is not to show."""
    plain = vars(logging.makeLogRecord({}))
    return [*plain, "about", "color_message", "message", "asctime"]


def configure(settings: LogSettings, role: str, **context: Context) -> None:
    """Set up the logs of this process; safe to repeat, and the last one counts.

    Args:
        settings: form and level.
        role: of this process: supervisor, shard-0, api...
        context: by the name it gets in a line, what says what the present line is about, such as a request; None or
            a dash: nothing.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, Handler)]:
        root.removeHandler(handler)
    root.addHandler(Handler(settings, role, {"window": _window.get, **context}))
    for package in PACKAGES:
        logging.getLogger(package).setLevel(settings.level)
    log.info("this process is %s", role)


def installed() -> LogSettings | None:
    """What this process was set up with; None where it was not."""
    found = [handler for handler in logging.getLogger().handlers if isinstance(handler, Handler)]
    return found[0].settings if found else None


@contextmanager
def about_window(name: str) -> Iterator[None]:
    """Lines inside the `with` block are about this window."""
    token = _window.set(name)
    try:
        yield
    finally:
        _window.reset(token)
