"""Which actor hosts which logical shards, and how many ingestors there are: kept in a file, numbered, rebalanced.

The file is written before anything moves. A supervisor that dies in the middle of a move leaves it for the next
one, which brings the actors into the state that the file describes; doing so twice changes nothing.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from streaming.config import StreamingSettings


@dataclass(frozen=True)
class Hosting:
    """Logical shards by actor; the version rises with every change."""

    version: int
    shards: tuple[tuple[int, ...], ...]  # of each shard actor
    ingestors: int
    configured: tuple[int, int]  # what the settings said when this was made

    @property
    def shard_actors(self) -> int:
        """Number of shard actors."""
        return len(self.shards)


def initial(settings: StreamingSettings, version: int = 0) -> Hosting:
    """The hosting that the settings ask for."""
    count = min(settings.shard_actors, settings.logical_shards)
    shards = tuple(tuple(range(host, settings.logical_shards, count)) for host in range(count))
    return Hosting(version, shards, settings.ingestors, (settings.shard_actors, settings.ingestors))


def rebalance(shards: Sequence[Sequence[int]], count: int) -> tuple[tuple[int, ...], ...]:
    """Spread logical shards over `count` actors evenly, moving as few as possible.

    The actors that stay are the first ones; each keeps its shards up to its fair part.
    """
    total = sum(len(hosted) for hosted in shards)
    quota = [total // count + (host < total % count) for host in range(count)]
    kept = [list(shards[host][: quota[host]]) if host < len(shards) else [] for host in range(count)]
    homeless = sorted(
        {shard for hosted in shards for shard in hosted} - {s for hosted in kept for s in hosted}
    )
    for host, hosted in enumerate(kept):
        while len(hosted) < quota[host]:
            hosted.append(homeless.pop(0))
    return tuple(tuple(sorted(hosted)) for hosted in kept)


def scaled(hosting: Hosting, shard_actors: int, ingestors: int) -> Hosting:
    """The next hosting, with other numbers of actors.

    Raises:
        ValueError: there are fewer logical shards than actors asked for, or fewer than one.
    """
    total = sum(len(hosted) for hosted in hosting.shards)
    if not 1 <= shard_actors <= total:
        raise ValueError(f"shard_actors: expected 1 to {total} (the logical shards), got {shard_actors}")
    if ingestors < 1:
        raise ValueError(f"ingestors: expected at least 1, got {ingestors}")
    shards = rebalance(hosting.shards, shard_actors)
    return Hosting(hosting.version + 1, shards, ingestors, hosting.configured)


def renumbered(hosting: Hosting) -> Hosting:
    """The same under a new version, which makes shards refuse what was sent under the old one."""
    return Hosting(hosting.version + 1, hosting.shards, hosting.ingestors, hosting.configured)


def load(path: Path, settings: StreamingSettings) -> Hosting:
    """Read the hosting, or make the first one; changed numbers in the settings overrule what was scaled by hand."""
    wanted = initial(settings)
    if not path.is_file():
        return wanted
    stored = json.loads(path.read_text(encoding="utf-8"))
    hosting = Hosting(
        stored["version"],
        tuple(tuple(hosted) for hosted in stored["shards"]),
        stored["ingestors"],
        (stored["configured"][0], stored["configured"][1]),
    )
    if sorted(s for hosted in hosting.shards for s in hosted) != list(range(settings.logical_shards)):
        return initial(settings, hosting.version + 1)
    if hosting.configured != wanted.configured:
        return initial(settings, hosting.version + 1)
    return hosting


def save(path: Path, hosting: Hosting) -> None:
    """Replace the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        json.dump(asdict(hosting), out)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
