"""What `headrace inspect` prints, and the suggested mapping as a piece of TOML."""

import time
from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.documents import MappedEvent
from services.formats import duration, number
from services.inspection import Inspection, PartitionState, Verdict
from services.plain_text import moment, printable
from services.shapes import PathShape
from streaming.config import FieldName, FieldPaths

_PARTITIONS = 12  # shown
_PATHS = 40  # shown
_TYPES = 40  # unmapped types shown


def topic_view(found: Inspection) -> RenderableType:
    """What there is: size, rate, partitions."""
    title = Text.assemble((printable(found.topic), "bold cyan"), f"  {found.records:,} records in ")
    title.append(f"{len(found.partitions)} partition{'s' * (len(found.partitions) != 1)}")
    if found.per_s is not None:
        title.append(f", about {_rate(found.per_s)}/s")
    if found.newest_ms is not None and found.newest_ms >= 0:
        title.append(f", newest {duration(time.time() - found.newest_ms / 1000)} ago")
    table = _table("partition", "first", "end", "records/s", "newest (UTC)", right=4)
    for state in found.partitions[:_PARTITIONS]:
        table.add_row(*_partition(state))
    if len(found.partitions) > _PARTITIONS:
        table.add_row("…", "", "", "", f"{len(found.partitions) - _PARTITIONS} more partitions")
    return Group(title, "", table)


def sample_view(found: Inspection) -> RenderableType:
    """What the present mapping makes of the sample, the first events, and what stands at which path."""
    whose = "its entry in streaming.sources" if found.configured else "the default mapping"
    parts: list[RenderableType] = ["", _rule(f"the newest {found.sampled:,} by {whose}")]
    if not found.configured:
        topics = ", ".join(printable(topic, 60) for topic in found.sources)
        parts.append(Text(f"{found.topic} is not among streaming.sources ({topics})", "dim"))
    if found.framing:
        parts.append(Text(found.framing, "yellow"))
    parts.append(_verdict(found.present, found.sampled))
    if found.tombstones:
        parts.append(
            Text(
                f"{found.tombstones:,} without a value: tombstones, each erases the user its key names", "dim"
            )
        )
    if found.present.rows:
        parts += ["", _rule("as events"), _events(found.present.rows)]
    if found.shapes:
        parts += ["", _rule("paths"), _paths(found.shapes, found.sampled)]
    return Group(*parts)


def suggestion_view(found: Inspection) -> RenderableType:
    """The suggested mapping, with what it makes of the sample."""
    parts: list[RenderableType] = ["", _rule("suggested mapping")]
    if found.suggestion.missing:
        names = " and ".join(found.suggestion.missing)
        parts.append(Text(f"Not complete: no path looks like {names}.", "bold red"))
    else:
        parts.append(_verdict(found.suggested, found.sampled))
    notes = Table.grid(padding=(0, 1))
    for note in found.suggestion.notes:
        notes.add_row("•", Text(printable(note), "yellow"))
    if notes.rows:
        parts.append(notes)
    if found.suggested.rows and not found.present.rows:
        parts += ["", _events(found.suggested.rows)]
    where = "in place of this topic's entry" if found.configured else "beside your other sources"
    parts += ["", Text(f"for headrace.toml, {where} (the API publishes to the first source):", "dim"), ""]
    return Group(*parts)


def snippet(found: Inspection) -> str:
    """The suggestion as TOML, to be pasted into the settings file."""
    return "\n".join(_snippet(found)) + "\n"


def _snippet(found: Inspection) -> Iterator[str]:
    suggestion, source = found.suggestion, found.suggested_source
    yield "[[streaming.sources]]"
    yield f"topic = {toml_text(found.topic)}"
    yield f"format = {toml_text(source.format)}"
    if source.format == "avro":
        yield from ("", "[streaming.sources.avro]")
        if source.avro.schema_file:
            yield f"schema_file = {toml_text(str(source.avro.schema_file))}"
        else:
            yield f"registry_url = {toml_text(source.avro.registry_url or 'http://your-registry:8081')}"
    shapes = {shape.path: shape for shape in found.shapes}
    yield from ("", "[streaming.sources.fields]")
    for name in FieldPaths.model_fields:
        path = suggestion.fields.get(name)  # type: ignore[call-overload]
        if path is not None:
            yield f"{name} = {toml_text(path)}{_comment(shapes.get(path))}"
        elif name in suggestion.missing:
            yield f'# {name} = ""  # not found: name its path here'
    if suggestion.types or suggestion.unmapped:
        yield from ("", "[streaming.sources.types]")
        yield from (f"{toml_text(name)} = {toml_text(kind)}" for name, kind in suggestion.types.items())
        for name, count in list(suggestion.unmapped.items())[:_TYPES]:
            yield f'# {toml_text(name)} = ""  # {count:,} of the sample: dead letters unless you name a type'
    if suggestion.constants:
        yield from ("", "[streaming.sources.constants]")
        yield from (f"{name} = {toml_text(value)}" for name, value in suggestion.constants.items())
    if suggestion.categories:
        listed = ", ".join(toml_text(name) for name in suggestion.categories[:20])
        yield from (
            "",
            "# to count categories per user, under [streaming.state]:",
            f"# categories = [{listed}]",
        )


