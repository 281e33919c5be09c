"""The metrics of a serving replica, each defined once, and the rolling window behind `/v1/stats`.

`streaming.meters` says where they are kept: under Ray the exporter of the node adds up those of all replicas.
"""

import threading
from collections import deque

import numpy as np

from streaming.meters import MOMENT, Counter, Gauge, Histogram, present, since

# A request takes about 2 ms; buckets are narrow there, and reach to the time-out where things go wrong.
_REQUEST_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
# Stages are parts of a request: tens of microseconds to a few milliseconds.
_STAGE_BUCKETS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUEST_SECONDS = Histogram(
    "headrace_request_duration_seconds",
    "Duration of an HTTP request inside the replica",
    ("route", "method", "status"),
    buckets=_REQUEST_BUCKETS,
)
STAGE_SECONDS = Histogram(
    "headrace_stage_duration_seconds",
    "Duration of one stage of a ranking (a batch counts once)",
    ("stage",),
    buckets=_STAGE_BUCKETS,
)
MODEL_INFO = Gauge(
    "headrace_model_info",
    "1 for each model that answers now; several while replicas swap",
    ("version", "kind"),
    multiprocess_mode="livemax",
)
MODEL_AGE_SECONDS = Gauge(
    "headrace_model_age_seconds",
    "Since the bundle in service was made, the oldest of all replicas; none without a model",
    multiprocess_mode=MOMENT,
)
ITEMS = Gauge(
    "headrace_items_servable",
    "Items that can be recommended now, by the replica that knows the most",
    multiprocess_mode="livemax",
)
SWAPS = Counter("headrace_model_swaps", "Models this replica has taken into service")
LOAD_FAILURES = Counter(
    "headrace_model_load_failures", "Bundles that could not be loaded; the old one stayed"
)
REFRESH_FAILURES = Counter("headrace_refresh_failures", "Refreshes that failed for another reason")
RANKINGS = Counter("headrace_rankings", "Rankings made", ("source",))
PRODUCED = Counter("headrace_events_accepted", "Events accepted over HTTP and acknowledged by the broker")


def show_model(version: str | None, kind: str, created_at: float | None = None) -> None:
    """Make `headrace_model_info` name one model only, and show its age.

    Args:
        version: of its bundle; None without one. kind: trained or popular.
        created_at: when it was made, epoch s.
    """
    present(MODEL_INFO, {(version or "none", kind): 1})
    since(MODEL_AGE_SECONDS, created_at)


def method_label(method: str) -> str:
    """An HTTP method as a label: callers may send any word."""
    return method if method in _METHODS else "other"


class RequestWindow:
    """Durations of the newest requests; thread-safe, bounded.

    Args:
        size: requests kept.
    """

    def __init__(self, size: int) -> None:
        self._newest: deque[float] = deque(maxlen=size)
        self._count = 0
        self._errors = 0
        self._lock = threading.Lock()

    def add(self, duration_s: float, status: int) -> None:
        """Take in one finished request."""
        with self._lock:
            self._newest.append(duration_s)
            self._count += 1
            self._errors += status >= 500

    def summary(self) -> dict[str, float | int | None]:
        """Return p50 and p99 (ms, over the window) and the counts since the start of the replica."""
        with self._lock:
            durations, count, errors = list(self._newest), self._count, self._errors
        if not durations:
            return {"p50": None, "p99": None, "count": count, "errors": errors}
        p50, p99 = np.percentile(np.asarray(durations), (50, 99)) * 1000
        return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "count": count, "errors": errors}
