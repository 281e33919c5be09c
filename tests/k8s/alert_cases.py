"""For each alert what makes it fire, and what comes close and must not: changes of an installation that is well.

Series are written as promtool reads them: a value a minute, `start+step x repetitions`. What is asked is asked at the
end, so times count back from there.
"""

from dataclasses import dataclass

MINUTES = 200  # the longest look back of a rule is three hours

Series = dict[str, str]

MODEL = 'headrace_model_info{version="v7",kind="trained"}'
UP = 'up{instance="10.0.0.1:9464"}'
LAG = 'headrace_ingest_lag_records{topic="events",partition="0"}'
DOWN = 'headrace_actors{kind="shard",state="down"}'
FAILED = 'headrace_learner_phase{phase="failed"}'
TRAINED = 'headrace_training_windows_total{outcome="trained"}'
ROBUSTNESS = 'headrace_model_robustness{measure="ndcg_at_10_pgd"}'
IMPRESSIONS = 'headrace_impressions_lost_total{why="broker"}'
SNAPSHOTS = 'headrace_snapshots_total{outcome="failed"}'


def flat(value: float, minutes: int = MINUTES + 1) -> str:
    """The same value all the time."""
    return f"{value}+0x{minutes - 1}"


def ramp(per_minute: float) -> str:
    """A counter from 0, or a gauge that grows."""
    return f"0+{per_minute}x{MINUTES}"


def then(first: float, second: float, last: int) -> str:
    """One value, and another one for the last minutes."""
    return f"{flat(first, MINUTES + 1 - last)} {flat(second, last)}"


def growing(per_minute: float, last: int) -> str:
    """A counter that stands at 0 and grows for the last minutes."""
    return f"{flat(0, MINUTES + 1 - last)} {per_minute}+{per_minute}x{last - 1}"


def gone(value: float, since: int, back: int = 0) -> str:
    """A series that is not told any more since some minutes before the end, or that is told again since then."""
    return f"{flat(value, MINUTES + 1 - since)} _x{since - back} {flat(value, back) if back else ''}".rstrip()


def histogram(name: str, labels: str, per_minute: dict[str, float]) -> Series:
    """Buckets by their upper bound, cumulative, with the count."""
    made = {f'{name}_bucket{{{labels}le="{bound}"}}': ramp(n) for bound, n in per_minute.items()}
    return made | {f"{name}_count{{{labels.rstrip(',')}}}": ramp(per_minute["+Inf"])}


def requests(fast: float, slow: float) -> Series:
    """Rankings a minute, under 0.01 s and between 0.1 and 1 s."""
    labels = 'route="/v1/recommendations/{user_id}",method="GET",status="200",'
    bounds = {"0.01": fast, "0.1": fast, "1": fast + slow, "+Inf": fast + slow}
    return histogram("headrace_request_duration_seconds", labels, bounds)


def failures(per_minute: float) -> Series:
    """Requests that fail, beside some 600 that do not."""
    labels = 'route="/v1/events",method="POST",status="503"'
    return {f"headrace_request_duration_seconds_count{{{labels}}}": ramp(per_minute)}


def freshness(fresh: float, old: float) -> Series:
    """Events a minute, applied within 0.1 s, and after 10 to 60 s."""
    bounds = {"0.1": fresh, "10": fresh, "60": fresh + old, "+Inf": fresh + old}
    return histogram("headrace_freshness_seconds", "", bounds)


def events(**outcomes: float) -> Series:
    """Events a minute by outcome."""
    return {f'headrace_events_total{{outcome="{name}"}}': ramp(n) for name, n in outcomes.items()}


def verdicts(promoted: str, rejected: str) -> Series:
    """Series of the gate's verdicts."""
    return {
        'headrace_gate_verdicts_total{verdict="promoted",reason="no_worse"}': promoted,
        'headrace_gate_verdicts_total{verdict="rejected",reason="ndcg"}': rejected,
    }


def screened(trusted: float, quarantined: float) -> Series:
    """Users screened a minute."""
    return {
        'headrace_screened_users_total{verdict="trusted"}': ramp(trusted),
        'headrace_screened_users_total{verdict="quarantined"}': ramp(quarantined),
    }


WELL: Series = {
    UP: flat(1),
    "headrace_exporter_processes{}": flat(12),
    "headrace_items_servable{}": flat(1000),
    MODEL: flat(1),
    **requests(600, 0),
    "headrace_model_age_seconds{}": flat(3600),
    "headrace_model_load_failures_total{}": flat(0),
    "headrace_refresh_failures_total{}": flat(0),
    "headrace_experiments_off{}": flat(0),
    IMPRESSIONS: flat(0),
    LAG: flat(20),
    "headrace_ingest_lost_records_total{}": flat(0),
    "headrace_ingest_rewinds_total{}": flat(0),
    **freshness(6000, 0),
    **events(applied=6000, duplicate=10, late=5, dead_lettered=1),
    'headrace_actors{kind="shard",state="up"}': flat(2),
    DOWN: flat(0),
    "headrace_pipeline_problems{}": flat(0),
    "headrace_watermark_delay_seconds{}": flat(65),
    "headrace_windows_closed_total{}": ramp(1),
    "headrace_snapshot_age_seconds{}": flat(60),
    'headrace_snapshots_total{outcome="taken"}': ramp(16),
    SNAPSHOTS: flat(0),
    "headrace_negative_skew_events_total{}": ramp(6),
    'headrace_learner_phase{phase="training"}': flat(1),
    FAILED: flat(0),
    TRAINED: ramp(0.1),
    **verdicts(promoted=ramp(0.1), rejected=ramp(0.1)),
    ROBUSTNESS: flat(0.2),
    **screened(1000, 1),
}
# nobody sends or asks anything: counters stand, and event time with them
IDLE: Series = {
    **{name: flat(7) for name in WELL if "_total{" in name or "_bucket{" in name or "_count{" in name},
    "headrace_watermark_delay_seconds{}": ramp(60),
}


