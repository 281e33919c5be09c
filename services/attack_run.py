"""An attack on the running system from its plan to the model that met it, told step by step.

It is *planned* from what the closed windows show, *sent* as ordinary events, *screened* once the window that it hit
has closed, and *learned from* (or not, where its users are held) by a later model. All the while the trust of the
fake users is looked at, and with each new model what their targets have of real users' lists.
"""

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Protocol

from services.attack_outcome import outcome
from services.attack_simulation import Exposure
from services.settings import Settings
from services.streamed_attack import AttackError, Order, Planned, plan, send
from services.user_ids import newest_ids
from streaming.hashing import stable_hash
from streaming.reader import StateReader
from training.registry import Registry

_LOOK_S = 1.0
_PATIENCE_S = 900.0  # for the window to close and a model to learn it
_SEND_S = 3.0  # the window must not close meanwhile
_LEAST_RATE = 200.0  # events/s
_FAKES_MAX = 2000
_RECORDS, _ASKED = 2000, 100  # newest records that real users are taken from, and how many are asked about


class Tell(Protocol):
    """Takes news for the status."""

    def __call__(self, **news: Any) -> None:
        """Replace these fields of the status."""
        ...


async def carry_out(settings: Settings, order: dict[str, Any], exposure: Exposure, tell: Tell) -> str | None:
    """Do all of it; returns what kept it from its end, None where nothing did.

    Args:
        order: fields of `services.streamed_attack.Order`.

    Raises:
        AttackError: it cannot be made. StreamingError: the broker cannot be reached.
    """
    order = order | {"items": tuple(order["items"])}
    planned = await asyncio.to_thread(plan, settings, Order(**order))
    if len(planned.users) > _FAKES_MAX:
        raise AttackError(
            f"expected at most {_FAKES_MAX:,} fake users, got {len(planned.users):,}: {planned.order.size:g} of the "
            f"{planned.honest_users:,} users in the newest windows; choose a smaller size"
        )
    source = next(one for one in settings.streaming.sources if one.topic == planned.topic)
    users = (await asyncio.to_thread(newest_ids, settings, source, _RECORDS))[:_ASKED]
    watch = _Watch(settings, planned, users, exposure)
    try:
        tell(**watch.begun())
        tell(exposure=await watch.exposed(), phase="sending")
        tell(sent=await asyncio.to_thread(_send, settings, planned, tell), phase="screening")
        return await _follow(watch, tell)
    finally:
        watch.close()


def _send(settings: Settings, planned: Planned, tell: Tell) -> int:
    sent = -1

    def counted() -> bool:  # asked before each event
        nonlocal sent
        sent += 1
        if sent % 20 == 0:
            tell(sent=sent)
        return False

    return send(settings, planned, max(_LEAST_RATE, len(planned.times) / _SEND_S), counted)


async def _follow(watch: "_Watch", tell: Tell) -> str | None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_S)
        tell(**await asyncio.to_thread(watch.look))
        if watch.model_is_new():
            tell(exposure=await watch.exposed())
        if watch.judged is not None:
            return None
    return (
        f"no model has learned the window that was hit within {_PATIENCE_S / 60:.0f} minutes: windows close when "
        "events come whose time is later"
    )


class _Watch:
    """Looks at what becomes of an attack.

    Args:
        planned: the attack. users: real ones whose lists are looked at. asker: asks for their exposure.
    """

    def __init__(self, settings: Settings, planned: Planned, users: list[str], asker: Exposure) -> None:
        self._data_dir, self._planned, self._users, self._asker = settings.data_dir, planned, users, asker
        self._reader = StateReader(settings.data_dir / "state", settings.streaming)
        self._registry = Registry(settings.data_dir / "models")
        self._fakes = stable_hash(planned.users)
        self._seen: list[dict[str, Any]] = []
        self._judged_at_start = {info.version for info in self._registry.versions()}
        self.judged: str | None = None  # the version that has learned the attacked window

    def begun(self) -> dict[str, Any]:
        """What stands from the start, for the status."""
        report = self._planned.report()
        return {
            "fake_users": len(self._planned.users),
            "honest_users": self._planned.honest_users,
            "events": report["events"],
            "windows": report["windows"],
            "targets": report["targets"],
            "asked": len(self._users),
            "sent": 0,
            "trust": [None] * len(self._planned.users),
            "held": 0,
            "honest_held": 0,
        }

    def look(self) -> dict[str, Any]:
        """What is known now, for the status."""
        rows = self._reader.read_hashed(self._fakes)
        seen = outcome(self._data_dir, self._planned, self._planned.start_ms)
        self.judged = self._judged()
        pairs = zip(rows["total"].tolist(), rows["trust"].tolist(), strict=True)
        return {
            "phase": "learning" if seen.screened else "screening",
            "trust": [round(trust, 3) if total else None for total, trust in pairs],
            "held": seen.held,
            "honest_held": seen.honest_held,
            "judged": self.judged,
        }

    def model_is_new(self) -> bool:
        """Whether the model that serves is not the one that exposure was last asked of."""
        return bool(self._registry.current() != self._seen[-1]["version"])

    async def exposed(self) -> list[dict[str, Any]]:
        """Ask for the targets' exposure now; returns all answers so far."""
        version = self._registry.current()
        share = await self._asker(self._users, self._planned.targets)
        self._seen.append({"at": time.time(), "version": version, "share": share})
        return list(self._seen)

    def close(self) -> None:
        """Close the state."""
        self._reader.close()

    def _judged(self) -> str | None:
        hit = set(self._planned.windows)
        for info in self._registry.versions():
            if info.version in self._judged_at_start or info.status == "candidate":
                continue
            if hit & set(_learned(self._registry.path(info.version))):
                return info.version
        return None


def _learned(folder: Path) -> list[str]:
    """Names of the windows that a version has learned; none where it has just been pruned."""
    try:
        lineage = json.loads((folder / "lineage.json").read_text())
    except (OSError, json.JSONDecodeError):
        return []
    return list(lineage.get("windows", ()))
