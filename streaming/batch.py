"""What ingestors tell shards: a micro-batch of one partition, for one logical shard or for one actor."""

from dataclasses import dataclass, replace

import numpy as np

from streaming.rows import NEVER, EventColumns, Int64
from streaming.traces import Traced

_PARTITIONS = 1 << 16  # more than a topic may have


def partition_code(source: int, partition: int) -> int:
    """One number for a partition of the `source`-th topic; for the first topic it is the partition's own."""
    return source * _PARTITIONS + partition


def source_and_partition(code: int) -> tuple[int, int]:
    """The inverse of `partition_code`."""
    return divmod(code, _PARTITIONS)


@dataclass(frozen=True)
class Position:
    """How far a shard has applied a partition, as it is committed with the rows."""

    applied: int
    max_time_ms: int = NEVER  # newest event time up to there
    dead_letters: int = 0
    # Windows were closed up to `floor_ms` while this partition was idle or unknown; its records past `floor_from`
    # count into none of those.
    floor_ms: int = NEVER
    floor_from: int = -1
    generation: int = 0  # names the topic of the offsets: one deleted and made anew has another; 0: unknown

    def is_of_another(self, generation: int) -> bool:
        """Whether the topic that this position is of was deleted and made anew."""
        return 0 not in (self.generation, generation) and self.generation != generation


@dataclass(frozen=True)
class Progress:
    """How far one partition comes with a batch.

    `windows` names every window that any event of these records counts into, and `window_offsets` the last offset
    that does, so that all shards know the same windows; `dead_letters` are the offsets that are to be counted.
    """

    partition: int  # code
    from_offset: int
    upto_offset: int  # inclusive; from_offset - 1 for a mere tick
    max_time_ms: int  # newest event time of the partition up to `upto_offset`
    idle: bool  # drained, and silent for longer than the time-out
    windows: Int64
    window_offsets: Int64
    dead_letters: Int64
    after_loss: bool = False  # retention deleted the records before `from_offset` unread: the gap is real
    generation: int = 0  # of the topic; another one than a position's: the topic was made anew


@dataclass(frozen=True)
class ShardBatch:
    """What one logical shard is told: how far some partitions come, and its events among their records.

    A shard applies it as a whole, so that what a commit costs is paid once for all partitions.
    """

    steps: tuple[Progress, ...]  # of different partitions
    partitions: tuple[int, ...]  # codes of all partitions that the watermark waits for
    events: EventColumns  # in the order of the steps


@dataclass(frozen=True)
class ActorBatch:
    """One micro-batch as one actor needs it: events are sorted by logical shard.

    Those of `shards[i]` are `whole.events[bounds[i]:bounds[i + 1]]`. `epoch` is what the actor gave the ingestor
    when that entered; another one is refused.
    """

    whole: ShardBatch
    shards: tuple[int, ...]
    bounds: Int64
    epoch: int
    traced: tuple[Traced, ...] = ()  # events among these whose traces are followed

    def part(self, index: int, num_shards: int) -> ShardBatch:
        """The batch of the `index`-th shard; a partition's dead letters go to the one that counts them."""
        here, none = self.shards[index], np.empty(0, np.int64)
        steps = tuple(
            step if step.partition % num_shards == here else replace(step, dead_letters=none)
            for step in self.whole.steps
        )
        chosen = slice(int(self.bounds[index]), int(self.bounds[index + 1]))
        return ShardBatch(steps, self.whole.partitions, self.whole.events.take(chosen))
