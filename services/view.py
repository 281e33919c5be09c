"""The live terminal view of a running demo: one pure function from a snapshot to what is drawn.

On a terminal the picture is redrawn in place; anywhere else a plain line every few seconds takes its place,
so that a log stays readable.
"""

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.formats import change, duration, number, of_total, percent, percentiles, spark

_VERDICTS = 3  # shown at most
_PHASES = 4  # shown at most
_PLAIN_EVERY_S = 5.0


@dataclass(frozen=True)
class Phase:
    """Something under way that takes a while."""

    label: str
    done: float | None = None  # None with a total: not known yet; None without: no bar at all
    total: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class GateVerdict:
    """What the gate said of one candidate."""

    version: str
    promoted: bool
    reason: str
    candidate_ndcg: float | None = None
    incumbent_ndcg: float | None = None
    candidate_attacked_ndcg: float | None = None
    incumbent_attacked_ndcg: float | None = None


@dataclass(frozen=True)
class DemoSnapshot:
    """Everything the view shows. None means "not known yet" and is drawn as a dash."""

    title: str = ""
    elapsed_s: float = 0.0
    remaining_s: float | None = None
    phases: tuple[Phase, ...] = ()
    events_per_s: float | None = None
    events_per_s_history: tuple[float, ...] = ()
    produced: int = 0
    total: int | None = None
    applied: int | None = None
    duplicates: int | None = None
    dead_lettered: int | None = None
    lag: int | None = None
    users: int | None = None
    items: int | None = None
    windows: int | None = None
    model_version: str | None = None
    model_age_s: float | None = None
    promoted: int = 0
    rejected: int = 0
    verdicts: tuple[GateVerdict, ...] = ()  # newest first
    request_p50_ms: float | None = None
    request_p99_ms: float | None = None
    requests: int = 0
    request_errors: int = 0
    freshness_p50_ms: float | None = None
    freshness_p99_ms: float | None = None
    hit_rate: float | None = None  # prequential, all scored requests
    recent_hit_rate: float | None = None
    popularity_hit_rate: float | None = None
    scored: int = 0
    urls: tuple[tuple[str, str], ...] = field(default=())  # (name, address)
    note: str = ""


def render(snapshot: DemoSnapshot) -> RenderableType:
    """Draw a snapshot. Its height depends only on which parts there are, so that it does not jump about."""
    parts: list[RenderableType] = [_phases(snapshot), _rule(), _figures(snapshot)]
    parts += [_rule("gate"), _verdicts(snapshot)]
    if snapshot.urls:
        parts += [_rule(), _urls(snapshot)]
    if snapshot.note:
        parts.append(Text(snapshot.note, style="yellow", no_wrap=True, overflow="ellipsis"))
    name = Text.assemble(("headrace", "bold cyan"), f"  {snapshot.title}" if snapshot.title else "")
    clock = duration(snapshot.elapsed_s)
    if snapshot.remaining_s is not None:
        clock += f" · ends in {duration(snapshot.remaining_s)}"
    return Panel(
        Group(*parts), title=name, title_align="left", subtitle=f"{clock} · Ctrl-C stops it all",
        subtitle_align="right", border_style="cyan", padding=(0, 1),
    )  # fmt: skip


def _rule(title: str = "") -> Rule:
    return Rule(Text(title, "dim"), style="grey35", align="left")


def _phases(snapshot: DemoSnapshot) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=5, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=3)
    table.add_column(ratio=4, no_wrap=True, overflow="ellipsis", style="dim")
    for phase in _shown(snapshot.phases):
        known = phase.total is not None and phase.total > 0
        bar: RenderableType = ""
        if known and phase.done is not None:
            bar = ProgressBar(total=phase.total, completed=min(phase.done, phase.total or 0.0))
        elif phase.total is not None:
            bar = ProgressBar(pulse=True)
        table.add_row(Text(phase.label), bar, phase.detail or _fraction(phase))
    return table


