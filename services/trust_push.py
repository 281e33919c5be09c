"""Brings the trust of screened windows, and people's decisions, to the shards that do not have them yet.

Shards say which window's screen and how much of the journal of decisions they have (`ShardStats`). What they lack is
read here and sent to all of them; those that have it already leave it. So a shard that starts anew, moves, or comes
back from a snapshot gets what it lacks without anybody keeping account.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from streaming.errors import TrustError
from streaming.rows import NEVER
from streaming.state import ShardStats
from streaming.trust import (
    decisions_file,
    read_decisions,
    read_trust,
    screened_windows,
    trust_folder,
    verdict_weights,
)
from streaming.windows import iso

log = logging.getLogger(__name__)

_ROUND_S = 2.0  # after a restore there may be many windows to bring; watch and stream must go on meanwhile
_LIST_EVERY_S = (
    10.0  # also where the folder's time says that nothing is new: clocks of file systems are coarse
)


class TrustPush:
    """Sends to shard actors what they lack.

    Args:
        data_dir: holds `trust/`.
        window_ms: length of a window.
        timeout_s: longest wait for the shards to take one window's screen.
    """

    def __init__(self, data_dir: Path, window_ms: int, timeout_s: float) -> None:
        self._data_dir, self._window_ms, self._timeout_s = data_dir, window_ms, timeout_s
        self._screened: list[int] = []
        self._listed = -1, 0.0  # the folder's time of change, and when it was listed
        self.problem: str | None = None

    def push(self, actors: Sequence[Any], stats: Sequence[ShardStats]) -> int:
        """One round; what stays undone is done in the next, and `problem` says why.

        Args:
            actors: handles of the shard actors.
            stats: what their logical shards said last.

        Returns:
            The number of rows that changed.
        """
        problems: list[str] = []
        changed = 0
        try:
            changed = self._push(actors, stats, problems)
        except TrustError as error:  # without the decisions, a screen would undo them
            problems.append(str(error))
        except (RayActorError, GetTimeoutError) as error:
            problems.append(f"a shard did not take the trust of its users: {error}")
        said = self.problem
        self.problem = "; ".join(problems) or None
        if self.problem and self.problem != said:
            log.warning("%s", self.problem)
        if changed:
            log.info("the trust of %d users changed", changed)
        return changed

    def _push(self, actors: Sequence[Any], stats: Sequence[ShardStats], problems: list[str]) -> int:
        starts, written = self._lacking(stats), _size(decisions_file(self._data_dir))
        undecided = any(one.decisions != written for one in stats)
        if not starts and not undecided:
            return 0
        made = read_decisions(self._data_dir)
        decided = np.array(list(made), np.uint64)
        weights = np.array([decision.weight for decision in made.values()], np.float32)
        changed = self._ask(actors, "set_decided", written, decided, weights) if undecided else 0
        started = time.monotonic()
        for start in starts:
            try:
                table = read_trust(self._data_dir, start)
            except TrustError as error:  # those after it take its place
                problems.append(f"the screen of {iso(start)} is passed over: {error}")
                continue
            if table is None:
                continue
            named = table["user"].to_numpy()
            others = ~np.isin(named, decided)
            users = np.concatenate([named[others], decided])
            trust = np.concatenate([verdict_weights(table)[others], weights])
            changed += self._ask(actors, "set_trust", start, users, trust)
            if time.monotonic() - started > _ROUND_S:
                break
        return changed

    def _ask(self, actors: Sequence[Any], method: str, *arguments: Any) -> int:
        calls = [getattr(actor, method).remote(*arguments) for actor in actors]
        return sum(ray.get(calls, timeout=self._timeout_s))

    def _lacking(self, stats: Sequence[ShardStats]) -> list[int]:
        """Windows whose screen some shard lacks and, as it has closed them, can take in; oldest first."""
        oldest = min((one.screened_ms for one in stats), default=NEVER)
        return [
            start
            for start in self._list()
            if start > oldest
            and any(one.screened_ms < start <= one.closed_upto_ms - self._window_ms for one in stats)
        ]

    def _list(self) -> list[int]:
        changed_at = _changed_at(trust_folder(self._data_dir))
        if changed_at != self._listed[0] or time.monotonic() - self._listed[1] > _LIST_EVERY_S:
            self._listed = changed_at, time.monotonic()
            self._screened = screened_windows(self._data_dir)
        return self._screened


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _changed_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return -1
