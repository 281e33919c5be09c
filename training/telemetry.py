"""The metrics of training, each defined once. Rank 0 fills them in; labels are names that the code has."""

from collections import deque

from streaming.meters import Counter, Gauge, Histogram

# A step of a small model on one core takes ten milliseconds, one of a large model with a text tower seconds.
_STEP = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

STEP_SECONDS = Histogram(
    "headrace_training_step_duration_seconds", "Duration of one optimiser step", buckets=_STEP
)
LOSS = Gauge(
    "headrace_training_loss",
    "Loss of the newest step; part: clean, or adversarial where that is trained",
    ("part",),
    multiprocess_mode="livemostrecent",
)
ROWS_PER_SECOND = Gauge(
    "headrace_training_rows_per_second",
    "Histories trained on per second, over the newest steps",
    multiprocess_mode="livemostrecent",
)
WINDOWS = Counter(
    "headrace_training_windows",
    "Windows the learner has done with; skipped: nothing in them could be learned from",
    ("outcome",),
)
VERDICTS = Counter(
    "headrace_gate_verdicts",
    "Candidates by the gate's verdict and what decided it",
    ("verdict", "reason"),
)
QUARANTINED = Gauge(
    "headrace_quarantined_users",
    "Users of the newest screened window who are held in quarantine",
    multiprocess_mode="livemostrecent",
)
SCREENED = Counter("headrace_screened_users", "Users of screened windows, by verdict", ("verdict",))

CAUSES = {  # what may decide a verdict, see `training.gate.Cause`
    "promoted": ("first_model", "no_worse"),
    "rejected": (
        "not_finite",
        "popularity",
        "ndcg",
        "attacked_ndcg",
        "pushed_item",
        "exposure",
        "overlap",
    ),
}


def tell_zeros() -> None:
    """Show the counters before anything is counted: what appears with its first count has no growth to see."""
    for outcome in ("trained", "skipped"):
        WINDOWS.labels(outcome)
    for verdict in ("trusted", "doubted", "quarantined"):
        SCREENED.labels(verdict)
    for verdict, causes in CAUSES.items():
        for cause in causes:
            VERDICTS.labels(verdict, cause)


_NEWEST_STEPS = 20  # over which the speed is told


class StepMeter:
    """What one round tells after each optimiser step."""

    def __init__(self) -> None:
        self._newest: deque[tuple[float, int]] = deque(maxlen=_NEWEST_STEPS)

    def step(self, seconds: float, rows: int, clean: float, adversarial: float) -> None:
        """A step is done.

        Args:
            seconds: it took. rows: histories in its global batch. clean, adversarial: losses; 0: there is none.
        """
        STEP_SECONDS.observe(seconds)
        LOSS.labels("clean").set(clean)
        if adversarial:
            LOSS.labels("adversarial").set(adversarial)
        self._newest.append((seconds, rows))
        took, done = map(sum, zip(*self._newest, strict=True))
        ROWS_PER_SECOND.set(done / took)
