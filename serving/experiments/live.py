"""The model versions that are live, and each request's way to the one it gets.

What is live is one immutable value, `Serving`, read once per batch: a swap between two batches is one assignment.
Where nothing is tried out, a batch costs one attribute more than without any of this. An arm that fails a request
does not fail the caller: the main model answers, and the failure is counted.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from serving.ask import Ask
from serving.errors import ServingError
from serving.experiments import metrics
from serving.experiments.assign import OUTSIDE, arm_at, unit
from serving.experiments.config import ShadowSettings
from serving.experiments.plan import CONTROL, Plan
from serving.experiments.rollout import CANARY
from serving.experiments.shadow import Shadow
from serving.experiments.tally import Reporter
from serving.models import ExperimentState
from serving.ranking import Answered
from serving.snapshot import Snapshot

logger = logging.getLogger(__name__)

Answers = list[Answered | ServingError]
Rank = Callable[[Snapshot, Sequence[Ask]], Answers]


class Assigned(NamedTuple):
    """The snapshot that a user gets, and as part of what; None: of no experiment."""

    snapshot: Snapshot
    part: ExperimentState | None


@dataclass(frozen=True)
class Split:
    """A plan with its snapshots.

    Attributes:
        arms: in the order of `bounds`. rest: what users outside all arms are given, None: the next split decides.
        keyless: what those get of whom nothing is known that lasts.
    """

    plan: Plan
    bounds: tuple[float, ...]
    arms: tuple[Assigned, ...]
    rest: Assigned | None
    keyless: Assigned

    @classmethod
    def of(cls, plan: Plan, main: Snapshot, snapshots: Mapping[str, Snapshot]) -> Self:
        """Put the plan's versions in place; `snapshots` by version."""
        arms = tuple(
            Assigned(snapshots[arm.version], ExperimentState(name=plan.name, arm=arm.name))
            for arm in plan.arms
        )
        rest = None
        if plan.kind == "canary":
            rest = Assigned(main, ExperimentState(name=plan.name, arm=CONTROL))
        return cls(plan, plan.bounds, arms, rest, rest or arms[0])

    def assigned(self, key: str | None) -> Assigned | None:
        """What a user gets; None: the next split decides."""
        if key is None:
            return self.keyless
        arm = arm_at(self.bounds, unit(key, self.plan.salt))
        return self.rest if arm == OUTSIDE else self.arms[arm]


@dataclass(frozen=True)
class Serving:
    """All that is live.

    Attributes:
        main: for those in no experiment. splits: a user is in the first that takes him. shadow: ranks beside.
        trial: of the canary, see `Rollout.trial`. failed: why its version cannot be loaded.
        off: plan → why it is not carried out.
    """

    main: Snapshot
    splits: tuple[Split, ...] = ()
    shadow: tuple[Plan, Snapshot] | None = None
    trial: str | None = None
    off: Mapping[str, str] = field(default_factory=dict)
    failed: str | None = None

    @classmethod
    def of(
        cls,
        main: Snapshot,
        plans: Sequence[Plan],
        snapshots: Mapping[str, Snapshot],
        trial: str | None,
        off: Mapping[str, str],
        failed: str | None = None,
    ) -> Self:
        """Put plans in place; `snapshots` holds all their versions."""
        splits = [Split.of(plan, main, snapshots) for plan in plans if plan.kind != "shadow"]
        shadows = [(plan, snapshots[plan.versions[0]]) for plan in plans if plan.kind == "shadow"]
        return cls(main, tuple(splits), shadows[0] if shadows else None, trial, off, failed)

    def snapshot_for(self, user_id: str | None, session: str | None = None) -> Assigned:
        """What a user gets, or an anonymous session by its name; without either, the control."""
        key = user_id if user_id is not None else None if session is None else f"session:{session}"
        for split in self.splits:
            assigned = split.assigned(key)
            if assigned is not None:
                return assigned
        return Assigned(self.main, None)

    def groups(self, asks: Sequence[Ask]) -> dict[tuple[str, str] | None, tuple[Assigned, list[int]]]:
        """Requests by arm: what they get, and their places."""
        found: dict[tuple[str, str] | None, tuple[Assigned, list[int]]] = {}
        for place, ask in enumerate(asks):
            assigned = self.snapshot_for(ask.user_id, ask.session)
            name = (assigned.part.name, assigned.part.arm) if assigned.part else None
            found.setdefault(name, (assigned, []))[1].append(place)
        return found

    def describe(self) -> dict[str, Any]:
        """What is tried out, for `/v1/stats` and `/v1/models`."""
        plans = [split.plan for split in self.splits] + ([self.shadow[0]] if self.shadow else [])
        return {
            "running": [plan.model_dump(mode="json", exclude={"salt"}) for plan in plans],
            "off": dict(self.off),
        }


