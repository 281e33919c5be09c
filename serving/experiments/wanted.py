"""What the files of the registry's folder want every replica to serve."""

from dataclasses import dataclass, field

from pydantic import ValidationError

from serving.experiments.config import CanarySettings
from serving.experiments.plan import Plan, PlanError, read_plan
from serving.experiments.rollout import CANARY, NOTE, Rollout
from training.errors import RegistryError
from training.registry import Registry


@dataclass(frozen=True)
class Wanted:
    """What is to be served.

    Attributes:
        main: the version for all who are in no arm; None before the first promotion.
        plans: of those who are; a user is in the first that takes him.
        trial: see `Rollout.trial`. off: plan → why it cannot be carried out.
    """

    main: str | None
    plans: tuple[Plan, ...] = ()
    trial: str | None = None
    off: dict[str, str] = field(default_factory=dict)

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of arms, beside the main one."""
        return tuple(dict.fromkeys(v for plan in self.plans for v in plan.versions if v != self.main))


def wanted(registry: Registry, canary: CanarySettings) -> Wanted:
    """Read three small files; one that is damaged is told in `off`, and the others count."""
    current = registry.current()
    off: dict[str, str] = {}
    plans: list[Plan] = []
    main, trial = current, None
    try:
        experiment = read_plan(registry)
        plans += [experiment] if experiment else []
    except PlanError as error:
        off["experiment"] = str(error)
    if canary.enabled:
        try:
            rollout = Rollout.model_validate(registry.note(NOTE) or {})
        except (RegistryError, ValidationError) as error:
            off[CANARY] = str(error)
            rollout = Rollout()
        settled = rollout.settled
        if settled is not None and settled != current and registry.path(settled).is_dir():
            main = settled
            plan = rollout.plan()
            if plan is not None:
                plans.append(plan)
                trial = rollout.trial
    return Wanted(main, tuple(plans), trial, off)
