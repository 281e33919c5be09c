"""Clocks: ours against the broker's, and against the times in the newest records."""

from collections.abc import Iterator, Sequence

from services.doctor.finding import Finding, error, ok, warning

TOLERANCE_MS = 2_000  # NTP keeps machines within a few tens of ms
_GRAVE_MS = 60_000


def judge_broker(appended_ms: int | None, before_ms: int, after_ms: int) -> Finding:
    """The broker's clock, by the time that it gave a record.

    Args:
        appended_ms: what it gave; None where the topic keeps the producer's time.
        before_ms, after_ms: our clock when the record left, and when it was acknowledged.
    """
    what = "clock of the broker"
    if appended_ms is None:
        return ok(what, "not told: the dead-letter topic keeps the producer's time (message.timestamp.type)")
    ahead = appended_ms - after_ms if appended_ms > after_ms else min(0, appended_ms - before_ms)
    seen = f"{ahead / 1000:+.1f} s from ours"
    advice = "let both follow NTP: ages, windows and late events are counted by these clocks"
    if abs(ahead) > _GRAVE_MS:
        return error(what, seen, advice)
    return warning(what, seen, advice) if abs(ahead) > TOLERANCE_MS else ok(what, seen)


def judge_events(
    topic: str, event_ms: Sequence[int], record_ms: Sequence[int], now_ms: int
) -> Iterator[Finding]:
    """Times in a sample of the newest records.

    Args:
        event_ms: event times of those that validate. record_ms: Kafka's times of all of them. now_ms: our clock.
    """
    what = f"clock of the producers of {topic}"
    ahead = [time - now_ms for time in event_ms if time - now_ms > TOLERANCE_MS]
    if ahead:
        yield warning(
            what,
            f"{len(ahead)} of {len(event_ms)} events are dated ahead, up to {max(ahead) / 1000:,.0f} s",
            "mend that producer's clock (or ours): windows close early for everybody else, who count as late",
        )
    behind = [record - now_ms for record in record_ms if record - now_ms > TOLERANCE_MS]
    if behind:
        yield warning(
            f"our clock against {topic}",
            f"{len(behind)} of {len(record_ms)} records are stamped ahead of ours, up to {max(behind) / 1000:,.0f} s",
            "look at this machine's clock first (NTP), then at that of producers and broker",
        )
    if event_ms and not ahead and not behind:
        yield ok(what, f"the newest of {len(event_ms)} sampled events is {_age(now_ms - max(event_ms))} old")


def _age(milliseconds: int) -> str:
    seconds = max(0, milliseconds) / 1000
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"
