"""An attack asked for over HTTP, on what a system has stored: the broker, the state, windows and screens are real."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.applications import wait_until
from services.attack_simulation import AttackSimulation
from services.recent_users import RecentUsers
from services.samples import Samples
from services.settings import Settings
from services.user_ids import newest_ids
from streaming.hashing import stable_hash
from streaming.state import ShardStore, open_store
from streaming.trust import write_trust
from tests.services.test_streamed_attack import HOUR, MONDAY, USERS, records, settings, values  # noqa: F401
from tests.streaming.oracle import Event, make_batch
from training.registry import Registry

ORDER: dict[str, Any] = {"kind": "bandwagon", "size": 0.1, "targets": 2, "items": (), "seed": 7}
OPEN = MONDAY + 3 * HOUR  # the window that is hit


class Asked:
    """In place of the API: remembers who was asked about, and answers a larger share each time."""

    def __init__(self) -> None:
        self.users: list[Sequence[str]] = []

    async def __call__(self, users: Sequence[str], targets: Sequence[str]) -> float:
        assert len(targets) == 2
        self.users.append(users)
        return len(self.users) / 100


def until(attack: AttackSimulation, check: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (status := attack.status()) is None or not check(status):
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


@pytest.fixture
def store(settings: Settings) -> Iterator[ShardStore]:  # noqa: F811
    """The only shard of the system."""
    folder = settings.data_dir
    with open_store(folder / "state", folder / "windows", 0, settings.streaming) as store:
        yield store


def test_it_is_told_from_the_plan_to_the_model_that_met_it(
    settings: Settings,  # noqa: F811
    store: ShardStore,
) -> None:
    asked = Asked()
    attack = AttackSimulation(settings, lambda: asked)
    assert attack.status() is None
    before = len(records(settings))
    assert attack.begin(ORDER) == 1
    with pytest.raises(ValueError, match=r"attack 1 is \w+; a new one can begin when it is done"):
        attack.begin(ORDER)

    sent = until(attack, lambda status: status["phase"] == "screening" and "judged" in status)
    fakes = sent["fake_users"]
    assert (sent["sent"], len(records(settings)) - before) == (sent["events"], sent["events"])
    assert sent["windows"] == ["2025-10-13T03:00:00Z"]
    assert sent["exposure"] == [{"at": sent["exposure"][0]["at"], "version": None, "share": 0.01}]
    assert set(asked.users[0]) <= set(USERS)  # real ones
    assert sent["trust"] == [None] * fakes

    ids = stable_hash(sorted({record.key.decode() for record in records(settings)} - set(USERS[:30])))
    assert len(ids) == fakes
    events = [Event(int(user), 1, 1, OPEN + 1, offset=1 + place) for place, user in enumerate(ids)]
    store.apply(make_batch(events, [OPEN] * len(events)))
    until(attack, lambda status: status["trust"] == [1.0] * fakes)

    # the window closes, and its screen holds all fake users and one other
    store.apply(
        make_batch([Event(int(ids[0]), 2, 2, OPEN + 3 * HOUR, offset=1 + len(ids))], [OPEN + 3 * HOUR])
    )
    held = np.sort(np.append(ids, stable_hash(USERS[:1])))
    nothing, all_of_them = np.zeros(len(held), np.float32), np.ones(len(held), bool)
    write_trust(settings.data_dir, OPEN, held, nothing, all_of_them, ["new"] * len(held))
    store.set_trust(OPEN, held, nothing)
    screened = until(attack, lambda status: status["phase"] == "learning" and not any(status["trust"]))
    assert (screened["held"], screened["honest_held"]) == (fakes, 1)

    judge(settings, "v1", windows=["2025-10-13T02:00:00Z"])  # a model of an earlier window
    until(attack, lambda status: len(status["exposure"]) == 2)
    judge(settings, "v2", windows=sent["windows"])
    done = until(attack, lambda status: status["phase"] == "done")
    assert (done["judged"], done["error"]) == ("v2", None)
    assert [one["version"] for one in done["exposure"]] == [None, "v1", "v2"]
    assert attack.begin(ORDER) == 2  # the next one may come


def judge(settings: Settings, version: str, windows: list[str]) -> None:  # noqa: F811
    registry = Registry(settings.data_dir / "models")
    folder = registry.path(version)
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(f'{{"windows": {str(windows).replace(chr(39), chr(34))}}}')
    (folder / "manifest.json").write_text("{}")
    registry.promote(version, "better")


def test_what_cannot_be_done_stands_in_the_status(settings: Settings) -> None:  # noqa: F811
    attack = AttackSimulation(settings, Asked)
    attack.begin(ORDER | {"items": ("i99",)})
    failed = until(attack, lambda status: status["phase"] == "failed")
    assert "has no item 'i99'; did you mean" in failed["error"]
    assert failed["ended_at"] >= failed["began_at"]


def test_recent_users_are_those_of_the_newest_records(settings: Settings, tmp_path: Path) -> None:  # noqa: F811
    [source] = settings.streaming.sources
    assert newest_ids(settings, source, 1000)[0] == USERS[29]  # sent last
    assert set(newest_ids(settings, source, 1000)) == set(USERS[:30])
    recent = RecentUsers(settings)
    assert recent.newest(3) == []  # nobody waits for the broker
    wait_until(lambda: recent.newest(30), 20, "the topic to be read")
    assert set(recent.newest(30)) == set(USERS[:30])
    assert recent.newest(3) == recent.newest(30)[:3]


def test_samples_are_taken_every_two_seconds_once_events_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("services.samples.time.monotonic", lambda: now[0])
    samples = Samples()
    samples.take({"phase": "starting"})
    status = {
        "events": {"applied": 5, "rate_per_s": 2.5},
        "lag": 3,
        "users": 2,
        "windows": 1,
        "models": {"trained": 4, "promoted": 3},
    }
    for step in range(600):
        now[0] += 0.5
        samples.take(status | {"observed_at": 1e9 + step / 2})
    columns = samples.columns()
    assert columns.pop("every_s") == 2.0
    assert {name: column[-1] for name, column in columns.items()} == {
        "at": 1e9 + 298,
        "events_per_s": 2.5,
        "lag": 3,
        "applied": 5,
        "users": 2,
        "windows": 1,
        "trained": 4,
        "promoted": 3,
    }
    assert {len(column) for column in columns.values()} == {150}
