"""Topics as the broker describes them, judged by what Headrace does with them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings
from streaming.config import StreamingSettings

_HOUR_MS = 3_600_000
_RETENTION_MIN_MS, _RETENTION_WANTED_MS = _HOUR_MS, 24 * _HOUR_MS


@dataclass(frozen=True)
class Topic:
    """A topic, as far as the broker tells.

    Attributes:
        replicas, in_sync: fewest over the partitions.
        configs: what it says of the topic; empty where it says nothing, or the user may not ask.
        rights: names of what this user may do (KIP-430); None where the broker does not tell.
    """

    name: str
    partitions: int
    replicas: int
    in_sync: int
    configs: Mapping[str, str]
    rights: Collection[str] | None


def judge_events(topic: Topic, settings: Settings) -> Iterator[Finding]:
    """A topic of user events."""
    what, streaming = f"topic {topic.name}", settings.streaming
    policy = topic.configs.get("cleanup.policy", "delete")
    if "compact" in policy:
        yield error(
            what,
            f"cleanup.policy = {policy}",
            "set cleanup.policy = delete: compaction deletes events of a user",
        )
    yield from _retention(what, topic, settings)
    kind = topic.configs.get("message.timestamp.type")
    if kind == "LogAppendTime" and any(
        source.constants.get("timestamp") == "$record" or source.defaults.get("timestamp") == "$record"
        for source in streaming.sources
        if source.topic == topic.name
    ):
        yield warning(
            what,
            "message.timestamp.type = LogAppendTime, and timestamps come from the record",
            "event time is the time of arrival then: a replay of old events counts as of today",
        )


def judge_sources(topics: Collection[Topic], streaming: StreamingSettings) -> Finding:
    """All topics of events together: whether every ingestor gets a partition, every actor a logical shard."""
    partitions = sum(topic.partitions for topic in topics)
    auto = streaming.autoscale
    ingestors = max(streaming.ingestors, auto.max_actors if auto.enabled else 0)
    actors = max(streaming.shard_actors, auto.max_actors if auto.enabled else 0)
    seen = f"{partitions} partitions, {streaming.logical_shards} logical shards"
    wanted = f"for up to {ingestors} ingestors and {actors} shard actors"
    if actors > streaming.logical_shards:
        return warning(
            "partitions",
            f"{seen} {wanted}",
            "lower shard_actors (autoscale.max_actors): the surplus has nothing to do",
        )
    if ingestors > partitions:
        return warning(
            "partitions",
            f"{seen} {wanted}",
            "add partitions, or lower ingestors: one partition has one reader",
        )
    return ok("partitions", f"{seen} {wanted}")


def judge_items(topic: Topic) -> Iterator[Finding]:
    """The topic of the catalogue."""
    what, policy = f"topic {topic.name}", topic.configs.get("cleanup.policy")
    advice = (
        "set cleanup.policy = compact: else old items are deleted, and a new data_dir has half a catalogue"
    )
    if policy == "compact":
        yield ok(what, "is compacted")
    elif policy is None:
        yield warning(
            what, "the broker does not tell whether it is compacted", f"look at it yourself; {advice}"
        )
    elif "compact" in policy:
        yield warning(
            what, f"cleanup.policy = {policy}", "set cleanup.policy = compact: `delete` removes old items"
        )
    else:
        yield error(what, f"cleanup.policy = {policy}", advice)


def judge_dead_letters(topic: Topic, events: Collection[Topic]) -> Iterator[Finding]:
    """The dead-letter topic: whatever was taken in must fit into it."""
    largest = max((_number(one.configs.get("max.message.bytes")) or 0 for one in events), default=0)
    own = _number(topic.configs.get("max.message.bytes"))
    if own is not None and own < largest:
        yield error(
            f"topic {topic.name}",
            f"max.message.bytes = {own:,}, the events' is {largest:,}",
            "raise it to that of the events: a large record that does not validate would hold up its partition",
        )


def judge_replication(topic: Topic, brokers: int) -> Iterator[Finding]:
    """Copies of a topic, and whether enough are there to write."""
    what = f"replication of {topic.name}"
    least = _number(topic.configs.get("min.insync.replicas")) or 1
    seen = f"{topic.in_sync} of {topic.replicas} copies are in sync, {brokers} brokers"
    if topic.in_sync < least:
        yield error(
            what,
            f"{seen}, min.insync.replicas = {least}",
            "bring the brokers back: nothing can be written now",
        )
    elif topic.in_sync < topic.replicas:
        yield warning(what, seen, "look for the broker that is behind or away")
    elif brokers > 1 and topic.replicas < 2:
        yield warning(what, seen, "give it 3 copies: with one, a lost broker takes the records along")
    elif topic.replicas > 1 and least >= topic.replicas:
        yield warning(
            what,
            f"{seen}, min.insync.replicas = {least}",
            "lower it by one: with one broker away writing stops",
        )
    else:
        yield ok(what, seen)


def judge_rights(topic: Topic, needed: Mapping[str, str]) -> Iterator[Finding]:
    """What this user may do with a topic.

    Args:
        needed: operation → what it is needed for.
    """
    if topic.rights is None:
        return  # what can be tried is tried
    missing = {operation: why for operation, why in needed.items() if operation not in topic.rights}
    what = f"rights on {topic.name}"
    if missing:
        reasons = "; ".join(f"{operation.title()} ({why})" for operation, why in missing.items())
        yield error(what, f"not granted: {reasons}", "grant them as k8s/components/kafka/users.yaml does")
    else:
        yield ok(what, ", ".join(operation.title() for operation in needed))


def _retention(what: str, topic: Topic, settings: Settings) -> Iterator[Finding]:
    told = _number(topic.configs.get("retention.ms"))
    shape = f"{topic.partitions} partitions"
    if told is None or told < 0:
        yield ok(what, f"{shape}, retention {'for ever' if told else 'as the broker has it'}")
        return
    snapshots = settings.streaming.snapshots
    seen = f"{shape}, retention.ms = {told:,} ({told / _HOUR_MS:.3g} h)"
    gap_ms = (snapshots.every_s * snapshots.keep * 1000) if snapshots.url else 0
    if told < max(_RETENTION_MIN_MS, gap_ms):
        yield error(
            what,
            seen,
            "raise it: records would be deleted before a restored state can read them (14 days are good)",
        )
    elif told < _RETENTION_WANTED_MS:
        yield warning(what, seen, "raise it to days: whatever is behind for longer than this loses events")
    elif not snapshots.url:
        yield ok(what, f"{seen}: so much of a lost data_dir can be rebuilt; snapshots are off")
    else:
        yield ok(what, seen)


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
