"""Decides about canaries: the one process that writes `rollout.json`, a part of the supervisor.

There is one supervisor, so no two decide; where it is away, replicas go on with what was decided last. Every round
starts from the files, so a new supervisor goes on where the old one ended. The rule itself is
`serving.experiments.rollout.step`. A rollback is written into the registry first and then into the rollout: cut off
in between, it is found to be done.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from serving.experiments.config import CanarySettings
from serving.experiments.rollout import NOTE, Rollout, step
from serving.experiments.tally import Figures, Tally, gather
from training.errors import RegistryError
from training.registry import Registry

log = logging.getLogger(__name__)


class CanaryWatch:
    """Looks at the registry and at what the replicas count, and decides.

    Args:
        registry: of the models. settings: of canaries. clock: epoch s.

    Attributes:
        problem: why there is no deciding now.
    """

    def __init__(
        self, registry: Registry, settings: CanarySettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._settings, self._clock = registry, settings, clock
        self._rollout = Rollout()
        self._figures = Figures()
        self.problem: str | None = None

    def look(self) -> None:
        """One round; what cannot be done now is told in `problem` and tried again in the next."""
        try:
            self._look()
            self.problem = None
        except (RegistryError, ValidationError) as error:
            said = f"no canary is decided about: {error}"
            if said != self.problem:
                log.error("%s", said)
            self.problem = said

    def _look(self) -> None:
        note = self._registry.note(NOTE)
        if not self._settings.enabled:
            if note is not None:  # what it says would be old when canaries are switched on again
                self._registry.put_note(NOTE, None)
            return
        before = Rollout.model_validate(note or {})
        trial = before.trial
        self._figures = gather(self._registry.models_dir, trial) if trial else Figures()
        current = self._registry.current()
        action, after = step(before, current, self._figures, self._settings, self._clock())
        if action == "roll_back":
            assert before.candidate is not None
            assert before.settled is not None
            self._registry.roll_back(before.candidate, before.settled, after.said)
        if action != "wait":
            log.log(logging.WARNING if action == "roll_back" else logging.INFO, "canary: %s", after.said)
            self._registry.put_note(NOTE, after.document())
        self._rollout = after

    def status(self) -> dict[str, Any] | None:
        """Who serves, what is on trial and how it fares; None where canaries are off."""
        if not self._settings.enabled:
            return None
        told = self._rollout.model_dump(include={"settled", "candidate", "stage", "share", "said"})
        if self._rollout.candidate is not None:
            told |= {"replicas": self._figures.replicas}
            told |= {"canary": _arm(self._figures.canary), "control": _arm(self._figures.control)}
        return told


def _arm(tally: Tally) -> dict[str, Any]:
    p99_ms = tally.p99_ms()
    return {
        "rankings": tally.requests,
        "errors": tally.errors,
        "p99_ms": None if p99_ms is None else round(p99_ms, 2),
    }
