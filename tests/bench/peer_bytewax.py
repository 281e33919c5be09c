"""Bytewax: the last 50 events of every user, with recovery switched on. Runs in the peers' environment.

The work: consume, decode, drop a repeated `event_id`, append to the user's last 50 events. State is snapshotted to
the recovery store (SQLite files) together with the source's offsets at the end of every epoch; that is Bytewax's
commit. The flow reads to the end of the topic and ends, which closes and commits the last epoch; the clock stops
when the cluster's main function has returned.

Two ways to write it, both measured:
`documented`: as the guides do: KafkaSource with its default batch, `map` decodes, `key_on`, `stateful_map`.
`tuned`: what a person who needs speed makes of it: the record's key routes it and its bytes cross between processes
undecoded (Bytewax pickles what it exchanges), one Python call per polled batch and one per user in it
(`flat_map_batch`, `stateful_batch`), and batches of up to 50,000, so that a user's events come together. It costs
less than half the CPU of the other.

Started by the harness, once per process of the cluster:
    python peer_bytewax.py STYLE BROKER TOPIC RECOVERY_DIR PROCESS_ID ADDRESSES WITNESS RESULT
"""

import json
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax._bytewax import cluster_main
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig

LENGTH = 50
EPOCH_S = 5  # a snapshot this often: Quix Streams' default; Bytewax's own is 10
BATCH = {"documented": 1000, "tuned": 50_000}  # Bytewax's default is 1000

counts = {"records": 0, "applied": 0, "duplicates": 0}
first_polled_at = 0.0
witness_row: list[str] = []


def polled(records: int) -> None:
    """Count, and remember when the first record came."""
    global first_polled_at  # noqa: PLW0603
    first_polled_at = first_polled_at or time.time()
    counts["records"] += records


def append(events: dict[str, Any], event: dict[str, Any]) -> None:
    """Append to a user's newest events (by event id, in order of arrival), unless it is there."""
    event_id = event["event_id"]
    if event_id in events:
        counts["duplicates"] += 1
        return
    counts["applied"] += 1
    events[event_id] = (event["item_id"], event["type"], event["timestamp"])
    if len(events) > LENGTH:
        del events[next(iter(events))]
    if event["user_id"] == WITNESS:
        witness_row[:] = list(events)


def decode(message: Any) -> dict[str, Any]:
    polled(1)
    event: dict[str, Any] = orjson.loads(message.value)
    return event


def last50(events: dict[str, Any] | None, event: dict[str, Any]) -> tuple[dict[str, Any], None]:
    events = events if events is not None else {}
    append(events, event)
    return events, None


def route(messages: list[Any]) -> Iterable[tuple[str, bytes]]:
    """One call per polled batch: user and undecoded event."""
    polled(len(messages))
    return [(message.key.decode(), message.value) for message in messages]


class Last50(StatefulBatchLogic):
    """A user's newest events."""

    def __init__(self, resumed: dict[str, Any] | None) -> None:
        self.events = resumed or {}

    def on_batch(self, values: list[bytes]) -> tuple[Iterable[Any], bool]:
        for value in values:
            append(self.events, orjson.loads(value))
        return (), StatefulBatchLogic.RETAIN

    def snapshot(self) -> dict[str, Any]:
        return self.events.copy()


class Nowhere(DynamicSink):
    """A flow must end in a sink; what arrives is dropped."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> StatelessSinkPartition:
        class Part(StatelessSinkPartition):
            def write_batch(self, items: list[Any]) -> None:
                pass

        return Part()


def dataflow(style: str, broker: str, topic: str) -> Dataflow:
    """Build the flow in one of the two styles."""
    flow = Dataflow("last50")
    records = op.input("kafka", flow, KafkaSource([broker], [topic], tail=False, batch_size=BATCH[style]))
    if style == "tuned":
        updated = op.stateful_batch("last50", op.flat_map_batch("route", records, route), Last50)
    else:
        keyed = op.key_on("user", op.map("decode", records, decode), lambda event: event["user_id"])
        updated = op.stateful_map("last50", keyed, last50)
    op.output("nowhere", updated, Nowhere())
    return flow


if __name__ == "__main__":
    style, broker, topic, recovery_dir, process_id, addresses, WITNESS, result = sys.argv[1:]
    cluster = addresses.split(",")
    cluster_main(
        dataflow(style, broker, topic),
        cluster if len(cluster) > 1 else [],
        int(process_id),
        epoch_interval=timedelta(seconds=EPOCH_S),
        recovery_config=RecoveryConfig(recovery_dir),
    )
    times = {"first": first_polled_at, "last": time.time()}
    Path(result).write_text(json.dumps(counts | times | {"witness": witness_row}))