def _shown(phases: tuple[Phase, ...]) -> list[Phase]:
    """What is under way first, then what ended last: at most as many as fit a terminal of 24 lines."""
    under_way = [phase.total is not None and phase.done != phase.total for phase in phases]
    newest = sorted(range(len(phases)), key=lambda number: (under_way[number], number))[-_PHASES:]
    return [phases[number] for number in sorted(newest)]


def _fraction(phase: Phase) -> str:
    if phase.done is None or not phase.total:
        return ""
    if phase.total <= 1.0:
        return f"{100 * phase.done / phase.total:.0f}%"
    return f"{phase.done:,.0f} / {phase.total:,.0f}"


def _figures(snapshot: DemoSnapshot) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", no_wrap=True, width=11)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_row("stream", _stream(snapshot))
    table.add_row("", _counts(snapshot))
    table.add_row("model", _model(snapshot))
    table.add_row("requests", _requests(snapshot))
    fresh = percentiles(snapshot.freshness_p50_ms, snapshot.freshness_p99_ms)
    table.add_row("freshness", Text.assemble((fresh, "bold"), ("   event sent → in the answer", "dim")))
    top = max(snapshot.hit_rate or 0.0, snapshot.popularity_hit_rate or 0.0)
    late = Text.assemble(("  last 500 ", "dim"), percent(snapshot.recent_hit_rate))
    table.add_row("hit rate@10", _rate(snapshot.hit_rate, top, "green") + late)
    table.add_row("popularity", _rate(snapshot.popularity_hit_rate, top, "blue") + _times(snapshot))
    return table


def _stream(snapshot: DemoSnapshot) -> Text:
    return Text.assemble(
        (f"{number(snapshot.events_per_s, ',.0f')}/s", "bold"),
        " ",
        spark(snapshot.events_per_s_history),
        ("  sent ", "dim"),
        of_total(snapshot.produced, snapshot.total),
        ("  applied ", "dim"),
        number(snapshot.applied, ","),
        ("  lag ", "dim"),
        number(snapshot.lag, ","),
    )


def _counts(snapshot: DemoSnapshot) -> Text:
    line = Text()
    for value, name in ((snapshot.users, "users"), (snapshot.items, "items"), (snapshot.windows, "windows")):
        line.append(number(value, ",")).append(f" {name}  ", "dim")
    if snapshot.dead_lettered:
        line.append(f"{snapshot.dead_lettered:,} dead letters  ", "red")
    if snapshot.duplicates:
        line.append(f"{snapshot.duplicates:,} duplicates", "yellow")
    return line


def _model(snapshot: DemoSnapshot) -> Text:
    if snapshot.model_version is None:
        return Text("none yet: popular items are served", "dim")
    return Text.assemble(
        (snapshot.model_version, "bold"),
        (f"  {duration(snapshot.model_age_s)} old  ", ""),
        (f"{snapshot.promoted} promoted", "green"),
        ("  "),
        (f"{snapshot.rejected} rejected", "red" if snapshot.rejected else "dim"),
    )


def _requests(snapshot: DemoSnapshot) -> Text:
    line = Text(percentiles(snapshot.request_p50_ms, snapshot.request_p99_ms), "bold")
    line.append(f"   {snapshot.requests:,} answered  ", "dim")
    failed = snapshot.request_errors
    return line.append(f"{failed:,} failed", "red" if failed else "dim")


def _rate(value: float | None, top: float, colour: str) -> Text:
    width = 24
    filled = round(width * value / top) if value and top else 0
    bar = Text.assemble((f"{percent(value):>6} ", "bold"))
    return bar.append("━" * filled, colour).append("━" * (width - filled), "grey23")


