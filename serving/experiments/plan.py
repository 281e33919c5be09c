"""What is tried out, as a small document in the registry's folder that every replica reads beside `current`.

`experiment.json` is written by people (`headrace experiment`), `rollout.json` by the supervisor
(`serving.experiments.rollout`); both say the same kind of thing, a `Plan`.
"""

import time
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.experiments.assign import bounds_of
from streaming.hashing import hash_one
from training.errors import RegistryError
from training.registry import Registry

NOTE = "experiment"
CONTROL = "control"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # a label of metrics and a name in a path

Kind = Literal["ab", "shadow", "canary"]


class PlanError(Exception):
    """A plan that cannot be carried out; the message says what was expected, what was seen, and what to do."""


class Arm(BaseModel):
    """A model version and the share of users that get it; of requests, where it is a shadow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    version: str = Field(min_length=1)
    share: float = Field(gt=0, le=1)


class Plan(BaseModel):
    """An experiment.

    Attributes:
        kind: ``ab``: each arm has its version, and the first is the control. ``canary``: one arm has a version, all
            others are its control and get what is current. ``shadow``: one arm ranks beside what is shown.
        arms: side by side in [0, 1), see `serving.experiments.assign`; users outside get what is current.
        salt: seeds the hash of users. started: epoch s.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    kind: Kind
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=8)
    salt: int = Field(ge=0, lt=2**64)
    started: float

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"arms must have different names, got {', '.join(names)}")
        if sum(arm.share for arm in self.arms) > 1 + 1e-9:
            raise ValueError(
                f"shares sum to {sum(arm.share for arm in self.arms):g}; at most 1 is there to share"
            )
        if self.kind == "ab" and len(self.arms) < 2:
            raise ValueError("an A/B test needs two arms or more: the control first, then what is tried")
        if self.kind != "ab" and len(self.arms) != 1:
            raise ValueError(f"a {self.kind} has one arm, got {len(self.arms)}: {', '.join(names)}")
        if self.kind == "canary" and names == [CONTROL]:
            raise ValueError(f"{CONTROL!r} is what those outside the canary get; name its arm otherwise")
        return self

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions of the arms."""
        return tuple(arm.version for arm in self.arms)

    @property
    def bounds(self) -> tuple[float, ...]:
        """Where each arm ends in [0, 1]."""
        return bounds_of([arm.share for arm in self.arms])

    @property
    def shares(self) -> dict[str, float]:
        """Share of each arm of those who take part, the control of a canary among them."""
        shares = {arm.name: arm.share for arm in self.arms}
        return {CONTROL: 1 - sum(shares.values()), **shares} if self.kind == "canary" else shares

    @classmethod
    def make(cls, name: str, kind: Kind, arms: tuple[Arm, ...], now_s: float | None = None) -> "Plan":
        """A plan salted by its name: the same name splits the same users the same way.

        Raises:
            PlanError: it cannot be.
        """
        started = time.time() if now_s is None else now_s
        return _checked(
            {"name": name, "kind": kind, "arms": arms, "salt": hash_one(name), "started": started}
        )


def read_plan(registry: Registry) -> Plan | None:
    """The experiment that runs, if any.

    Raises:
        PlanError: the file is damaged.
    """
    try:
        found = registry.note(NOTE)
    except RegistryError as error:
        raise PlanError(str(error)) from error
    if found is None:
        return None
    return _checked({name: value for name, value in found.items() if name != "versions"})


def write_plan(registry: Registry, plan: Plan) -> None:
    """Begin an experiment, or go on with it with other shares; every replica follows within `serving.refresh_s`.

    Raises:
        PlanError: a version is not on disk, another experiment runs, or users would change between arms.
    """
    known = [info.version for info in registry.versions()]
    for arm in plan.arms:
        if arm.version not in known:
            raise PlanError(
                f"arm {arm.name}: unknown model version {arm.version!r}; known: {', '.join(known) or 'none yet'}"
            )
    running = read_plan(registry)
    if running is not None:
        plan = _continued(running, plan)
    registry.put_note(NOTE, plan.model_dump() | {"versions": plan.versions})


def stop_plan(registry: Registry) -> Plan | None:
    """End the experiment: all get what is current. Returns what ran."""
    try:
        running = read_plan(registry)
    except PlanError:  # what cannot be read is ended too
        running = None
    registry.put_note(NOTE, None)
    return running


def _continued(running: Plan, plan: Plan) -> Plan:
    """The plan as one that goes on: same users in what grows."""
    same = [(arm.name, arm.version) for arm in running.arms] == [(arm.name, arm.version) for arm in plan.arms]
    if running.name != plan.name or running.kind != plan.kind or not same:
        raise PlanError(f"experiment {running.name!r} runs; stop it first: headrace experiment stop")
    if len(plan.arms) > 2 and running.shares != plan.shares:
        raise PlanError(
            "the shares of more than two arms cannot change: users would change arms; stop it first"
        )
    if len(plan.arms) == 2 and abs(plan.bounds[-1] - running.bounds[-1]) > 1e-9:
        raise PlanError(
            f"the shares must go on summing to {running.bounds[-1]:g}, or users would change between the arms; "
            "stop it first"
        )
    return plan.model_copy(update={"salt": running.salt, "started": running.started})


def _checked(values: dict[str, object]) -> Plan:
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        told = "; ".join(
            ".".join(map(str, problem["loc"]))
            + ": " * bool(problem["loc"])
            + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors(include_url=False)
        )
        raise PlanError(f"experiment: {told}") from None
