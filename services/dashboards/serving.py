"""Serving: requests, stages of a ranking, models, caches, experiments."""

from services.dashboards.panels import Dashboard, Line, Panel, Row
from services.dashboards.parts import REQUESTS, failing, one, spread
from services.dashboards.queries import buckets, observations, quantile, rate, ratio, value

_STAGES = "headrace_stage_duration_seconds"
_CACHE = "headrace_cache_requests_total"


def serving() -> Dashboard:
    """Requests, stages, model, experiments, impressions."""
    return Dashboard(
        "serving",
        "Serving",
        "What callers get: how much, how fast, from which model and which experiment.",
        (
            Row("Requests", _requests()),
            Row("Ranking", _ranking()),
            Row("Model", _model()),
            Row("Experiments", _experiments()),
        ),
    )


def _requests() -> tuple[Panel, ...]:
    routes, slowest = observations(REQUESTS, "route", "method"), quantile(0.99, REQUESTS, "route")
    return (
        one("By route", routes, "{{method}} {{route}}", "reqps"),
        one("By status", observations(REQUESTS, "status"), "{{status}}", "reqps"),
        failing(),
        one("Median by route", quantile(0.5, REQUESTS, "route"), "{{route}}", "s"),
        one("Slowest hundredth by route", slowest, "{{route}}", "s", warn=0.1, alert="HeadraceSlow"),
        one("All durations", buckets(REQUESTS), "{{le}}", "s", shape="heatmap"),
    )


def _ranking() -> tuple[Panel, ...]:
    hits = ratio(rate(_CACHE, "cache", outcome="hit"), rate(_CACHE, "cache"))
    return (
        one(
            "Stages, median",
            quantile(0.5, _STAGES, "stage"),
            "{{stage}}",
            "s",
            about="`retrieve` grows with the catalogue; all stages together with too few cores.",
            stacked=True,
        ),
        one("Stages, slowest hundredth", quantile(0.99, _STAGES, "stage"), "{{stage}}", "s"),
        one("Where rankings come from", rate("headrace_rankings_total", "source"), "{{source}}", "ops"),
        one("Share that caches answer", hits, "{{cache}}", "percentunit"),
        one("Events accepted over HTTP", rate("headrace_events_accepted_total"), "events", "eps"),
        one(
            "Items that can be recommended",
            value("headrace_items_servable", how="max"),
            "items",
            warn=1,
            low=True,
            alert="HeadraceNothingToRecommend",
        ),
    )


def _model() -> tuple[Panel, ...]:
    serving = value("headrace_model_info", "version", "kind", how="max") + " == 1"
    age = value("headrace_model_age_seconds", how="max")
    broken, stale = rate("headrace_model_load_failures_total"), rate("headrace_refresh_failures_total")
    return (
        one("Answers now", serving, "{{version}}", shape="state-timeline", width=12),
        one("Age", age, "oldest replica", "s", warn=86_400, alert="HeadraceModelOld", width=12),
        one("Swaps", rate("headrace_model_swaps_total"), "swaps", "ops"),
        one("Models that do not load", broken, "failures", "ops", alert="HeadraceModelDoesNotLoad"),
        one("Refreshes that fail", stale, "failures", "ops", alert="HeadraceRefreshFails"),
    )


def _experiments() -> tuple[Panel, ...]:
    arms, legend = ("experiment", "arm"), "{{experiment}}: {{arm}}"
    rankings = rate("headrace_experiment_rankings_total", *arms)
    failed = ratio(rate("headrace_experiment_failures_total", *arms), rankings)
    slowest = quantile(0.99, "headrace_experiment_duration_seconds", *arms)
    off = value("headrace_experiments_off", how="max")
    agreement = quantile(0.5, "headrace_shadow_overlap")
    missed = (
        Line(rate("headrace_shadow_errors_total"), "failed"),
        Line(rate("headrace_shadow_dropped_total"), "left out"),
    )
    impressions = (
        Line(rate("headrace_impressions_written_total"), "written"),
        Line(rate("headrace_impressions_lost_total", "why"), "lost: {{why}}"),
    )
    return (
        one("Share of users", value("headrace_experiment_share", *arms, how="max"), legend, "percentunit"),
        one("Rankings", rankings, legend, "ops"),
        one("Rankings that fail", failed, legend, "percentunit"),
        one("Slowest hundredth", slowest, legend, "s"),
        one("Plans not carried out", off, "plans", warn=1, alert="HeadraceExperimentOff"),
        one("Agreement of the shadow", agreement, "median share of items that it shows too", "percentunit"),
        spread("Duration of the shadow", "headrace_shadow_duration_seconds"),
        Panel("Rankings the shadow did not make", missed, "ops"),
        Panel("Impressions", impressions, "ops", alert="HeadraceImpressionsLost"),
    )
