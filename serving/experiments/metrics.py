"""Metrics of experiments and impressions; labels are names of plans, which are few.

Where an experiment ends its share goes at once. What was counted of its arms goes too or, where processes keep their
metrics in files, stays.
"""

from streaming.meters import Counter, Gauge, Histogram, folder, present, retire

# as headrace_stage_duration_seconds, and up to where a broken model would stand
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # ten places: every value there is

ARM_SHARE = Gauge(
    "headrace_experiment_share",
    "Share of users of an arm, now; of requests for a shadow",
    ("experiment", "arm"),
    multiprocess_mode="livemax",
)
ARM_RANKINGS = Counter("headrace_experiment_rankings", "Rankings asked of an arm", ("experiment", "arm"))
ARM_FAILURES = Counter(
    "headrace_experiment_failures",
    "Rankings of an arm that raised or gave no finite scores; the current model answered",
    ("experiment", "arm"),
)
ARM_SECONDS = Histogram(
    "headrace_experiment_duration_seconds",
    "Duration of rankings of an arm (what is ranked together counts once)",
    ("experiment", "arm"),
    buckets=_SECONDS,
)
EXPERIMENTS_OFF = Gauge(
    "headrace_experiments_off",
    "Plans that a replica cannot carry out, of the replica with the most; /v1/stats says why",
    multiprocess_mode="livemax",
)
SHADOW_OVERLAP = Histogram(
    "headrace_shadow_overlap", "Share of the ten items shown that the shadow shows too", buckets=_SHARES
)
SHADOW_SECONDS = Histogram(
    "headrace_shadow_duration_seconds", "Duration of a ranking by the shadow", buckets=_SECONDS
)
SHADOW_ERRORS = Counter("headrace_shadow_errors", "Rankings at which the shadow failed")
SHADOW_DROPPED = Counter("headrace_shadow_dropped", "Rankings left out because the shadow was busy")
IMPRESSIONS_WRITTEN = Counter("headrace_impressions_written", "Impressions that the broker has acknowledged")
IMPRESSIONS_LOST = Counter(
    "headrace_impressions_lost", "Impressions that were not written; why: queue_full or broker", ("why",)
)


def show_arms(shares: dict[tuple[str, str], float], off: int) -> None:
    """Make the metrics name the present arms only.

    Args:
        shares: by experiment and arm. off: plans that cannot be carried out.
    """
    counted = (ARM_RANKINGS, ARM_FAILURES, ARM_SECONDS)
    if folder() is None:
        for labels in _arms() - set(shares):
            for family in counted:
                retire(family, *labels)
    present(ARM_SHARE, shares)
    for labels in shares:
        for family in counted:
            family.labels(*labels)  # a zero that is told
    EXPERIMENTS_OFF.set(off)


def _arms() -> set[tuple[str, ...]]:
    """Experiment and arm of what is shown."""
    return {
        (sample.labels["experiment"], sample.labels["arm"])
        for metric in ARM_SHARE.collect()
        for sample in metric.samples
    }
