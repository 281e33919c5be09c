"""From promoted to serving everybody: a version proves itself on few users first, stage by stage.

One process decides, the supervisor (`services.canary`); it alone writes `rollout.json`. Replicas read it: what is
*settled* there is served to all but the share of users that the *candidate* has at its stage. So a promotion waits
until the supervisor has begun its trial, and while there is no supervisor nobody gets a version on trial that had not
begun. `step` is the whole rule, a pure function:

1. Nothing settled, or the current version has served everybody before: it is settled at once. The first model has
   nothing to be compared with, and going back to a proven version (an operator's rollback) must not wait.
2. Another version is current: its trial begins at the first share. One trial at a time; a later promotion waits.
3. A stage ends after its time and enough rankings, or when patience ends; after the last the version is settled.
4. The version is rolled back when a replica cannot load it, or when more rankings fail or are slow than those of the
   version before, beyond the tolerance. Rankings are looked at again and again, so a fixed-size test would sooner or
   later raise a false alarm; the evidence is an e-process (Ramdas et al. 2023, "Game-theoretic statistics and safe
   anytime-valid inference"), which exceeds 1/a with a probability of at most a, however often one looks.
"""

import math
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from serving.experiments.config import CanarySettings
from serving.experiments.plan import Arm, Plan
from serving.experiments.tally import Figures, Tally
from streaming.hashing import hash_one

NOTE = "rollout"
CANARY = "canary"

_SERVED = 50  # versions remembered as proven
_MOST = 0.5  # evidence is gathered for twice the rate that is still right, four times, and so on up to here
_LEAST = 1e-6  # a rate of nothing at all could never be compared with

Action = Literal["wait", "settle", "begin", "advance", "roll_back"]


