"""Bytes and text of strangers, made fit for a terminal.

A record may hold anything: escape sequences that move the cursor, characters that turn the writing direction,
half a surrogate pair. Whatever is not plainly printable is shown as an escape, so that what a person sees is what
is there.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from rich.console import Console

_HEX_ROW = 16  # bytes in a line of a dump
_PIPE_WIDTH = 160  # columns where the output is no terminal


def console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for whole lines where it goes into a pipe."""
    out = Console(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = _PIPE_WIDTH
    return out


def printable(value: str | bytes, limit: int | None = None) -> str:
    """Text in which every character prints as itself or as an escape.

    Args:
        limit: longest result in characters; what is cut is marked with an ellipsis.
    """
    if isinstance(value, bytes):
        whole = len(value) <= 4 * limit if limit else True  # no character takes more than four bytes
        value = (value if whole else value[: 4 * (limit or 0)]).decode(errors="backslashreplace")
    if limit is not None and len(value) > limit:
        value = value[: limit - 1] + "…"
    shown = value if value.isprintable() else "".join(map(_escaped, value))
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", errors="surrogatepass").decode("ascii")


def pretty(value: bytes, max_lines: int | None = None) -> tuple[str, str]:
    """The bytes of a record for reading.

    Args:
        max_lines: most lines; a last one says what was left out.

    Returns:
        What it is ("JSON", "text" or "bytes"), and the lines: indented JSON, the text, or a hexadecimal dump.
    """
    kind, lines = "JSON", _json_lines(value)
    if lines is None:
        kind, lines = "text", _text_lines(value)
    if lines is None:
        kind, lines = "bytes", _hex_lines(value, max_lines)
    if max_lines is not None and len(lines) > max_lines:
        lines = [*lines[:max_lines], f"… {len(lines) - max_lines:,} more lines"]
    return kind, "\n".join(lines)


def _json_lines(value: bytes) -> list[str] | None:
    try:
        document = json.loads(value)
        text = json.dumps(document, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return [printable(line) for line in text.split("\n")]


def _text_lines(value: bytes) -> list[str] | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    odd = sum(not character.isprintable() and character not in "\r\n\t" for character in text)
    return None if odd * 10 > len(text) else [printable(line) for line in text.split("\n")]


def _hex_lines(value: bytes, max_lines: int | None) -> list[str]:
    shown = value if max_lines is None else value[: max_lines * _HEX_ROW]
    lines = []
    for start in range(0, len(shown), _HEX_ROW):
        row = shown[start : start + _HEX_ROW]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' ', 1):<{3 * _HEX_ROW - 1}}  {text}")
    if len(shown) < len(value):
        lines = [*lines[:-1], f"… {len(value) - (len(lines) - 1) * _HEX_ROW:,} more bytes"]
    return lines


def moment(time_ms: int | None) -> str:
    """A time as `2026-11-22 10:05:07` (UTC); a dash where there is none."""
    if time_ms is None or time_ms < 0:
        return "—"
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def since_ms(text: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> int:
    """Read `15m`, `2h`, `7d` (ago) or an ISO 8601 time (UTC where it names no zone) as epoch milliseconds.

    Raises:
        ValueError: it is neither.
    """
    try:
        ago = _duration(text)
        then = datetime.fromisoformat(text) if ago is None else now() - ago
        return round((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError(
            "expected a time such as 2026-11-22T10:00 (UTC), or how long ago: 15m, 2h, 7d; "
            f"got {printable(text, 60)!r}"
        ) from None


def duration_ms(text: str) -> int:
    """Read `15m`, `2h`, `7d` as milliseconds.

    Raises:
        ValueError: it is no such duration, or none at all.
    """
    try:
        found = _duration(text)
    except OverflowError:
        found = None
    if not found:
        raise ValueError(f"expected a duration such as 15m, 2h or 7d; got {printable(text, 60)!r}")
    return round(found.total_seconds() * 1000)


def _duration(text: str) -> timedelta | None:
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if unit in units and number.isascii() and number.isdigit():
        return timedelta(**{units[unit]: int(number)})
    return None
