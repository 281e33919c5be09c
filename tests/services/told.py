"""A process that tells every metric of the catalogue, until its standard input is closed."""

import itertools
import sys
import threading

from prometheus_client import Counter, Gauge
from prometheus_client.metrics import MetricWrapperBase

from services.metric_catalog import _DEFINED_IN

# values that dashboards and alerts ask for, and one that they do not
LABELS = {
    "outcome": ("applied", "dead_lettered", "hit", "trained", "other"),
    "verdict": ("promoted", "quarantined", "other"),
    "measure": ("ndcg_at_10", "ndcg_at_10_pgd"),
    "status": ("200", "503"),
    "route": ("/v1/recommendations/{user_id}", "/v1/events"),
    "state": ("up", "down"),
}


def series() -> list[MetricWrapperBase]:
    """Every metric with some values of its labels."""
    found = []
    for module in _DEFINED_IN:
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                names = metric._labelnames
                values = itertools.product(*(LABELS.get(name, ("some",)) for name in names))
                found += [metric.labels(*chosen) for chosen in values] if names else [metric]
    return found


def tell(metric: MetricWrapperBase) -> None:
    if isinstance(metric, Counter):
        metric.inc()
    elif isinstance(metric, Gauge):
        metric.set(1)
    else:
        metric.observe(0.01)


if __name__ == "__main__":
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    every = series()
    while not ended.wait(0.2):
        for one in every:
            tell(one)
