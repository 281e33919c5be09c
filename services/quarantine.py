"""The quarantine: whom the detector holds, what they did, and what people decide about it.

Releasing or holding is a line in the journal of decisions, which the learner reads with every round and the
Supervisor brings to the state. A purge is two steps: (1) a record in the events topic that asks to forget the user,
the same as `DELETE /v1/users/{id}` sends; (2) the decision, from when on nothing the user may still do is trained on.
A crash in between leaves him held, and purging again mends it.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.client import open_api
from services.settings import Settings
from serving.errors import UnavailableError
from serving.ports import KafkaSink
from streaming.batch import source_and_partition
from streaming.catalog import CatalogReader
from streaming.hashing import UInt64, hash_one
from streaming.layout import hosted, shard_path
from streaming.reader import StateReader
from streaming.trust import Decision, name_of, read_decisions, read_trust, screened_windows
from streaming.windows import shard_file

_HASH = re.compile(r"#[0-9a-fA-F]{4,16}")
_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 5.0


class QuarantineError(Exception):
    """What was asked of the quarantine cannot be done; the message says what can."""


@dataclass(frozen=True)
class Hold:
    """A window in which a user was quarantined."""

    start_ms: int
    trust: float
    reason: str


@dataclass(frozen=True)
class Case:
    """A user whom the detector or a person holds, or held."""

    user: int  # hash
    holds: tuple[Hold, ...]  # oldest first; none where only a person decided
    decision: Decision | None

    @property
    def status(self) -> str:
        """`held`, `released` or `purged`."""
        return "held" if self.decision is None else self.decision.decision

    @property
    def since_ms(self) -> int | None:
        """Start of the first window in which the user was held."""
        return self.holds[0].start_ms if self.holds else None

    @property
    def reason(self) -> str:
        """The newest reason."""
        if self.holds:
            return self.holds[-1].reason
        return (self.decision and self.decision.note) or "held by hand"


@dataclass(frozen=True)
class Deed:
    """An event of a user in a window in which he was held."""

    time_ms: int
    type: str
    item: int  # hash
    item_id: str | None  # None: the catalogue does not know it
    title: str | None


class Quarantine:
    """Looks into the quarantine of a data directory.

    Args:
        settings: the whole tree.
        since_ms: only windows that start then or later; None: all.

    Raises:
        TrustError: a file of trust is damaged.
    """

    def __init__(self, settings: Settings, since_ms: int | None = None) -> None:
        self._settings, self._data_dir = settings, settings.data_dir
        self.windows = [
            start for start in screened_windows(self._data_dir) if since_ms is None or start >= since_ms
        ]
        holds: dict[int, list[Hold]] = {}
        for start in self.windows:
            table = read_trust(self._data_dir, start)
            if table is None:
                continue
            for row in table.filter(table["quarantined"]).to_pylist():
                holds.setdefault(row["user"], []).append(Hold(start, row["trust"], row["reason"]))
        decisions = read_decisions(self._data_dir)
        users = holds.keys() | (decisions.keys() if since_ms is None else set())
        self.cases = {user: Case(user, tuple(holds.get(user, ())), decisions.get(user)) for user in users}

    def held(self) -> list[Case]:
        """Those who are held now, newest first."""
        return self.listed(lambda case: case.status == "held")

    def listed(self, wanted: Any = lambda case: True) -> list[Case]:
        """Cases that `wanted` takes, newest first."""
        return sorted(
            filter(wanted, self.cases.values()),
            key=lambda case: (case.holds[-1].start_ms if case.holds else 0, case.user),
            reverse=True,
        )

    def find(self, text: str) -> Case:
        """The case of a user id, or of a hash as it is listed (`#` and at least four of its digits).

        Raises:
            QuarantineError: nobody, or more than one, is meant.
        """
        user = self.user_of(text)
        if user not in self.cases:
            raise QuarantineError(
                f"user {text!r} ({name_of(user)}) was never held; `headrace quarantine list` shows who is, "
                f"`headrace quarantine hold` holds a user by hand"
            )
        return self.cases[user]

    def user_of(self, text: str) -> int:
        """The hash that a user id, or a hash as it is listed, means.

        Raises:
            QuarantineError: the digits are those of none or of several.
        """
        if not is_hash(text):
            return hash_one(text)
        if len(text) == 17:
            return int(text[1:], 16)
        meant = [user for user in self.cases if name_of(user).startswith(text.lower())]
        if len(meant) != 1:
            names = ", ".join(sorted(map(name_of, meant))[:5])
            what = f"{len(meant)} of those in quarantine: {names}" if meant else "none of those in quarantine"
            raise QuarantineError(
                f"{text} is the beginning of {what}; `headrace quarantine list` shows them whole"
            )
        return meant[0]

    def counts(self, cases: Iterable[Case]) -> dict[int, int]:
        """Events of users in the windows in which they were held; those of a purged user are gone."""
        by_window: dict[int, list[int]] = {}
        for case in cases:
            for hold in case.holds:
                by_window.setdefault(hold.start_ms, []).append(case.user)
        counts = {case.user: 0 for case in cases}
        for start, users in by_window.items():
            for row in self._rows(start, users, ("items", "target_from")):
                counts[row["user"]] += len(row["items"]) - row["target_from"]
        return counts

    def deeds(self, case: Case) -> dict[int, list[Deed]]:
        """A user's events by the window in which he was held, oldest first."""
        catalog = CatalogReader(self._data_dir / "catalog")
        snapshot = catalog.snapshot()
        catalog.close()
        place = {item: row for row, item in enumerate(snapshot.hashes.tolist())}
        types = self._settings.streaming.event_types
        deeds: dict[int, list[Deed]] = {}
        for hold in case.holds:
            for row in self._rows(hold.start_ms, [case.user], ("items", "times", "types", "target_from")):
                new = slice(row["target_from"], None)
                deeds[hold.start_ms] = [
                    Deed(
                        time_ms,
                        types[kind],
                        item,
                        snapshot.ids[place[item]] if item in place else None,
                        snapshot.titles[place[item]] if item in place else None,
                    )
                    for time_ms, kind, item in zip(
                        row["times"][new], row["types"][new], row["items"][new], strict=True
                    )
                ]
        return deeds

    def trust(self, user: int) -> float | None:
        """Trust in the user's row of the state; None where there is no row here."""
        reader = StateReader(self._data_dir / "state", self._settings.streaming)
        (row,) = reader.read_hashed(np.array([user], np.uint64))
        reader.close()
        return float(row["trust"]) if row["total"] else None

    def _rows(self, start_ms: int, users: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of users in a window's files, as far as they still are there."""
        rows: list[dict[str, Any]] = []
        num_shards = self._settings.streaming.logical_shards
        wanted = pc.field("user").isin(pa.array(users, pa.uint64()))
        for shard in sorted({user % num_shards for user in users}):
            file = shard_file(self._data_dir / "windows", start_ms, shard)
            if file.exists():
                table = pq.read_table(file, columns=["user", *columns], filters=wanted, partitioning=None)
                rows += table.to_pylist()
        return rows


@dataclass(frozen=True)
class Requested:
    """A record that asks to forget a user, as the broker has it in the first of `streaming.sources`."""

    user_id: str
    partition: int
    offset: int


class Eraser:
    """Asks the stream to forget users, and sees whether it has.

    Args:
        url, key: see `services.client.open_api`.
    """

    def __init__(self, settings: Settings, url: str | None = None, key: str | None = None) -> None:
        self._settings = settings
        self._reader = StateReader(settings.data_dir / "state", settings.streaming)
        self._sink = KafkaSink(
            settings.kafka, settings.streaming.sources[0], settings.kafka.request_timeout_s, self._clock_ms
        )
        self._http = open_api(settings, url, key, _REQUEST_TIMEOUT_S)

    def _clock_ms(self) -> int:
        newest = self._reader.newest_ms() if self._settings.serving.stream_clock else None
        return int(time.time() * 1000) if newest is None else newest

    def forget(self, user_id: str) -> Requested:
        """Send the record, and return once the broker has it.

        Raises:
            QuarantineError: the broker did not take it in time.
        """
        try:
            done = asyncio.run(self._sink.forget(user_id))
        except UnavailableError as error:
            raise QuarantineError(f"user {user_id!r} could not be purged, try again: {error}") from error
        return Requested(user_id, done.partition, done.offset)

    def runs(self) -> bool:
        """Whether a pipeline runs that will carry the requests out."""
        if any(
            hosted(shard_path(self._settings.data_dir / "state", shard))
            for shard in range(self._settings.streaming.logical_shards)
        ):
            return True
        try:
            return self._http.get("/healthz").is_success
        except httpx.HTTPError:
            return False

    def wait(self, requests: Sequence[Requested], timeout_s: float) -> list[Requested]:
        """Wait until the proofs of erasure are there; returns those that are not."""
        deadline, left = time.monotonic() + timeout_s, list(requests)
        while left and time.monotonic() < deadline:
            left = [request for request in left if not self._is_done(request)]
            if left:
                time.sleep(_POLL_S)
        return left

    def _is_done(self, request: Requested) -> bool:
        place = request.partition, request.offset
        for proof in self._reader.erasures(request.user_id):
            source, partition = source_and_partition(proof.topic_partition)
            if source == 0 and (partition, proof.offset) == place:
                return True
        try:  # the state may lie on another machine
            body = self._http.get(f"/v1/users/{quote(request.user_id, safe='')}").json()
        except (httpx.HTTPError, ValueError):
            return False
        proofs = body.get("erasures", []) if isinstance(body, dict) else []
        return any((proof["partition"], proof["offset"]) == place for proof in proofs)

    def close(self) -> None:
        """Close the connections and the state."""
        self._sink.close()
        self._http.close()
        self._reader.close()

    def __enter__(self) -> "Eraser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_hash(text: str) -> bool:
    """Whether a user is named by (the beginning of) a hash, not by an id."""
    return _HASH.fullmatch(text) is not None


def hashes_of(cases: Iterable[Case]) -> UInt64:
    """Hashes of the users of cases."""
    return np.array([case.user for case in cases], np.uint64)
