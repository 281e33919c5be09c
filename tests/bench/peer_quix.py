"""Quix Streams: the last 50 events of every user, with changelog topics on. Runs in the peers' environment.

The work: consume, decode, drop a repeated `event_id`, append to the user's last 50 events. State is kept in RocksDB;
a checkpoint every 5 s (the default) produces the changed rows to a changelog topic, waits for the broker to have
them, commits the offsets and writes to RocksDB; that is Quix Streams' commit.

Written in the project's recommended style (`Application`, `sdf.update(..., stateful=True)`) with its default
guarantee, at least once. A process that has processed all that stands in its partitions forces a last checkpoint,
and its clock stops when that is committed; it then waits for the others, so that leaving the consumer group disturbs
nobody and is not counted. Where partitions end is given, because the embedded broker's answer to ListOffsets is too
low. Joining the group is not counted either: the clock starts with the first record.

Started by the harness, once per process of the group:
    python peer_quix.py BROKER TOPIC STATE_DIR GROUP PARTITION_SIZES WITNESS RESULT [OTHER_RESULT ...]
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from quixstreams import Application, State

LENGTH = 50
WAIT_S = 300.0
SESSION_MS = 6000  # the embedded broker's group join waits for half of it

counts = {"records": 0, "applied": 0, "duplicates": 0}
times = {"first": 0.0, "last": 0.0}
witness_row: list[str] = []


def update(event: dict[str, Any], state: State) -> None:
    """Append to the user's last 50 events, unless it is there."""
    events = state.get("events", {})
    event_id = event["event_id"]
    if event_id in events:
        counts["duplicates"] += 1
        return
    counts["applied"] += 1
    events[event_id] = (event["item_id"], event["type"], event["timestamp"])
    if len(events) > LENGTH:
        del events[next(iter(events))]
    state.set("events", events)
    if event["user_id"] == WITNESS:
        witness_row[:] = list(events)


def wait_for(others: list[Path]) -> None:
    """Until the other processes have written their results."""
    deadline = time.monotonic() + WAIT_S
    while not all(other.exists() for other in others):
        if time.monotonic() > deadline:
            raise SystemExit(f"{others} did not appear within {WAIT_S} s: see that process's log")
        time.sleep(0.05)


if __name__ == "__main__":
    broker, topic, state_dir, group, sizes, WITNESS, result, *others = sys.argv[1:]
    ends = dict(enumerate(json.loads(sizes)))
    finished: set[int] = set()

    def processed(_: str, partition: int, offset: int) -> None:
        if not counts["records"]:
            times["first"] = time.time()
        counts["records"] += 1
        if offset + 1 < ends[partition]:
            return
        finished.add(partition)
        mine = {tp.partition for tp in app._consumer.assignment() if tp.topic == topic}
        if mine <= finished:
            app._processing_context.commit_checkpoint(force=True)
            times["last"] = time.time()
            partial = Path(result + ".partial")
            partial.write_text(json.dumps(counts | times | {"witness": witness_row}))
            partial.rename(result)
            wait_for([Path(other) for other in others])
            app.stop()

    app = Application(
        broker_address=broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        state_dir=state_dir,
        on_message_processed=processed,
        consumer_extra_config={"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": 1500},
        loglevel=os.environ.get("QUIX_LOG", "WARNING"),
    )
    frame = app.dataframe(app.topic(topic, value_deserializer="json", key_deserializer="str"))
    frame.update(update, stateful=True)
    app.run()
