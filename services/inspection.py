"""Looks at a topic: what is in it, what the present mapping makes of it, and which mapping would suit it.

Reads the newest records only, joins no group, commits and writes nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.dead_letters import kind_of
from services.documents import MappedEvent, Reader, documents_of
from services.settings import Settings
from services.shapes import PathShape, shapes_of
from services.suggestion import Suggestion, suggest
from services.topic_reader import TopicReader
from streaming.config import Source, StreamingSettings
from streaming.events import EventDecoder

_ROWS = 8  # mapped events shown


@dataclass(frozen=True)
class PartitionState:
    """One partition, as the sample shows it."""

    partition: int
    beginning: int
    end: int
    per_s: float | None  # guessed from the sampled records' times; None: too few
    newest_ms: int | None


@dataclass(frozen=True)
class Refusal:
    """Sampled records that are refused for one kind of reason."""

    kind: str
    count: int
    example: str  # a whole reason
    place: str  # partition:offset of the record


@dataclass(frozen=True)
class Verdict:
    """What a mapping makes of the sample."""

    accepted: int
    refusals: tuple[Refusal, ...]
    rows: tuple[MappedEvent, ...]  # the first accepted events


@dataclass(frozen=True)
class Inspection:
    """All that `headrace inspect` shows."""

    topic: str
    partitions: tuple[PartitionState, ...]
    sampled: int
    tombstones: int
    source: Source  # the present mapping
    configured: bool  # whether it is among streaming.sources
    sources: tuple[str, ...]  # topics of streaming.sources
    framing: str | None  # what the bytes are, where they are neither JSON nor plain Avro
    present: Verdict
    shapes: tuple[PathShape, ...]
    suggestion: Suggestion
    suggested_source: Source
    suggested: Verdict

    @property
    def records(self) -> int:
        """Records in the topic."""
        return sum(state.end - state.beginning for state in self.partitions)

    @property
    def per_s(self) -> float | None:
        """Records per second over all partitions, a guess."""
        known = [state.per_s for state in self.partitions if state.per_s is not None]
        return sum(known) if known else None

    @property
    def newest_ms(self) -> int | None:
        """Time of the newest sampled record."""
        return max(
            (state.newest_ms for state in self.partitions if state.newest_ms is not None), default=None
        )

    @property
    def improves(self) -> bool:
        """Whether the suggestion accepts more than the present mapping, or that accepts nothing at all."""
        return self.suggested.accepted > self.present.accepted or not self.present.accepted

    @property
    def suits(self) -> bool:
        """Whether the present mapping accepts the whole sample."""
        return self.present.accepted == self.sampled


def inspect_topic(settings: Settings, topic: str, sample: int, format_: str | None = None) -> Inspection:
    """Sample the newest records of a topic and judge them.

    Args:
        sample: most records looked at.
        format_: `json` or `avro` instead of what the settings say of this topic.

    Raises:
        UnknownTopicError: there is no such topic.
        StreamingError: the broker or the schema registry cannot be reached.
    """
    with TopicReader(settings.kafka, topic) as reader:
        records = sorted(
            reader.read(reader.newest(sample)), key=lambda record: (record.timestamp, record.offset)
        )
        return examine(settings, topic, records, _partitions(reader, records), format_)


def examine(
    settings: Settings,
    topic: str,
    records: Sequence[Any],
    partitions: Sequence[PartitionState],
    format_: str | None = None,
) -> Inspection:
    """Judge records (kafka-python's) that were sampled from a topic; reads nothing more.

    Raises:
        BrokerError: the schema registry cannot be reached.
        ValueError: the present mapping cannot work.
    """
    sources = {source.topic: source for source in settings.streaming.sources}
    source = sources.get(topic, Source(topic=topic))
    if format_ is not None:
        source = source.model_copy(update={"format": format_})
    documents = documents_of([record.value for record in records], settings.streaming, source)
    suggestion = suggest(documents, settings.streaming.event_types)
    proposed = suggestion.source(topic, format=source.format, avro=source.avro)
    return Inspection(
        topic=topic,
        partitions=tuple(partitions),
        sampled=len(records),
        tombstones=sum(record.value is None for record in records),
        source=source,
        configured=topic in sources,
        sources=tuple(sources),
        framing=framing_of([record.value for record in records]) if source.format == "json" else None,
        present=judge(settings.streaming, source, records, documents),
        shapes=tuple(shapes_of(documents)),
        suggestion=suggestion,
        suggested_source=proposed,
        suggested=judge(settings.streaming, proposed, records, documents),
    )


def judge(
    settings: StreamingSettings, source: Source, records: Sequence[Any], documents: Sequence[Any]
) -> Verdict:
    """Decode sampled records with a mapping.

    Args:
        records: N records of kafka-python.
        documents: what they hold, None where they cannot be parsed.
    """
    if not records:
        return Verdict(0, (), ())
    times = np.array([record.timestamp for record in records], np.int64)
    events, rejected = EventDecoder(settings, source).decode(
        [record.value for record in records], [record.key for record in records], times
    )
    counts: Counter[str] = Counter()
    examples: dict[str, tuple[str, str]] = {}
    for reject in rejected:
        kind, record = kind_of(reject.reason), records[reject.record]
        counts[kind] += 1
        examples.setdefault(kind, (reject.reason, f"{record.partition}:{record.offset}"))
    reader = Reader(settings, source)
    shown = [position for position in events.record.tolist() if documents[position] is not None][:_ROWS]
    return Verdict(
        accepted=len(events),
        refusals=tuple(Refusal(kind, count, *examples[kind]) for kind, count in counts.most_common()),
        rows=tuple(reader.read(documents[position], int(times[position])) for position in shown),
    )


def _partitions(reader: TopicReader, records: Sequence[Any]) -> list[PartitionState]:
    times: dict[int, list[int]] = defaultdict(list)
    for record in records:
        times[record.partition].append(record.timestamp)
    states = []
    for partition in reader.partitions:
        seen = times[partition]
        span_ms = max(seen) - min(seen) if seen else 0
        states.append(
            PartitionState(
                partition,
                reader.beginnings[partition],
                reader.ends[partition],
                1000 * (len(seen) - 1) / span_ms if span_ms else None,
                max(seen) if seen else None,
            )
        )
    return states


def framing_of(values: Sequence[bytes | None]) -> str | None:
    """Say what records are whose bytes are no JSON: None where most do not look like anything known.

    Confluent's wire format (https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/):
    a zero byte, the schema's id in four bytes, and the record in Avro, Protobuf or JSON.
    """
    present = [value for value in values if value]
    if not present:
        return None
    framed = [value for value in present if value[0] == 0 and len(value) > 5]
    if 2 * len(framed) > len(present):
        ids = Counter(int.from_bytes(value[1:5], "big") for value in framed)
        named = ", ".join(str(number) for number, _ in ids.most_common(3))
        if all(value[5:6] == b"{" for value in framed):
            return (
                f"It looks like JSON in Confluent's frame (a zero byte, then schema id {named}). Headrace reads "
                "plain JSON and Avro: have the producer use a serialiser without schemas."
            )
        return (
            f"It looks like Confluent Avro (a zero byte, then schema id {named}). Set for this topic "
            'format = "avro" and avro.registry_url = "http://your-registry:8081", and run this again. '
            "(If it is Protobuf, it cannot be read.)"
        )
    for magic, name in _MAGIC:
        if 2 * sum(value.startswith(magic) for value in present) > len(present):
            return f"It looks like {name}. Headrace reads one event per record, in JSON or Avro."
    return None


_MAGIC = (
    (b"Obj\x01", "whole Avro files, each with its schema"),
    (b"\x1f\x8b", "gzip, applied by the producer to each record (Kafka's own compression is no problem)"),
    (b"PAR1", "Parquet files"),
    (b"[", "JSON arrays, which hold several events"),
    (b"<", "XML"),
)
