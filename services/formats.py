"""Numbers as text for people: one way to write each kind, a dash for what is not known."""

from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"


def change(before: float | None, after: float | None) -> str:
    """A score before and after: `.069→.081`; the new one alone where there was none."""
    if after is None:
        return "—"
    new = f"{after:.3f}".lstrip("0")
    return new if before is None else f"{before:.3f}".lstrip("0") + "→" + new


def spark(values: tuple[float, ...]) -> Text:
    """The newest eight values as small bars, scaled to the largest."""
    newest = values[-8:]
    top = max(newest, default=0.0)
    if top <= 0:
        return Text("")
    return Text("".join(_BARS[min(7, int(8 * max(0.0, value) / top))] for value in newest), "cyan")


def number(value: float | None, form: str) -> str:
    """A number in a format; a dash where it is not known."""
    return "—" if value is None else format(value, form)


def of_total(value: int, total: int | None) -> str:
    """`60,291 / 100,000`, or the count alone."""
    return f"{value:,}" if total is None else f"{value:,} / {total:,}"


def percentiles(first: float | None, second: float | None) -> str:
    """`p50 6.2 · p99 41.8 ms`."""
    return f"p50 {milliseconds(first)} · p99 {milliseconds(second)} ms"


def milliseconds(value: float | None) -> str:
    """One decimal below 100, none above."""
    return "—" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "—" if value is None else f"{100 * value:.1f}%"


def duration(seconds: float | None) -> str:
    """Seconds in words: `12 s`, `1:15 min`, `2:05 h`."""
    if seconds is None:
        return "—"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
