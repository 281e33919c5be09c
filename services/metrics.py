"""The metrics of the whole, each defined once: actors, problems, the model of the registry, the exporter itself."""

from streaming.meters import Counter, Gauge

ACTORS = Gauge(
    "headrace_actors",
    "Actors of the pipeline that answer (up) or do not (down)",
    ("kind", "state"),
    multiprocess_mode="livemostrecent",
)
PROBLEMS = Gauge(
    "headrace_pipeline_problems",
    "Problems that `GET /v1/stats` names now",
    multiprocess_mode="livemostrecent",
)
LEARNER_PHASE = Gauge(
    "headrace_learner_phase",
    "1 for what the learner does now",
    ("phase",),
    multiprocess_mode="livemostrecent",
)
QUALITY = Gauge(
    "headrace_model_quality",
    "What the gate measured of the registry's current model on windows that it had not seen",
    ("measure",),
    multiprocess_mode="livemostrecent",
)
ROBUSTNESS = Gauge(
    "headrace_model_robustness",
    "The same under attack: ranking while histories are moved, and what attacks gain (exposure_lift)",
    ("measure",),
    multiprocess_mode="livemostrecent",
)
DECISIONS = Counter(
    "headrace_trust_decisions", "People's decisions about users, since the supervisor started", ("decision",)
)

EXPORTER_PROCESSES = Gauge(
    "headrace_exporter_processes",
    "Processes of this node whose metrics are shown",
    multiprocess_mode="livemostrecent",
)
EXPORTER_FOLDED = Counter(
    "headrace_exporter_folded", "Files of ended processes that went into the exporter's archive"
)
