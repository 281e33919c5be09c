"""An attack that is asked for over HTTP: one at a time, on a thread of its own, with a status that tells of it.

What it does is in `services.attack_run`, which is imported when the first attack begins: it loads torch.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.settings import Settings

log = logging.getLogger(__name__)

Exposure = Callable[
    [Sequence[str], Sequence[str]], Awaitable[float]
]  # users, targets → share of the places, 0..1

_UNDER_WAY = ("planning", "sending", "screening", "learning")


class ServeExposure:
    """Asks a replica of the API through a Serve handle, which belongs to one event loop. See `serving.exposure`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._handle: Any = None

    async def __call__(self, users: Sequence[str], targets: Sequence[str]) -> float:
        """Return the share of the places that targets take.

        Raises:
            TimeoutError: no answer in time. RayError, RayServeException: there is no such replica, or it died.
        """
        from ray import serve

        if self._handle is None:
            self._handle = serve.get_deployment_handle("Api", "api")
        call = self._handle.exposure.remote(list(users), list(targets))
        return float(await asyncio.wait_for(call, self._timeout_s))


class AttackSimulation:
    """One attack at a time, each on a thread of its own.

    Args:
        settings: of the running system.
        asker: makes what asks for exposure, within the event loop that it will be used in.
    """

    def __init__(self, settings: Settings, asker: Callable[[], Exposure] | None = None) -> None:
        self._settings = settings
        self._asker = asker or (lambda: ServeExposure(settings.serving.request_timeout_s))
        self._lock = threading.Lock()
        self._status: dict[str, Any] | None = None
        self._number = 0

    def status(self) -> dict[str, Any] | None:
        """The attack under way, or the last one; None before the first.

        Of up to 2,000 fake users `trust` holds one number each (0: held), in their order; null: no event applied yet.
        """
        return self._status

    def begin(self, order: dict[str, Any]) -> int:
        """Start an attack; returns its number.

        Args:
            order: `kind`, `size`, `targets`, `items`, `seed` as in `services.streamed_attack.Order`; seed None: any.

        Raises:
            ValueError: one is under way.
        """
        order = order | {"seed": int(time.time()) if order["seed"] is None else order["seed"]}
        with self._lock:
            before = self._status
            if before is not None and before["phase"] in _UNDER_WAY:
                raise ValueError(
                    f"attack {before['number']} is {before['phase']}; a new one can begin when it is done"
                )
            self._number += 1
            self._status = {
                "number": self._number,
                "phase": "planning",
                "kind": order["kind"],
                "size": order["size"],
                "began_at": time.time(),
                "ended_at": None,
                "exposure": [],
                "error": None,
            }
        threading.Thread(target=self._run, args=(order,), name="attack", daemon=True).start()
        return self._number

    def _run(self, order: dict[str, Any]) -> None:
        try:
            from services.attack_run import carry_out

            note = asyncio.run(carry_out(self._settings, order, self._asker(), self._tell))
        except Exception as error:  # nobody awaits this thread: whoever asked for it reads the status
            log.exception("the simulated attack failed")
            self._tell(phase="failed", error=str(error) or type(error).__name__, ended_at=time.time())
        else:
            self._tell(phase="done", error=note, ended_at=time.time())

    def _tell(self, **news: Any) -> None:
        self._status = (self._status or {}) | news