def _comment(shape: PathShape | None) -> str:
    if shape is None:
        return "  # leads nowhere, on purpose: what stands at the default path does not fit"
    return f"  # {shape.distinct:,} distinct, such as {printable(shape.example, 40)}"


def unused(found: Inspection) -> list[tuple[FieldName, PathShape]]:
    """Optional fields that the present mapping finds nothing for, and the suggestion does."""
    paths = {shape.path: shape for shape in found.shapes}
    optional: tuple[FieldName, ...] = ("event_id", "value", "category")
    return [
        (name, paths[path])
        for name in optional
        if (path := found.suggestion.fields.get(name)) in paths
        and getattr(found.source.fields, name) not in paths
        and name not in found.source.constants
    ]


def toml_text(text: str) -> str:
    """A basic string of TOML in which nothing but printable characters stands."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _partition(state: PartitionState) -> tuple[str, ...]:
    rate = "—" if state.per_s is None else _rate(state.per_s)
    return str(state.partition), f"{state.beginning:,}", f"{state.end:,}", rate, moment(state.newest_ms)


def _rate(per_s: float) -> str:
    return number(per_s, ",.0f" if per_s >= 10 else ".2g")


def _verdict(verdict: Verdict, sampled: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    whole = verdict.accepted == sampled
    share = f"of {sampled:,} accepted ({100 * verdict.accepted / max(sampled, 1):.1f}%)"
    style = "bold green" if whole else "bold yellow" if verdict.accepted else "bold red"
    table.add_row(Text(f"{'✔ ' if verdict.accepted else ''}{verdict.accepted:,}", style), share)
    for refusal in verdict.refusals[:10]:
        line = Text(printable(refusal.kind if refusal.count > 1 else refusal.example, 300))
        table.add_row(Text(f"✘ {refusal.count:,}", "red"), line.append(f"  such as {refusal.place}", "dim"))
    return table


def _events(rows: tuple[MappedEvent, ...]) -> RenderableType:
    table = _table("user", "item", "type", "time", "value", "category")
    table.expand = True
    for position in (0, 1, 5):  # these give way where the terminal is narrow
        table.columns[position].ratio = 1
    table.columns[3].width = len("2026-11-22T10:26:22Z")
    for row in rows:
        cells = (row.user, row.item, row.type, row.time, row.value or "—", row.category or "—")
        table.add_row(*(Text(printable(cell, 60), overflow="ellipsis", no_wrap=True) for cell in cells))
    return table


def _paths(shapes: tuple[PathShape, ...], sampled: int) -> RenderableType:
    table = _table("path", "in", "kind", "distinct", "example")
    table.columns[0].overflow = "fold"
    for shape in shapes[:_PATHS]:
        table.add_row(
            Text(printable(shape.path, 80), "" if shape.mappable else "dim"),
            f"{100 * shape.count / max(sampled, 1):.0f}%",
            "ISO 8601" if _is_time(shape) else shape.kind,
            f"{shape.distinct:,}" if shape.distinct else "—",
            Text(printable(shape.example, 60), overflow="ellipsis", no_wrap=True),
        )
    if len(shapes) > _PATHS:
        table.add_row("…", "", "", "", f"{len(shapes) - _PATHS} more paths")
    return table


def _is_time(shape: PathShape) -> bool:
    return shape.times["ISO 8601"] == shape.kinds["text"] > 0


def _table(*names: str, right: int = 0) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="dim", show_edge=False)
    for position, name in enumerate(names):
        table.add_column(name, justify="right" if position < right else "left")
    return table


def _rule(title: str) -> Rule:
    return Rule(Text(title, "bold"), style="grey35", align="left")
