"""Which model version is current, and how every version fared.

`models/current` is a small file replaced atomically, last; `models/history.jsonl` gets one line per verdict or
operator's promotion, appended in one write, so counts and rollbacks survive pruning and restarts. Beside them stand
*notes*, small documents replaced atomically too: what is tried out, and on whom (`serving.experiments`). Learner,
supervisor and API change the registry, one at a time: each holds the lock of `models/.lock` while it does.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from streaming.journal import append_line
from training.errors import RegistryError

Status = Literal["promoted", "rejected", "candidate", "rolled_back"]
_HEADER = ("eval.json", "lineage.json")


@dataclass(frozen=True)
class VersionInfo:
    """One bundle on disk. ``created_at`` is epoch seconds; ``reason`` is the latest verdict's."""

    version: str
    created_at: float
    status: Status
    reason: str
    current: bool
    parent: str | None
    eval: dict[str, Any] = field(default_factory=dict)


class Registry:
    """The versions under ``models_dir``. Reading never writes; any number of processes may read."""

    def __init__(self, models_dir: Path, keep: int = 20) -> None:
        self.models_dir = Path(models_dir)
        self.keep = keep

    def path(self, version: str) -> Path:
        """Folder of a version (it need not exist)."""
        return self.models_dir / version

    def current(self) -> str | None:
        """The version being served, or None before the first promotion: one small file read."""
        try:
            return (self.models_dir / "current").read_text().strip() or None
        except FileNotFoundError:
            return None

    def previous(self) -> str | None:
        """The version that was current before the present one, if it still exists."""
        current = self.current()
        for entry in reversed(self.history()):
            if entry["action"] == "promoted" and entry["version"] == current:
                before = entry.get("previous")
                return before if before and self.path(before).is_dir() else None
        return None

    def history(self) -> list[dict[str, Any]]:
        """Every verdict and promotion, oldest first: version, action, reason, at (epoch s), previous."""
        try:
            lines = (self.models_dir / "history.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a torn last line is no verdict

    def verdict(self, version: str) -> Status:
        """The first verdict a version got; later promotions by an operator do not change what the gate said."""
        for entry in self.history():
            if entry["version"] == version:
                return "promoted" if entry["action"] == "promoted" else "rejected"
        return "candidate"

    def counts(self) -> dict[str, int]:
        """Models trained, promoted and rejected since the beginning, by first verdict."""
        first: dict[str, str] = {}
        for entry in self.history():
            first.setdefault(entry["version"], entry["action"])
        promoted = sum(action == "promoted" for action in first.values())
        return {"trained": len(first), "promoted": promoted, "rejected": len(first) - promoted}

    def versions(self) -> list[VersionInfo]:
        """Versions on disk, newest first."""
        last: dict[str, dict[str, Any]] = {entry["version"]: entry for entry in self.history()}
        current = self.current()
        infos = []
        for folder in self._folders():
            evaluation, lineage = (_read_json(folder / name) for name in _HEADER)
            entry = last.get(folder.name)
            status: Status = "candidate"
            if entry is not None:
                status = entry["action"]
            infos.append(
                VersionInfo(
                    version=folder.name,
                    created_at=float(lineage.get("created_at", folder.stat().st_mtime)),
                    status=status,
                    reason=str((entry or {}).get("reason", "")),
                    current=folder.name == current,
                    parent=lineage.get("parent"),
                    eval=evaluation,
                )
            )
        return sorted(infos, key=lambda info: (info.created_at, info.version), reverse=True)

    def promote(self, version: str, reason: str) -> None:
        """Make a version current: history first, then the atomic replacement of `current`, then pruning.

        Raises:
            RegistryError: there is no such version on disk.
        """
        with self._changing():
            self._promote(version, reason)

    def _promote(self, version: str, reason: str) -> None:
        self._require(version)
        previous = self.current()
        if previous == version:
            found: dict[str, Any] = next(
                (e for e in reversed(self.history()) if (e["version"], e["action"]) == (version, "promoted")),
                {},
            )
            previous = found.get("previous")  # promoting the current version again changes nothing
        self._append(version, "promoted", reason, previous)
        self._make_current(version)
        self._prune()

    def roll_back(self, version: str, to: str, reason: str) -> None:
        """Mark a version as one that failed in service, and where it is current make another one that.

        Where a third version has become current in between, that one stays. Repeating it is harmless.

        Raises:
            RegistryError: one of them is not on disk.
        """
        with self._changing():
            self._require(to)
            self._append(version, "rolled_back", reason, None)
            if self.current() == version:
                self._promote(to, f"{version} rolled back: {reason}")

    def repair(self) -> None:
        """Finish a promotion that was cut off between its line in the history and the replacement of `current`."""
        with self._changing():
            promoted = [entry["version"] for entry in self.history() if entry["action"] == "promoted"]
            if promoted and promoted[-1] != self.current() and self.path(promoted[-1]).is_dir():
                self._make_current(promoted[-1])

    def reject(self, version: str, reason: str) -> None:
        """Record that a version was refused; `current` stays.

        Raises:
            RegistryError: there is no such version, or it is the current one.
        """
        with self._changing():
            self._require(version)
            if version == self.current():
                raise RegistryError(
                    f"version {version} is current; promote another one instead of rejecting it"
                )
            self._append(version, "rejected", reason, None)
            self._prune()

    def note(self, name: str) -> dict[str, Any] | None:
        """A document beside `current`, or None where there is none: one small file read.

        Raises:
            RegistryError: it cannot be read.
        """
        path = self.models_dir / f"{name}.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RegistryError(f"{path} cannot be read ({error}); remove or restore it") from error
        if not isinstance(found, dict):
            raise RegistryError(f"{path}: expected a JSON object; remove or restore it")
        return found

    def put_note(self, name: str, document: Mapping[str, Any] | None) -> None:
        """Replace a document atomically; None removes it. Versions under its key ``versions`` are not pruned."""
        path = self.models_dir / f"{name}.json"
        if document is None:
            path.unlink(missing_ok=True)
            return
        self.models_dir.mkdir(parents=True, exist_ok=True)
        with self._changing():
            _replace(path, json.dumps(document))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the registry's lock, which the system lets go of when its holder dies."""
        if not self.models_dir.is_dir():  # then there is nothing to change, and the caller will say so
            yield
            return
        with (self.models_dir / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _folders(self) -> Iterator[Path]:
        if self.models_dir.is_dir():
            for folder in self.models_dir.iterdir():
                if (
                    folder.is_dir()
                    and not folder.name.startswith(".")
                    and (folder / "manifest.json").exists()
                ):
                    yield folder

    def _require(self, version: str) -> None:
        known = sorted(folder.name for folder in self._folders())
        if version not in known:
            raise RegistryError(
                f"unknown model version {version!r}; known versions: {', '.join(known) or 'none yet'}"
            )

    def _append(self, version: str, action: Status, reason: str, previous: str | None) -> None:
        entry = {
            "version": version,
            "action": action,
            "reason": reason,
            "at": time.time(),
            "previous": previous,
        }
        append_line(self.models_dir / "history.jsonl", entry)

    def _make_current(self, version: str) -> None:
        _replace(self.models_dir / "current", version + "\n")

    def _prune(self) -> None:
        protected = {self.current(), self.previous(), *self._noted()}
        for info in self.versions()[self.keep :]:
            if info.version not in protected and info.status != "candidate":
                shutil.rmtree(self.path(info.version), ignore_errors=True)

    def _noted(self) -> Iterator[str]:
        for path in self.models_dir.glob("*.json"):
            try:
                yield from (self.note(path.stem) or {}).get("versions", ())
            except RegistryError:  # whoever reads it says so; here it protects nothing
                continue


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return loaded
