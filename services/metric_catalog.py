"""Every metric of Headrace, for dashboards, alerts, the documentation and tests: read off the definitions."""

from dataclasses import dataclass
from types import ModuleType
from typing import Literal, cast

from prometheus_client.metrics import MetricWrapperBase

import services.metrics
import serving.experiments.metrics
import serving.metrics
import streaming.metrics
import training.telemetry

_DEFINED_IN: tuple[ModuleType, ...] = (
    streaming.metrics,
    training.telemetry,
    serving.metrics,
    serving.experiments.metrics,
    services.metrics,
)


Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Family:
    """One metric.

    Attributes:
        name: as exposed; counters end in `_total`.
        buckets: upper bounds of a histogram but for the last, which is infinite; empty otherwise.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


def families() -> tuple[Family, ...]:
    """All of them, package by package, in the order of their definitions."""
    return tuple(
        _family(metric)
        for module in _DEFINED_IN
        for metric in vars(module).values()
        if isinstance(metric, MetricWrapperBase)
    )


def _family(metric: MetricWrapperBase) -> Family:
    [described] = metric.describe()
    name = described.name + ("_total" if described.type == "counter" else "")
    buckets = tuple(getattr(metric, "_upper_bounds", ()))[:-1]
    return Family(
        name, cast(Kind, described.type), described.documentation, tuple(metric._labelnames), buckets
    )
