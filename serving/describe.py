"""State rows and registry entries in words, for people who look things up."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from serving.history import from_row
from serving.items import ItemTable
from serving.models import (
    Erasure,
    ModelList,
    ModelState,
    ModelVersion,
    Sessions,
    UserAnswer,
    UserEvent,
    UserState,
)
from streaming.batch import source_and_partition
from streaming.config import StreamingSettings
from streaming.erasure import Proof
from training.registry import Registry, VersionInfo


def iso(epoch_ms: int) -> str:
    """Format an epoch time in milliseconds as ISO 8601 UTC; any 64-bit value is fine."""
    return f"{np.datetime64(int(epoch_ms), 'ms')}Z"


def describe_user(
    user_id: str,
    row: np.void,
    state: UserState,
    table: ItemTable,
    streaming: StreamingSettings,
    proofs: Sequence[Proof],
) -> UserAnswer:
    """Put a state row into words, newest event first; `proofs` are of earlier lives."""
    history = from_row(row)
    events = []
    for place in range(len(history) - 1, -1, -1):
        item_hash = history.items[place]
        found = int(table.rows_of(history.items[place : place + 1])[0])
        events.append(
            UserEvent(
                item_id=table.ids[found] if found >= 0 else None,
                item_hash=f"{int(item_hash):016x}",
                title=table.titles[found] if found >= 0 else None,
                type=streaming.event_types[history.types[place]],
                time=iso(history.times[place]),
            )
        )
    return UserAnswer(
        user_id=user_id,
        total=int(row["total"]),
        events=events,
        decayed_counts={
            f"{half_life_s:g}": _per_type(streaming, counts)
            for half_life_s, counts in zip(streaming.state.half_lives_s, row["decayed"], strict=True)
        },
        values=_per_type(streaming, row["value_micro"] / 1e6),
        categories=dict(zip(streaming.state.categories, row["categories"].tolist(), strict=True)),
        sessions=Sessions(
            count=int(row["sessions"]),
            current_start=iso(row["session_start_ms"]),
            current_events=int(row["session_events"]),
            dwell_s=int(row["dwell_ms"]) / 1000,
        ),
        first_seen=iso(row["first_ms"]),
        last_seen=iso(row["last_ms"]),
        trust=round(float(row["trust"]), 4),
        quarantined=bool(row["trust"] == 0),
        erasures=describe_erasures(proofs),
        state=state,
    )


def describe_erasures(proofs: Sequence[Proof]) -> list[Erasure]:
    """Put proofs of erasure into words."""
    return [
        Erasure(
            erased_upto=iso(proof.erased_upto_ms),
            requested=iso(proof.requested_ms),
            partition=source_and_partition(proof.topic_partition)[1],
            offset=proof.offset,
            events=proof.events,
            buffered_events=proof.buffered_events,
            windows=proof.windows,
        )
        for proof in proofs
    ]


def _per_type(streaming: StreamingSettings, values: Any) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(streaming.event_types, values, strict=True)}


def model_list(registry: Registry, serving: ModelState) -> ModelList:
    """List what the registry holds, newest first."""
    versions = [_version(info, registry.path(info.version)) for info in registry.versions()]
    return ModelList(current=registry.current(), serving=serving, versions=versions)


def _version(info: VersionInfo, folder: Path) -> ModelVersion:
    try:
        lineage: dict[str, Any] = json.loads((folder / "lineage.json").read_text())
    except (OSError, json.JSONDecodeError):
        lineage = {}  # pruned in this moment, or damaged: the registry's own line still stands
    return ModelVersion(
        version=info.version,
        status=info.status,
        current=info.current,
        reason=info.reason,
        created_at=datetime.fromtimestamp(info.created_at, UTC).isoformat(timespec="milliseconds"),
        parent=info.parent,
        eval=info.eval,
        lineage=lineage,
    )
