"""An attack in the middle of the demo: fake users among the recorded ones, and what became of them."""

from typing import Any

from services.attack_outcome import outcome
from services.client import ApiClient
from services.settings import Settings
from services.streamed_attack import Order, Planned, exposure, plan, send

_ORDER = Order(kind="bandwagon", size=0.05, targets=3)


class DemoAttack:
    """Sends one attack, and says at the end what the system made of it.

    Args:
        settings: of the running system. client: its API. users: honest ones whose lists are looked at.
    """

    def __init__(self, settings: Settings, client: ApiClient, users: list[str]) -> None:
        self._settings, self._client, self._users = settings, client, users
        self._planned: Planned | None = None
        self._before = 0.0

    def launch(self) -> int:
        """Plan it from the windows closed so far and send it; returns the events sent.

        Raises:
            AttackError: no window is closed yet. StreamingError: the broker does not take the events.
        """
        planned = plan(self._settings, _ORDER)
        self._before = exposure(self._client, self._users, planned.targets)
        self._planned = planned
        return send(self._settings, planned)

    def report(self) -> dict[str, Any] | None:
        """What became of the fake users and of their targets; None where no attack was sent."""
        planned = self._planned
        if planned is None:
            return None
        seen = outcome(self._settings.data_dir, planned)
        return {
            "kind": planned.order.kind,
            "fake_users": len(planned.users),
            "events": len(planned.times),
            "targets": planned.targets,
            "window_screened": seen.screened,
            "held": seen.held,
            "honest_held": seen.honest_held,
            "exposure_before": self._before,
            "exposure_after": exposure(self._client, self._users, planned.targets),
        }