class Rollout(BaseModel):
    """What everybody gets, and what is on trial.

    Attributes:
        settled: the version that serves. served: versions that served everybody, newest last.
        candidate: on trial, with `share` of users since `since` (epoch s) at `stage` (0 is the first).
        said: the newest decision in words.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    settled: str | None = None
    served: tuple[str, ...] = ()
    candidate: str | None = None
    stage: int = 0
    share: float = 0.0
    since: float = 0.0
    said: str = ""

    @property
    def trial(self) -> str | None:
        """Names this stage of this trial; counts of another one are not of interest."""
        return f"{self.candidate}/{self.stage}/{self.since}" if self.candidate else None

    def plan(self) -> Plan | None:
        """What replicas carry out; salted by the version, so that each has other users to prove itself on."""
        if self.candidate is None:
            return None
        arm = Arm(name=CANARY, version=self.candidate, share=self.share)
        salt = hash_one(self.candidate)
        return Plan(name=CANARY, kind="canary", arms=(arm,), salt=salt, started=self.since)

    def document(self) -> dict[str, Any]:
        """As it stands in the file; its versions are not pruned."""
        versions = [version for version in (self.settled, self.candidate) if version]
        return self.model_dump() | {"versions": versions}

    def _settled(self, version: str, said: str) -> Self:
        served = (*(known for known in self.served if known != version), version)[-_SERVED:]
        return type(self)(settled=version, served=served, said=said)  # type: ignore[return-value]

    def _at(self, stage: int, settings: CanarySettings, now_s: float, said: str) -> Self:
        update = {"stage": stage, "share": settings.shares[stage], "since": now_s, "said": said}
        return self.model_copy(update=update)


class Step(NamedTuple):
    """What is to be done, and the rollout that follows; its `said` tells why."""

    action: Action
    rollout: Rollout


def step(
    rollout: Rollout, current: str | None, figures: Figures | None, settings: CanarySettings, now_s: float
) -> Step:
    """Decide once.

    Args:
        rollout: as it stands. current: of the registry. figures: of `rollout.trial`. now_s: epoch s.
    """
    if current is None:
        return Step("wait", rollout)
    if current != rollout.settled and (rollout.settled is None or current in rollout.served):
        first = rollout.settled is None
        return Step("settle", rollout._settled(current, "first version" if first else "has served before"))
    if rollout.candidate is None:
        if current == rollout.settled:
            return Step("wait", rollout)
        said = f"{current} goes to {settings.shares[0]:.0%} of users, all others keep {rollout.settled}"
        return Step("begin", rollout.model_copy(update={"candidate": current})._at(0, settings, now_s, said))
    if current == rollout.settled:
        return Step("settle", rollout._settled(current, f"the trial of {rollout.candidate} was called off"))
    return _judge(rollout, figures or Figures(), settings, now_s)


def _judge(rollout: Rollout, figures: Figures, settings: CanarySettings, now_s: float) -> Step:
    assert rollout.candidate is not None
    assert rollout.settled is not None
    where = f"at {rollout.share:.0%} of users"
    if wrong := what_is_wrong(figures, settings):
        said = f"{where}: {wrong}"
        return Step("roll_back", rollout._settled(rollout.settled, f"{rollout.candidate} rolled back {said}"))
    waited_s, seen = now_s - rollout.since, figures.canary.requests
    enough = waited_s >= settings.stage_s and seen >= settings.min_requests
    if not (enough or waited_s >= settings.patience_s):
        return Step("wait", rollout)
    said = f"{rollout.candidate} is no worse after {seen:,} rankings in {waited_s:.0f} s {where}"
    if not enough:
        said += f" (fewer than {settings.min_requests:,})"
    if rollout.stage + 1 >= len(settings.shares):
        return Step("settle", rollout._settled(rollout.candidate, f"{said}: goes to everybody"))
    stage = rollout.stage + 1
    said = f"{said}: goes to {settings.shares[stage]:.0%}"
    return Step("advance", rollout._at(stage, settings, now_s, said))


def what_is_wrong(figures: Figures, settings: CanarySettings) -> str | None:
    """Why the canary must not go on; None as long as nothing speaks against it."""
    if figures.failed:
        return f"it cannot be loaded: {figures.failed}"
    canary, control = figures.canary, figures.control
    usual = control.errors / control.requests if control.requests else 0.0
    if exceeds(canary.errors, canary.requests, usual + settings.error_tolerance, settings.false_alarms):
        return (
            f"{canary.errors:,} of {canary.requests:,} rankings failed, {usual:.2%} with the version before "
            f"(tolerance {settings.error_tolerance:.2%})"
        )
    slow, known = canary.slower_than(control, settings.latency_tolerance, settings.latency_slack_ms)
    if exceeds(slow, known, 0.01, settings.false_alarms):
        return (
            f"{slow:,} of {known:,} rankings took longer than 99% do with the version before, tolerance included "
            f"(99th percentile {_ms(canary)} against {_ms(control)})"
        )
    return None


def exceeds(found: int, total: int, rate: float, false_alarms: float) -> bool:
    """Whether so many of so many are more than a rate can explain, at whatever time one asks.

    The mean of the likelihood ratios of higher rates q, (q/p)^k·((1-q)/(1-p))^(n-k), is a supermartingale that begins
    at 1 where the true rate is at most p (Ville's inequality).
    """
    rate = max(rate, _LEAST)
    if found <= rate * total or rate >= _MOST:
        return False
    doublings = range(1, math.ceil(math.log2(_MOST / rate)))
    higher = [*(rate * 2.0**times for times in doublings), _MOST]
    logs = [
        found * math.log(worse / rate) + (total - found) * math.log((1 - worse) / (1 - rate))
        for worse in higher
    ]
    most = max(logs)
    evidence = most + math.log(sum(math.exp(log - most) for log in logs) / len(logs))
    return evidence >= -math.log(false_alarms)


def _ms(tally: Tally) -> str:
    p99_ms = tally.p99_ms()
    return "too few" if p99_ms is None else f"{p99_ms:.1f} ms"
