import json
import os
import threading
from pathlib import Path

import pytest

from training.errors import RegistryError
from training.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models", keep=3)


def add(registry: Registry, number: int) -> str:
    version = f"v{number:04d}"
    folder = registry.path(version)
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps({"n": number}))
    (folder / "lineage.json").write_text(json.dumps({"created_at": float(number), "parent": None}))
    (folder / "manifest.json").write_text("{}")
    return version


def test_empty(registry: Registry) -> None:
    assert registry.current() is None
    assert registry.versions() == []
    assert registry.counts() == {"trained": 0, "promoted": 0, "rejected": 0}


def test_promotion_rejection_and_rollback(registry: Registry) -> None:
    first, second, third = (add(registry, n) for n in (1, 2, 3))
    registry.promote(first, "better than popularity")
    registry.promote(second, "no worse")
    registry.reject(third, "NDCG@10 fell")
    assert registry.current() == second
    assert registry.previous() == first
    infos = registry.versions()
    assert [(info.version, info.status, info.current) for info in infos] == [
        (third, "rejected", False),
        (second, "promoted", True),
        (first, "promoted", False),
    ]
    assert infos[0].reason == "NDCG@10 fell"
    assert infos[1].eval == {"n": 2}
    registry.promote(first, "rolled back by an operator")
    assert registry.current() == first
    assert registry.previous() == second
    registry.promote(third, "forced by an operator")
    assert registry.verdict(third) == "rejected"  # what the gate said stands
    assert registry.counts() == {"trained": 3, "promoted": 2, "rejected": 1}


def test_an_unknown_version_is_refused_naming_the_known(registry: Registry) -> None:
    add(registry, 1)
    with pytest.raises(RegistryError, match=r"unknown model version 'v9'; known versions: v0001"):
        registry.promote("v9", "")
    with pytest.raises(RegistryError, match="unknown"):
        registry.reject("../v0001", "")


def test_the_current_version_cannot_be_rejected(registry: Registry) -> None:
    registry.promote(add(registry, 1), "")
    with pytest.raises(RegistryError, match="is current"):
        registry.reject("v0001", "")


def test_a_crash_before_the_replacement_leaves_the_old_version_current(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(add(registry, 1), "")
    add(registry, 2)

    def crash(source: object, target: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        registry.promote("v0002", "")
    monkeypatch.undo()
    assert registry.current() == "v0001"
    registry.repair()
    assert registry.current() == "v0002"
    assert registry.previous() == "v0001"


def test_a_torn_history_line_is_ignored(registry: Registry) -> None:
    registry.promote(add(registry, 1), "fine")
    with (registry.models_dir / "history.jsonl").open("a") as file:
        file.write('{"version": "v0002", "act')
    assert registry.counts()["promoted"] == 1
    registry.promote(add(registry, 2), "after the crash")
    assert registry.counts()["promoted"] == 2


def test_old_versions_are_pruned_but_never_the_current_or_previous(registry: Registry) -> None:
    for number in (1, 2):
        registry.promote(add(registry, number), "")
    for number in range(3, 9):
        registry.reject(add(registry, number), "")
    assert [info.version for info in registry.versions()] == ["v0008", "v0007", "v0006", "v0002", "v0001"]
    assert registry.counts() == {"trained": 8, "promoted": 2, "rejected": 6}


def test_a_version_that_failed_in_service_is_marked_and_the_one_before_serves_again(
    registry: Registry,
) -> None:
    first, second = (add(registry, n) for n in (1, 2))
    registry.promote(first, "first")
    registry.promote(second, "no worse")
    for _ in range(2):  # cut off and done again
        registry.roll_back(second, first, "2% of rankings failed")
    assert registry.current() == first
    newest = registry.versions()[0]
    assert (newest.version, newest.status, newest.reason) == (second, "rolled_back", "2% of rankings failed")
    assert f"{second} rolled back: 2% of rankings failed" in registry.versions()[1].reason
    assert registry.counts() == {"trained": 2, "promoted": 2, "rejected": 0}
    assert registry.verdict(second) == "promoted"  # what the gate said stands
    registry.repair()
    assert registry.current() == first


def test_a_rollback_leaves_a_later_promotion(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.promote(add(registry, number), "")
    registry.roll_back("v0002", "v0001", "slow")
    assert registry.current() == "v0003"
    with pytest.raises(RegistryError, match="unknown"):
        registry.roll_back("v0003", "v0009", "slow")


def test_notes_are_kept_and_removed_and_protect_their_versions(registry: Registry) -> None:
    assert registry.note("experiment") is None
    registry.promote(add(registry, 1), "")
    registry.put_note("experiment", {"a": 1, "versions": ["v0002"]})
    assert registry.note("experiment") == {"a": 1, "versions": ["v0002"]}
    for number in range(2, 9):
        registry.reject(add(registry, number), "")
    assert "v0002" in [info.version for info in registry.versions()]
    registry.put_note("experiment", None)
    registry.put_note("experiment", None)
    assert registry.note("experiment") is None
    registry.reject(add(registry, 9), "")
    assert "v0002" not in [info.version for info in registry.versions()]


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_note_is_told_and_hurts_nothing_else(registry: Registry, content: str) -> None:
    registry.promote(add(registry, 1), "")
    (registry.models_dir / "experiment.json").write_text(content)
    with pytest.raises(RegistryError, match=r"experiment\.json"):
        registry.note("experiment")
    registry.promote(add(registry, 2), "")
    assert registry.current() == "v0002"


def test_changes_by_several_at_once_are_all_there(registry: Registry) -> None:
    versions = [add(registry, number) for number in range(1, 4)]
    threads = [threading.Thread(target=registry.promote, args=(version, "")) for version in versions * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.history()) == 15
    assert registry.current() == registry.history()[-1]["version"]
