"""The manifest of a snapshot: what is in it, from when, and how to tell that it is whole."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from streaming.batch import Position, source_and_partition
from streaming.errors import SnapshotError

_FORMAT = 1
_TIME = "%Y-%m-%dT%H-%M-%S.%f"


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot holds."""

    shard: int
    taken_at: datetime  # UTC, to the millisecond
    positions: dict[str, int]  # "topic/partition": last offset applied
    bytes: int  # as stored
    raw_bytes: int  # as restored
    sha256: str  # of the data as stored
    copy_s: float  # to copy and compress
    upload_s: float  # of the data
    layout: dict[str, Any]  # settings that the state depends on: layout.store_layout

    @property
    def name(self) -> str:
        """Its folder in the store, under that of its shard."""
        return self.taken_at.strftime(_TIME)[:-3] + "Z"

    def to_json(self) -> str:
        """As the manifest is stored."""
        fields = asdict(self) | {"format": _FORMAT, "taken_at": self.taken_at.isoformat("T", "milliseconds")}
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, stored: str) -> Self:
        """Read a manifest.

        Raises:
            SnapshotError: a newer Headrace wrote it.
            ValueError, TypeError, KeyError, AttributeError: it is damaged.
        """
        fields = json.loads(stored)
        version = fields.pop("format")
        if version != _FORMAT:
            raise SnapshotError(
                f"a snapshot has format {version}, expected {_FORMAT}; use the version of Headrace that wrote it"
            )
        return cls(**fields | {"taken_at": datetime.fromisoformat(fields["taken_at"])})


def labelled(positions: Mapping[int, Position], layout: Mapping[str, Any]) -> dict[str, int]:
    """Applied offsets under the names that people know: topic/partition."""
    named = {}
    for code, position in sorted(positions.items()):
        source, partition = source_and_partition(code)
        named[f"{layout['topics'][source]}/{partition}"] = position.applied
    return named


def time_of(name: str) -> datetime | None:
    """When the snapshot in a folder of this name was taken; None where the name is not one of ours."""
    try:
        return datetime.strptime(name, _TIME + "Z").replace(tzinfo=UTC)
    except ValueError:
        return None
