"""Training and robustness: what the learner does, what the gate decides, how hard the model is to mislead."""

from services.dashboards.panels import Dashboard, Line, Panel, Row
from services.dashboards.parts import one, spread
from services.dashboards.queries import increase, observations, rate, ratio, value

_STEPS = "headrace_training_step_duration_seconds"
_SCREENED = "headrace_screened_users_total"


def training() -> Dashboard:
    """Learner, gate, robustness, trust."""
    return Dashboard(
        "training",
        "Training and robustness",
        "What is learned, what is promoted, and how hard it is to mislead.",
        (Row("Learner", _learner()), Row("Gate", _gate()), Row("Fake users", _trust())),
    )


def _learner() -> tuple[Panel, ...]:
    phase = value("headrace_learner_phase", "phase", how="max") + " == 1"
    windows = rate("headrace_training_windows_total", "outcome")
    throughput = (
        Line(value("headrace_training_rows_per_second"), "histories"),
        Line(observations(_STEPS), "steps"),
    )
    return (
        one("Phase", phase, "{{phase}}", shape="state-timeline", alert="HeadraceLearnerFailed", width=12),
        one("Windows", windows, "{{outcome}}", "ops", alert="HeadraceLearnerStuck", width=12),
        one("Loss", value("headrace_training_loss", "part", how="max"), "{{part}}"),
        spread("Duration of a step", _STEPS),
        Panel("Throughput", throughput, "ops"),
    )


def _gate() -> tuple[Panel, ...]:
    verdicts = increase("headrace_gate_verdicts_total", "verdict", "reason")
    return (
        one(
            "Verdicts over the time shown",
            verdicts,
            "{{verdict}}: {{reason}}",
            shape="stat",
            alert="HeadraceGateRejectsAll",
        ),
        one(
            "Quality of the model in service",
            value("headrace_model_quality", "measure", how="max"),
            "{{measure}}",
        ),
        one(
            "Robustness of the model in service",
            value("headrace_model_robustness", "measure", how="max"),
            "{{measure}}",
            alert="HeadraceRobustnessFell",
        ),
    )


def _trust() -> tuple[Panel, ...]:
    held = ratio(rate(_SCREENED, verdict="quarantined"), rate(_SCREENED))
    decisions = increase("headrace_trust_decisions_total", "decision")
    return (
        one("Screened users", rate(_SCREENED, "verdict"), "{{verdict}}", "ops"),
        one("Share held back", held, "share", "percentunit", warn=0.02, alert="HeadraceQuarantineSurge"),
        one("In quarantine", value("headrace_quarantined_users", how="max"), "users"),
        one("Decisions of people", decisions, "{{decision}}", shape="stat"),
    )
