"""Several versions at once: who gets which, what becomes of one that fails, and when a canary goes on."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from services.canary import CanaryWatch
from serving.ask import Ask
from serving.config import ServingSettings
from serving.errors import InvalidRequestError
from serving.experiments import metrics
from serving.experiments.assign import OUTSIDE, arm_at, arms_at, bounds_of, unit, units
from serving.experiments.config import CanarySettings, ShadowSettings
from serving.experiments.live import Live
from serving.experiments.plan import Arm, Plan, PlanError, read_plan, stop_plan, write_plan
from serving.experiments.rollout import Rollout, exceeds, step, what_is_wrong
from serving.experiments.tally import Figures, Reporter, Tally, gather
from serving.models import ModelState, Recommendations, RecommendedItem, UserState
from serving.ranking import Answered
from serving.refresh import Refresher
from tests.serving.world import STREAMING
from training.registry import Registry

USERS = [f"user-{n}" for n in range(20_000)]
CANARY = CanarySettings(
    enabled=True, shares=(0.1, 0.5), stage_s=60, min_requests=20, patience_s=600, latency_slack_ms=1
)

PATIENT = CANARY.model_copy(
    update={"latency_slack_ms": 60_000}
)  # real rankings, on a machine that may be busy


# --- who gets what ---------------------------------------------------------------------------------------


def test_users_are_split_by_share_alike_in_columns_and_one_by_one():
    places = units(USERS, 7)
    assert places[:50].tolist() == [unit(user, 7) for user in USERS[:50]]
    arms = arms_at(bounds_of([0.2, 0.3]), places)
    counts = {arm: int((arms == arm).sum()) / len(USERS) for arm in (0, 1, OUTSIDE)}
    assert counts == pytest.approx({0: 0.2, 1: 0.3, OUTSIDE: 0.5}, abs=0.015)
    assert [arm_at(bounds_of([0.2, 0.3]), place) for place in places[:50]] == arms[:50].tolist()
    assert len(units([], 7)) == 0


def test_two_experiments_split_independently():
    one, other = (arms_at(bounds_of([0.5, 0.5]), units(USERS, salt)) for salt in (1, 2))
    assert (one == other).mean() == pytest.approx(0.5, abs=0.015)


def test_shares_that_sum_to_one_leave_nobody_outside():
    bounds = bounds_of([0.1] * 10)
    assert arm_at(bounds, 1 - 2**-53) == 9


def test_who_is_in_a_growing_arm_stays_in_it():
    places = units(USERS, 3)
    small, large = (arms_at(bounds_of([share]), places) == 0 for share in (0.01, 0.1))
    assert 0 < small.sum() < large.sum()
    assert not (small & ~large).any()
    before, after = (arms_at(bounds_of([1 - share, share]), places) == 1 for share in (0.1, 0.3))
    assert not (before & ~after).any()


# --- plans -----------------------------------------------------------------------------------------------


def arm(name, version="v1", share=0.5):
    return Arm(name=name, version=version, share=share)


@pytest.mark.parametrize(
    ("kind", "arms", "said"),
    [
        ("ab", [arm("control")], "needs two arms"),
        ("ab", [arm("a"), arm("a")], "different names"),
        ("ab", [arm("a", share=0.7), arm("b", share=0.4)], "sum to 1.1"),
        ("shadow", [arm("a", share=0.1), arm("b", share=0.1)], "one arm"),
        ("canary", [arm("control")], "name its arm otherwise"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(kind, arms, said):
    with pytest.raises(PlanError, match=said):
        Plan.make("x", kind, tuple(arms))


def test_a_plan_goes_through_the_registry(trained):
    registry = Registry(trained.data_dir / "models")
    trained.train("v2", seed=1, promote=False)
    plan = Plan.make("wider", "ab", (arm("control"), arm("wider", "v2")), now_s=5)
    write_plan(registry, plan)
    assert read_plan(registry) == plan
    grown = Plan.make("wider", "ab", (arm("control", share=0.2), arm("wider", "v2", 0.8)), now_s=9)
    write_plan(registry, grown)
    assert read_plan(registry).started == 5
    assert read_plan(registry).shares == {"control": 0.2, "wider": 0.8}
    for other, said in [
        (Plan.make("other", "ab", plan.arms), "'wider' runs; stop it first"),
        (
            Plan.make("wider", "ab", (arm("control", share=0.2), arm("wider", "v2", 0.3))),
            "go on summing to 1",
        ),
        (
            Plan.make("wider", "ab", (arm("control"), arm("wider", "v9"))),
            "unknown model version 'v9'; known: v2, v1",
        ),
    ]:
        with pytest.raises(PlanError, match=said):
            write_plan(registry, other)
    assert stop_plan(registry).name == "wider"
    assert read_plan(registry) is None
    assert stop_plan(registry) is None


# --- what is live ----------------------------------------------------------------------------------------


class Engine:
    """Ranks with a body that names the version; `broken` versions raise, `mad` ones give no numbers."""

    def __init__(self, world, **canary):
        self.broken, self.mad, self.batches, self.published = set(), set(), [], []
        self.live = Live(self.rank, world.data_dir / "models", ShadowSettings(queue=2))
        settings = ServingSettings(load_retry_s=1e-6)
        self.refresher = Refresher(
            world.data_dir,
            STREAMING,
            settings,
            self.published.append,
            self.live,
            CANARY.model_copy(update=canary),
        )
        self.refresher.refresh()

    def rank(self, snapshot, asks):
        version = snapshot.identity[0]
        self.batches.append((version, len(asks)))
        if version in self.broken:
            raise RuntimeError("no such operator")
        return [self._answer(version, ask) for ask in asks]

    def _answer(self, version, ask):
        if ask.user_id == "wrong":
            return InvalidRequestError("/k", "too large")
        score = float("nan") if version in self.mad else 1.0
        items = [
            RecommendedItem(item_id=f"{version}-{n % 5}", title="", score=score, reasons=[])
            for n in range(10)
        ]
        state = UserState(known=False, events=0, partition=None, offset=None, age_ms=None)
        model = ModelState(version=version, age_s=None, kind="trained")
        return Answered(Recommendations(user_id=ask.user_id, items=items, model=model, state=state))

    def ask(self, users):
        return [a.body for a in self.live.answer([Ask(user_id=user) for user in users])]

    def versions(self, users=USERS[:200]):
        return [body.model.version for body in self.ask(users)]


@contextmanager
def opened(world, **canary):
    engine = Engine(world, **canary)
    try:
        yield engine
    finally:
        engine.live.stop()
        engine.refresher.stop()


@pytest.fixture
def two(trained):
    """A world with `v1` promoted and `v2` beside it."""
    trained.train("v2", seed=1, promote=False)
    return trained


def begin(world, kind="ab", **shares):
    versions = {"control": "v1"}
    arms = tuple(arm(name, versions.get(name, "v2"), share) for name, share in shares.items())
    write_plan(Registry(world.data_dir / "models"), Plan.make("test", kind, arms))


def test_without_an_experiment_the_current_model_ranks_and_nothing_is_said(two):
    with opened(two) as engine:
        assert set(engine.versions()) == {"v1"}
        assert engine.batches == [("v1", 200)]
        assert engine.ask(["anna"])[0].experiment is None
        assert not engine.refresher.refresh()


def test_both_versions_are_live_and_each_user_keeps_his(two):
    begin(two, control=0.5, new=0.5)
    with opened(two) as engine, opened(two) as replica:
        first = engine.versions()
        assert set(first) == {"v1", "v2"}
        assert engine.versions() == replica.versions() == first
        assert {v for v, _ in engine.batches} == {"v1", "v2"}
        assert len(engine.batches) == 4  # each arm's requests are ranked together
        parts = [
            (body.model.version, body.experiment.name, body.experiment.arm) for body in engine.ask(USERS[:50])
        ]
        assert set(parts) == {("v1", "test", "control"), ("v2", "test", "new")}
        two.elsewhere("publish", {"item_id": "i99", "title": "New"})
        assert engine.refresher.refresh()
        for assigned, _ in engine.live.serving.groups([Ask(user_id=u) for u in USERS[:50]]).values():
            assert "i99" in assigned.snapshot.table.ids  # the catalogue reaches every arm
        stop_plan(Registry(two.data_dir / "models"))
        assert engine.refresher.refresh()
        assert set(engine.versions()) == {"v1"}


def test_anonymous_sessions_go_by_their_name_or_get_the_control(two):
    begin(two, control=0.5, new=0.5)
    with opened(two) as engine:
        serving = engine.live.serving
        assert serving.snapshot_for(None).part.arm == "control"
        arms = {name: serving.snapshot_for(None, name).part.arm for name in map(str, range(50))}
        assert set(arms.values()) == {"control", "new"}
        assert arms == {name: serving.snapshot_for(None, name).part.arm for name in arms}


def test_users_outside_all_arms_get_what_is_current(two):
    begin(two, control=0.1, new=0.1)
    two.train("v3", seed=2)
    with opened(two, enabled=False) as engine:
        versions = engine.versions()
        assert {v: versions.count(v) > 0 for v in ("v1", "v2", "v3")} == {"v1": True, "v2": True, "v3": True}
        bodies = engine.ask(USERS[:200])
        assert {body.experiment is None for body in bodies if body.model.version == "v3"} == {True}


def test_a_version_that_cannot_be_loaded_switches_the_experiment_off_and_says_why(two, caplog):
    begin(two, control=0.5, new=0.5)
    weights = two.data_dir / "models" / "v2" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\x00")
    with opened(two) as engine:
        assert set(engine.versions()) == {"v1"}
        assert "v2: BundleError" in engine.live.describe()["off"]["test"]
        assert "v2 is not taken into service" in caplog.text
        weights.write_bytes(good)
        engine.refresher.refresh()
        assert set(engine.versions()) == {"v1", "v2"}
        assert engine.live.describe()["off"] == {}


def test_a_damaged_plan_leaves_the_main_model(two):
    (two.data_dir / "models" / "experiment.json").write_text("{")
    with opened(two) as engine:
        assert set(engine.versions()) == {"v1"}
        assert "experiment.json" in engine.live.describe()["off"]["experiment"]


def failures(name):
    return metrics.ARM_FAILURES.labels("test", name)._value.get()


@pytest.mark.parametrize("fault", ["broken", "mad"])
def test_an_arm_that_fails_is_answered_by_the_main_model(two, fault):
    begin(two, control=0.5, new=0.5)
    with opened(two) as engine:
        getattr(engine, fault).add("v2")
        before = failures("new")
        bodies = engine.ask(USERS[:100])
        assert {body.model.version for body in bodies} == {"v1"}
        arms = [body.experiment.arm for body in bodies]
        assert set(arms) == {"control", "new"}  # who was assigned what stays on record
        assert failures("new") - before == arms.count("new")


def test_errors_of_requests_are_no_failures_of_the_arm(two):
    begin(two, control=0.5, new=0.5)
    with opened(two) as engine:
        before = failures("control") + failures("new")
        [answered] = engine.live.answer([Ask(user_id="wrong")])
        assert isinstance(answered, InvalidRequestError)
        assert failures("control") + failures("new") == before


def test_metrics_of_an_experiment_end_with_it(two):
    begin(two, control=0.5, new=0.5)
    with opened(two) as engine:
        engine.versions()
        stop_plan(Registry(two.data_dir / "models"))
        engine.refresher.refresh()
        assert [m.samples for m in metrics.ARM_SHARE.collect()] == [[]]


# --- shadow ----------------------------------------------------------------------------------------------


def wait_for(check):
    waiting = threading.Event()
    for _ in range(1000):
        if check():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not happen within 10 s")


def test_a_shadow_ranks_beside_and_is_shown_to_nobody(two):
    begin(two, "shadow", shadow=1.0)
    with opened(two) as engine:
        [body] = engine.ask(["anna"])
        assert (body.model.version, body.experiment) == ("v1", None)
        wait_for(lambda: engine.live.describe()["shadow"]["overlap_at_10"] is not None)
        assert ("v2", 1) in engine.batches
        told = engine.live.describe()["shadow"]
        assert (told["version"], told["rankings"], told["errors"], told["overlap_at_10"]) == ("v2", 1, 0, 0.0)
        engine.broken.add("v2")
        engine.ask(["anna"])
        wait_for(lambda: engine.live.describe()["shadow"]["errors"] == 1)


def test_a_shadow_that_is_busy_holds_nobody_up(two):
    begin(two, "shadow", shadow=1.0)
    go = threading.Event()
    with opened(two) as engine:
        engine.live.stop()
        engine.live._follow_shadow(engine.live.serving.shadow)
        rank = engine.rank
        engine.live._shadow._rank = lambda snapshot, asks: go.wait(10) and rank(snapshot, asks)
        for _ in range(10):
            engine.ask(["anna"])
        told = engine.live.describe()["shadow"]
        assert told["dropped"] >= 7  # two wait, one is on its way
        go.set()
        wait_for(lambda: engine.live.describe()["shadow"]["rankings"] == 10 - told["dropped"])


# --- canary: the rule ------------------------------------------------------------------------------------


def tally(requests=100, errors=0, ms=1.0, together=1):
    found = Tally()
    for _ in range(errors):
        found.fail()
    for _ in range(requests - errors):
        found.add(together, ms / 1000)
    return found


def figures(canary=None, control=None, failed=None):
    found = Figures()
    found.canary, found.control, found.failed = canary or tally(0), control or tally(1000), failed
    return found


TRIAL = Rollout(settled="v1", served=("v0", "v1"), candidate="v2", stage=0, share=0.1, since=1000)
LAST = TRIAL.model_copy(update={"stage": 1, "share": 0.5})


@pytest.mark.parametrize(
    ("rollout", "current", "figures_", "at", "action", "settled", "candidate", "said"),
    [
        (Rollout(), None, None, 0, "wait", None, None, ""),
        (Rollout(), "v1", None, 0, "settle", "v1", None, "first version"),
        (Rollout(settled="v1"), "v1", None, 0, "wait", "v1", None, ""),
        (Rollout(settled="v1"), "v2", None, 0, "begin", "v1", "v2", "v2 goes to 10% of users"),
        (
            Rollout(settled="v1", served=("v0", "v1")),
            "v0",
            None,
            0,
            "settle",
            "v0",
            None,
            "has served before",
        ),
        (TRIAL, "v2", figures(tally(1000)), 1059, "wait", "v1", "v2", ""),
        (TRIAL, "v2", figures(tally(19)), 1100, "wait", "v1", "v2", ""),
        (TRIAL, "v2", figures(tally(20)), 1060, "advance", "v1", "v2", "goes to 50%"),
        (TRIAL, "v2", figures(tally(3)), 1600, "advance", "v1", "v2", "fewer than 20"),
        (TRIAL, "v3", figures(tally(20)), 1060, "advance", "v1", "v2", "goes to 50%"),
        (TRIAL, "v1", figures(tally(5)), 1001, "settle", "v1", None, "called off"),
        (TRIAL, "v0", figures(tally(5)), 1001, "settle", "v0", None, "has served before"),
        (LAST, "v2", figures(tally(20)), 1060, "settle", "v2", None, "goes to everybody"),
        (TRIAL, "v2", figures(tally(5, errors=5)), 1001, "roll_back", "v1", None, "5 of 5 rankings failed"),
        (TRIAL, "v2", figures(tally(20, errors=1)), 1001, "wait", "v1", "v2", ""),
        (TRIAL, "v2", figures(tally(20, errors=10), tally(1000, errors=500)), 1001, "wait", "v1", "v2", ""),
        (LAST, "v2", figures(tally(200, ms=30)), 1001, "roll_back", "v1", None, "took longer than 99% do"),
        (TRIAL, "v2", figures(tally(200, ms=1.9)), 1001, "wait", "v1", "v2", ""),  # within the slack
        (TRIAL, "v2", figures(tally(200, ms=9, together=8)), 1001, "wait", "v1", "v2", ""),  # nothing like it
        (
            TRIAL,
            "v3",
            figures(failed="checksum"),
            1001,
            "roll_back",
            "v1",
            None,
            "cannot be loaded: checksum",
        ),
    ],
)
def test_a_canary_goes_on_waits_or_is_taken_back(
    rollout, current, figures_, at, action, settled, candidate, said
):
    done = step(rollout, current, figures_, CANARY, at)
    assert (done.action, done.rollout.settled, done.rollout.candidate) == (action, settled, candidate)
    assert said in done.rollout.said
    if action in ("begin", "advance"):
        assert done.rollout.since == at
        assert done.rollout.share == CANARY.shares[done.rollout.stage]
    if action in ("settle", "roll_back"):
        assert done.rollout.served[-1] == settled
        assert done.rollout.plan() is None


def test_looking_again_and_again_raises_few_false_alarms_and_finds_what_is_worse():
    rng = np.random.default_rng(0)

    def alarmed(rate):
        found = np.cumsum(rng.random(1000) < rate)
        return any(exceeds(int(k), n, 0.05, 0.05) for n, k in enumerate(found, 1))

    assert sum(alarmed(0.05) for _ in range(300)) <= 300 * 0.075  # 0.05, and what 300 runs vary by
    assert sum(alarmed(0.15) for _ in range(100)) >= 95


def test_a_rate_of_nothing_is_exceeded_by_a_few():
    assert not exceeds(0, 100, 0.0, 0.001)
    assert exceeds(2, 100, 0.0, 0.001)


# --- canary: replicas, supervisor and registry together --------------------------------------------------


class Clock:
    now = 10_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def canary(trained):
    """A world where `v1` has settled, its registry, a watch over it, and the clock of that."""
    registry, clock = Registry(trained.data_dir / "models"), Clock()
    watch = CanaryWatch(registry, PATIENT, clock)
    watch.look()
    trained.train("v2", seed=1)
    return trained, registry, watch, clock


def test_a_promotion_reaches_all_users_stage_by_stage(canary):
    world, registry, watch, clock = canary
    with opened(world) as engine, opened(world) as replica:
        assert set(engine.versions()) == {"v1"}  # nobody gets it before its trial has begun
        reached = []
        for _ in range(2):
            watch.look()
            for one in (engine, replica):
                one.refresher.refresh()
            users = [
                user
                for user, version in zip(USERS, engine.versions(USERS[:400]), strict=False)
                if version == "v2"
            ]
            reached.append(set(users))
            replica.versions()
            for one in (engine, replica):
                one.live.report()
            clock.now += 61
        assert watch.status()["replicas"] == 2
        assert len(reached[0]) == pytest.approx(40, abs=20)
        assert reached[0] < reached[1]  # who had it keeps it
        watch.look()
        engine.refresher.refresh()
        assert set(engine.versions()) == {"v2"}
        assert registry.current() == "v2"
        assert watch.status()["settled"] == "v2"
        assert engine.published[-1].identity[0] == "v2"
        registry.promote("v1", "by hand")
        watch.look()
        engine.refresher.refresh()
        assert set(engine.versions()) == {"v1"}  # back at once: it has proved itself


def test_a_version_that_fails_its_users_is_taken_back_and_not_tried_again(canary):
    world, registry, watch, clock = canary
    with opened(world) as engine:
        watch.look()
        engine.refresher.refresh()
        engine.broken.add("v2")
        assert set(engine.versions()) == {"v1"}  # no request fails
        engine.live.report()
        watch.look()
        engine.refresher.refresh()
        assert registry.current() == "v1"
        info = registry.versions()[0]
        assert (info.version, info.status) == ("v2", "rolled_back")
        assert "rankings failed" in info.reason
        for _ in range(3):
            clock.now += 1000
            watch.look()
            assert watch.status()["candidate"] is None
        assert not list((world.data_dir / "models" / ".replicas").glob("*.tmp"))


def test_a_version_that_no_replica_can_load_is_taken_back_after_a_second_try(canary):
    world, registry, watch, _ = canary
    weights = world.data_dir / "models" / "v2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with opened(world) as engine:
        watch.look()
        engine.refresher.refresh()
        engine.live.report()
        watch.look()
        assert watch.status()["candidate"] == "v2"
        engine.refresher.refresh()
        engine.live.report()
        watch.look()
        assert registry.current() == "v1"
        assert "cannot be loaded" in registry.versions()[0].reason


def test_a_new_supervisor_goes_on_where_the_old_one_ended(canary):
    _, registry, watch, clock = canary
    watch.look()
    again = CanaryWatch(registry, PATIENT, clock)
    again.look()
    assert again.status()["candidate"] == "v2"
    assert again.status() == watch.status()


def test_switched_off_the_current_version_serves_and_nothing_old_is_kept(canary):
    world, registry, _, clock = canary
    with opened(world, enabled=False) as engine:
        assert set(engine.versions()) == {"v2"}
    off = CanaryWatch(registry, CanarySettings(), clock)
    off.look()
    assert off.status() is None
    assert registry.note("rollout") is None


def test_a_damaged_rollout_is_told_and_everybody_gets_what_is_current(canary):
    world, registry, watch, _ = canary
    (registry.models_dir / "rollout.json").write_text('{"settled": 3}')
    watch.look()
    assert "rollout" in watch.problem.lower()
    with opened(world) as engine:
        assert set(engine.versions()) == {"v2"}
        assert "canary" in engine.live.describe()["off"]


def test_counts_of_replicas_are_summed_and_those_of_another_trial_are_not(tmp_path):
    for replica, trial in (("a", "now"), ("b", "now"), ("c", "before")):
        reporter = Reporter(tmp_path, replica)
        reporter.follow(trial, None)
        reporter.add(True, 3, 0.002)
        reporter.add(False, 50, 0.02)
        reporter.fail(True)
        reporter.write()
    found = gather(tmp_path, "now")
    assert (found.replicas, found.canary.requests, found.canary.errors, found.control.requests) == (
        2,
        8,
        2,
        100,
    )
    assert found.control.p99_ms() == pytest.approx(20, rel=0.1)
    assert [path.stem for path in sorted((tmp_path / ".replicas").iterdir())] == ["a", "b"]


def test_a_slow_share_is_seen_where_the_mean_is_not():
    control, slow = tally(1000, ms=2), tally(950, ms=2)
    for _ in range(50):
        slow.add(1, 0.05)
    assert "took longer" in what_is_wrong(figures(slow, control), CANARY)
    assert what_is_wrong(figures(tally(1000, ms=2), control), CANARY) is None