@dataclass(frozen=True)
class Case:
    """Changes of `WELL` under which an alert fires, and under which it must not."""

    fires: Series
    silent: Series


CASES = {
    "HeadraceApiDown": Case(
        fires={MODEL: gone(1, since=12)},
        silent={MODEL: gone(1, since=19, back=12)},  # a replica was replaced
    ),
    "HeadraceErrors": Case(fires=failures(20), silent=failures(10)),
    "HeadraceSlow": Case(fires=requests(600, 12), silent=requests(600, 5)),
    "HeadraceModelOld": Case(
        fires={"headrace_model_age_seconds{}": flat(90_000)},
        silent={"headrace_model_age_seconds{}": flat(86_000)},
    ),
    "HeadraceModelDoesNotLoad": Case(
        fires={"headrace_model_load_failures_total{}": growing(1, last=8)},
        silent={"headrace_model_load_failures_total{}": then(0, 1, last=50)},  # long over
    ),
    "HeadraceRefreshFails": Case(
        fires={"headrace_refresh_failures_total{}": growing(1, last=12)},
        silent={"headrace_refresh_failures_total{}": then(0, 2, last=10)},
    ),
    "HeadraceNothingToRecommend": Case(
        fires={"headrace_items_servable{}": flat(0)},
        silent={"headrace_items_servable{}": then(1000, 0, last=8)},
    ),
    "HeadraceExperimentOff": Case(
        fires={"headrace_experiments_off{}": flat(1)},
        silent={"headrace_experiments_off{}": then(0, 1, last=10)},  # its bundle is being loaded
    ),
    "HeadraceImpressionsLost": Case(
        fires={IMPRESSIONS: growing(5, last=8)}, silent={IMPRESSIONS: then(0, 5, last=30)}
    ),
    "HeadraceLagGrows": Case(
        fires={LAG: ramp(2000)},
        silent={LAG: f"1900000-9000x{MINUTES}"},  # a backlog that is being worked off
    ),
    "HeadraceStale": Case(fires=freshness(2000, 4000), silent=freshness(4000, 2000)),
    "HeadraceDeadLetters": Case(
        fires=events(applied=6000, dead_lettered=100), silent=events(applied=6000, dead_lettered=50)
    ),
    "HeadraceLostRecords": Case(
        fires={"headrace_ingest_lost_records_total{}": then(0, 500, last=10)},
        silent={"headrace_ingest_lost_records_total{}": flat(500)},  # long ago
    ),
    "HeadraceIngestRewinds": Case(
        fires={"headrace_ingest_rewinds_total{}": ramp(1)},
        silent={"headrace_ingest_rewinds_total{}": then(0, 2, last=10)},  # one restarted shard, two ingestors
    ),
    "HeadraceActorsDown": Case(
        fires={DOWN: then(0, 1, last=10)},
        silent={DOWN: then(0, 1, last=2)},  # Ray brings it back
    ),
    "HeadracePipelineProblem": Case(
        fires={"headrace_pipeline_problems{}": flat(1)},
        silent={"headrace_pipeline_problems{}": then(0, 1, last=5)},
    ),
    "HeadraceWatermarkStuck": Case(
        fires={"headrace_watermark_delay_seconds{}": ramp(60)},
        silent=IDLE,
    ),
    "HeadraceWindowsDoNotClose": Case(
        fires={"headrace_windows_closed_total{}": flat(16)},
        silent={"headrace_windows_closed_total{}": then(16, 32, last=50)},
    ),
    "HeadraceSnapshotsOld": Case(
        fires={"headrace_snapshot_age_seconds{}": ramp(60)},
        silent={"headrace_snapshot_age_seconds{}": flat(1700)},
    ),
    "HeadraceSnapshotsFail": Case(fires={SNAPSHOTS: ramp(1)}, silent={SNAPSHOTS: then(0, 1, last=10)}),
    "HeadraceClockSkew": Case(
        fires={"headrace_negative_skew_events_total{}": ramp(900)},
        silent={"headrace_negative_skew_events_total{}": ramp(300)},
    ),
    "HeadraceLearnerFailed": Case(
        fires={FAILED: f"{flat(0, MINUTES - 29)} {'1 0 0 ' * 10}"},  # again and again
        silent={FAILED: f"{flat(0, MINUTES - 9)} 1 {flat(0, 9)}"},  # the next one goes on
    ),
    "HeadraceLearnerStuck": Case(fires={TRAINED: flat(5)}, silent={TRAINED: then(5, 6, last=50)}),
    "HeadraceGateRejectsAll": Case(
        fires=verdicts(promoted=flat(3), rejected=ramp(0.1)),
        silent=verdicts(promoted=then(3, 4, last=100), rejected=ramp(0.1)),
    ),
    "HeadraceRobustnessFell": Case(
        fires={ROBUSTNESS: then(0.2, 0.15, last=45)},
        silent={
            ROBUSTNESS: f"{flat(0.2, 101)} {flat(0.17, 50)} {flat(0, 50)}"
        },  # then one without the figure
    ),
    "HeadraceQuarantineSurge": Case(fires=screened(1000, 30), silent=screened(1000, 10)),
    "HeadraceExporterGone": Case(
        fires={UP: then(1, 0, last=10)},
        silent={UP: then(1, 0, last=3)},  # a pod that starts
    ),
}