def _verdicts(snapshot: DemoSnapshot) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, width=11)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    shown = snapshot.verdicts[:_VERDICTS]
    for verdict in shown:
        said = Text("✔ promoted", "green") if verdict.promoted else Text("✘ rejected", "red")
        numbers = Text.assemble(verdict.version, ("  NDCG@10 ", "dim"))
        numbers.append(change(verdict.incumbent_ndcg, verdict.candidate_ndcg)).append("  attacked ", "dim")
        numbers.append(change(verdict.incumbent_attacked_ndcg, verdict.candidate_attacked_ndcg))
        table.add_row(said, numbers)
        table.add_row("", Text(verdict.reason, "dim"))
    if not shown:
        table.add_row("", Text("no candidate judged yet", "dim"))
    for _ in range(2 * _VERDICTS - max(1, 2 * len(shown))):  # room kept, so that a verdict moves nothing
        table.add_row("", "")
    return table


def _urls(snapshot: DemoSnapshot) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for name, address in snapshot.urls:
        line.append(f"{name} ", "dim").append(address, f"underline cyan link {address}").append("  ")
    return line


def _times(snapshot: DemoSnapshot) -> Text:
    if not snapshot.hit_rate or not snapshot.popularity_hit_rate:
        return Text(f"  {snapshot.scored:,} scored", "dim")
    ratio = snapshot.hit_rate / snapshot.popularity_hit_rate
    style = "bold green" if ratio >= 1 else "bold red"
    return Text.assemble((f"  {ratio:.1f}×", style), (f"  {snapshot.scored:,} scored", "dim"))


def plain_line(snapshot: DemoSnapshot) -> str:
    """The same in one line, for logs."""
    parts = [f"[{duration(snapshot.elapsed_s)}]"]
    parts += [f"{phase.label} {phase.detail or _fraction(phase)}".rstrip() for phase in snapshot.phases[-2:]]
    if snapshot.produced:
        sent = of_total(snapshot.produced, snapshot.total)
        rate = number(snapshot.events_per_s, ",.0f")
        applied, lag = number(snapshot.applied, ","), number(snapshot.lag, ",")
        parts.append(f"sent {sent} at {rate}/s, applied {applied}, lag {lag}")
    if snapshot.model_version:
        parts.append(
            f"model {snapshot.model_version} ({duration(snapshot.model_age_s)} old, "
            f"{snapshot.promoted} promoted, {snapshot.rejected} rejected)"
        )
    if snapshot.requests:
        times = percentiles(snapshot.request_p50_ms, snapshot.request_p99_ms)
        parts.append(f"requests {times}, {snapshot.request_errors} failed")
    if snapshot.freshness_p50_ms is not None:
        parts.append(f"fresh {percentiles(snapshot.freshness_p50_ms, snapshot.freshness_p99_ms)}")
    if snapshot.scored:
        parts.append(
            f"hit rate {percent(snapshot.hit_rate)} vs popularity {percent(snapshot.popularity_hit_rate)}"
        )
    return " | ".join(parts)


class LiveView:
    """Shows snapshots while it is open: `with LiveView() as view: view.update(snapshot)`.

    Args:
        console: where to draw; standard output if not given.
        plain_every_s: without a terminal, least time between two lines.
    """

    def __init__(self, console: Console | None = None, plain_every_s: float = _PLAIN_EVERY_S) -> None:
        self.console = console or Console(file=sys.stdout)
        self._plain_every_s = plain_every_s
        self._snapshot = DemoSnapshot()
        self._printed_at = float("-inf")
        self._printed_phases: tuple[str, ...] = ()
        self._live: Live | None = None

    def __enter__(self) -> "LiveView":
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=lambda: render(self._snapshot),
                console=self.console,
                refresh_per_second=5,  # enough for the moving bars, cheap enough for two cores
                vertical_overflow="crop",
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, snapshot: DemoSnapshot) -> None:
        """Show a newer snapshot: at the next redraw, or as a line if one is due or a new phase began."""
        self._snapshot = snapshot
        if self._live is not None:
            return
        phases = tuple(phase.label for phase in snapshot.phases)
        now = time.monotonic()
        if phases != self._printed_phases or now - self._printed_at >= self._plain_every_s:
            self._printed_at, self._printed_phases = now, phases
            self.say(plain_line(snapshot))

    def say(self, message: str) -> None:
        """Print a line that stays, above the picture if there is one."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)
