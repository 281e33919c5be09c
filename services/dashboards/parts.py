"""Panels that several pages draw alike."""

from typing import Any

from services.dashboards.panels import Line, Panel
from services.dashboards.queries import observations, quantile, ratio

REQUESTS = "headrace_request_duration_seconds"


def one(title: str, expr: str, legend: str = "", unit: str = "short", **more: Any) -> Panel:
    """A panel of a single query."""
    return Panel(title, (Line(expr, legend),), unit, **more)


def spread(title: str, histogram: str, unit: str = "s", **more: Any) -> Panel:
    """Where half of a histogram's observations lie, and all but a hundredth."""
    lines = (Line(quantile(0.5, histogram), "half of them"), Line(quantile(0.99, histogram), "99 %"))
    return Panel(title, lines, unit, **more)


def freshness(**more: Any) -> Panel:
    """How late events count."""
    return spread(
        "Age of events when they count", "headrace_freshness_seconds", warn=10, alert="HeadraceStale", **more
    )


def failing() -> Panel:
    """The share of requests that fail."""
    share = ratio(observations(REQUESTS, status="~5.."), observations(REQUESTS))
    return one("Requests that fail", share, "share", "percentunit", warn=0.02, alert="HeadraceErrors")
