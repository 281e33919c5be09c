"""The first page: is it well, and if not, which page is next."""

from typing import Any

from services.dashboards.panels import Dashboard, Panel, Row
from services.dashboards.parts import REQUESTS, failing, freshness, one, spread
from services.dashboards.queries import increase, observations, quantile, rate, value

_FIRING = 'ALERTS{alertname=~"Headrace.*",alertstate="firing"}'


def _figure(title: str, expr: str, unit: str = "short", legend: str = "", **more: Any) -> Panel:
    """One number, six beside each other."""
    return one(title, expr, legend, unit, shape="stat", width=4, height=4, **more)


def overview() -> Dashboard:
    """Health, the stream, the model and the requests, a few figures each."""
    return Dashboard(
        "overview",
        "Overview",
        "Is Headrace well? The other pages show streaming, training and serving in detail.",
        (
            Row("Health", _health()),
            Row(
                "Stream",
                (
                    one("Events", rate("headrace_events_total", "outcome"), "{{outcome}}", "eps"),
                    freshness(),
                    one("Lag", value("headrace_ingest_lag_records", "topic"), "{{topic}}"),
                ),
            ),
            Row("Model", _model()),
            Row(
                "Requests",
                (
                    one("Requests", observations(REQUESTS, "route"), "{{route}}", "reqps"),
                    failing(),
                    spread("Duration of requests", REQUESTS),
                ),
            ),
        ),
    )


def _health() -> tuple[Panel, ...]:
    lag, problems = value("headrace_ingest_lag_records"), value("headrace_pipeline_problems", how="max")
    rankings = quantile(0.99, REQUESTS, route="~/v1/recommendations.*")
    return (
        _figure(
            "Alerts that fire",
            f"count({_FIRING}) or vector(0)",
            warn=1,
            about="Of all installations that this Prometheus watches.",
        ),
        _figure("Actors down", value("headrace_actors", state="down"), warn=1, alert="HeadraceActorsDown"),
        _figure(
            "Problems named",
            problems,
            warn=1,
            alert="HeadracePipelineProblem",
            about="`GET /v1/stats` says which.",
        ),
        _figure("Records behind", lag, warn=50_000, alert="HeadraceLagGrows"),
        _figure(
            "Median age of an event when it counts",
            quantile(0.5, "headrace_freshness_seconds"),
            "s",
            warn=10,
            alert="HeadraceStale",
        ),
        _figure("Slowest hundredth of the rankings", rankings, "s", warn=0.1, alert="HeadraceSlow"),
        one(
            "Firing",
            _FIRING,
            about="The section of that name in docs/operations.md says what to do.",
            shape="table",
            width=24,
            height=5,
        ),
    )


def _model() -> tuple[Panel, ...]:
    serving = value("headrace_model_info", "version", "kind", how="max") + " == 1"
    age = value("headrace_model_age_seconds", how="max")
    attacked = value("headrace_model_robustness", how="max", measure="ndcg_at_10_pgd")
    return (
        _figure(
            "Answers now",
            serving,
            "none",
            "{{version}}",
            named=True,
            about="Several while replicas swap, and with canaries.",
        ),
        _figure("Its age", age, "s", warn=86_400, alert="HeadraceModelOld"),
        _figure("NDCG@10", value("headrace_model_quality", how="max", measure="ndcg_at_10")),
        _figure("NDCG@10 under attack", attacked, alert="HeadraceRobustnessFell"),
        _figure("Candidates promoted", increase("headrace_gate_verdicts_total", verdict="promoted")),
        _figure("Users in quarantine", value("headrace_quarantined_users", how="max")),
    )