class Live:
    """Holds what is live and ranks with it; thread-safe.

    Args:
        rank: ranks requests with one snapshot; answers in order. Errors of single requests are among the answers.
        models_dir: the registry's folder, where the counts of a trial are written.
        settings: of the shadow.
    """

    def __init__(self, rank: Rank, models_dir: Path, settings: ShadowSettings) -> None:
        self._rank, self._settings = rank, settings
        self._reporter = Reporter(models_dir, uuid.uuid4().hex)
        self._shadow: Shadow | None = None
        self.serving: Serving
        self._told: Serving | None = None  # of which a failure has been logged

    def publish(self, serving: Serving) -> None:
        """Take into service; called by the refresher."""
        self.serving = serving
        self._reporter.follow(serving.trial, serving.failed)
        shares = {(s.plan.name, arm): share for s in serving.splits for arm, share in s.plan.shares.items()}
        metrics.show_arms(shares, len(serving.off))
        self._follow_shadow(serving.shadow)

    def report(self) -> None:
        """Write the counts of a trial where there is one; called by the refresher."""
        self._reporter.write()

    def answer(self, asks: Sequence[Ask]) -> Answers:
        """Rank each request with what its user gets; answers in order."""
        serving = self.serving
        answers = self._by_arm(serving, asks) if serving.splits else self._rank(serving.main, asks)
        if self._shadow is not None:
            for ask, answered in zip(asks, answers, strict=True):
                self._shadow.offer(ask, answered)
        return answers

    def _by_arm(self, serving: Serving, asks: Sequence[Ask]) -> Answers:
        found: dict[int, Answered | ServingError] = {}
        for assigned, places in serving.groups(asks).values():
            group = [asks[place] for place in places]
            found.update(zip(places, self._with_arm(serving, assigned, group), strict=True))
        return [found[place] for place in range(len(asks))]

    def _with_arm(self, serving: Serving, assigned: Assigned, group: Sequence[Ask]) -> Answers:
        snapshot, part = assigned
        if part is None:
            return self._rank(snapshot, group)
        replaceable, counted = snapshot is not serving.main, part.name == CANARY
        started = time.perf_counter()
        try:
            answers = self._rank(snapshot, group)
            if replaceable:
                _check(answers)
        except Exception as error:
            # whatever a broken model raises: its users must not notice
            if len(group) > 1:
                if not replaceable:
                    raise  # the caller will come with each of them alone
                return [answered for ask in group for answered in self._with_arm(serving, assigned, [ask])]
            metrics.ARM_RANKINGS.labels(part.name, part.arm).inc()
            metrics.ARM_FAILURES.labels(part.name, part.arm).inc()
            if counted:
                self._reporter.fail(part.arm == CANARY)
            if not replaceable:
                raise
            if self._told is not serving:  # the metrics count the others
                self._told = serving
                logger.exception(
                    "arm %s of %s failed; the main model answers: %s", part.arm, part.name, error
                )
            return [_part_of(answered, part) for answered in self._rank(serving.main, group)]
        duration_s = time.perf_counter() - started
        metrics.ARM_RANKINGS.labels(part.name, part.arm).inc(len(group))
        metrics.ARM_SECONDS.labels(part.name, part.arm).observe(duration_s)
        if counted:
            self._reporter.add(part.arm == CANARY, len(group), duration_s)
        return [_part_of(answered, part) for answered in answers]

    def _follow_shadow(self, wanted: tuple[Plan, Snapshot] | None) -> None:
        shadow = self._shadow
        if shadow is not None and (wanted is None or shadow.plan != wanted[0]):
            self._shadow = None
            shadow.stop()
            shadow = None
        if wanted is None:
            return
        if shadow is None:
            self._shadow = Shadow(wanted[0], wanted[1], self._rank, self._settings.queue)
        else:
            shadow.snapshot = wanted[1]

    def describe(self) -> dict[str, Any]:
        """What is tried out and how a shadow fares, for `/v1/stats`."""
        told = self.serving.describe()
        return told | ({"shadow": self._shadow.summary()} if self._shadow is not None else {})

    def stop(self) -> None:
        """End what runs beside."""
        self._follow_shadow(None)


def _check(answers: Answers) -> None:
    for answered in answers:
        if isinstance(answered, Answered) and answered.body is not None:
            scores = [item.score for item in answered.body.items]
            if not all(map(math.isfinite, scores)):
                raise ArithmeticError("scores are not finite numbers")


def _part_of(answered: Answered | ServingError, part: ExperimentState) -> Answered | ServingError:
    if isinstance(answered, ServingError) or answered.body is None:
        return answered
    return replace(answered, body=answered.body.model_copy(update={"experiment": part}))
