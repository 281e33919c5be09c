"""PromQL over the metrics of the catalogue: a name, kind or label that it lacks is refused where it is written.

Every query is limited to the scrape jobs chosen on the dashboard and adds up what the processes of an installation
tell, so it means the same on one machine and on ten.
"""

import functools
from typing import Literal

from services.metric_catalog import Family, families

_RATE = "$__rate_interval"  # Grafana: wide enough for the scrape interval, whatever the zoom


class QueryError(Exception):
    """A query asks for what the catalogue does not have; the message says what it has."""


@functools.cache
def catalogue() -> dict[str, Family]:
    """The families by their exposed names."""
    return {family.name: family for family in families()}


def rate(name: str, *by: str, **where: str) -> str:
    """Per second, of a counter.

    Args:
        name: as exposed, with `_total`. by: labels that are kept apart. where: label="value", "!value" or "~regex".
    """
    _check(name, "counter", by, where)
    return f"sum{_by(by)} (rate({name}{_selector(where)}[{_RATE}]))"


def increase(name: str, *by: str, **where: str) -> str:
    """How much a counter grew over the time that the dashboard shows."""
    _check(name, "counter", by, where)
    return f"sum{_by(by)} (increase({name}{_selector(where)}[$__range]))"


def value(name: str, *by: str, how: Literal["sum", "max", "min"] = "sum", **where: str) -> str:
    """A gauge, put together over processes as `how` says."""
    _check(name, "gauge", by, where)
    return f"{how}{_by(by)} ({name}{_selector(where)})"


def quantile(share: float, name: str, *by: str, **where: str) -> str:
    """The value that a share of a histogram's observations stays below."""
    _check(name, "histogram", by, where)
    kept = _by(("le", *by))
    return f"histogram_quantile({share:g}, sum{kept} (rate({name}_bucket{_selector(where)}[{_RATE}])))"


def observations(name: str, *by: str, **where: str) -> str:
    """Observations of a histogram per second."""
    _check(name, "histogram", by, where)
    return f"sum{_by(by)} (rate({name}_count{_selector(where)}[{_RATE}]))"


def buckets(name: str) -> str:
    """A histogram's buckets, for a heatmap."""
    _check(name, "histogram", (), {})
    return f"sum by (le) (increase({name}_bucket{_selector({})}[{_RATE}]))"


def ratio(part: str, whole: str) -> str:
    """One query's share of another: 0 where only the other has series, nothing where the other is 0."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def _check(name: str, kind: str, by: tuple[str, ...], where: dict[str, str]) -> None:
    family = catalogue().get(name)
    if family is None:
        raise QueryError(
            f"{name} is not in the catalogue of metrics; it has {', '.join(sorted(catalogue()))}"
        )
    if family.kind != kind:
        raise QueryError(f"{name} is a {family.kind}; the query is one for a {kind}")
    if unknown := sorted({*by, *where} - set(family.labels)):
        raise QueryError(f"{name} has the labels {family.labels}, not {', '.join(unknown)}")


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _selector(where: dict[str, str]) -> str:
    matchers = ['job=~"$job"']
    for label, wanted in where.items():
        sign = {"~": "=~", "!": "!="}.get(wanted[0], "=")
        matchers.append(f'{label}{sign}"{wanted.lstrip("~!")}"')
    return "{" + ",".join(matchers) + "}"
