"""What counts as a failed request, and what as a degraded one."""

from collections import Counter

import httpx
import pytest

from tests.faults.serving import Outcome
from tests.faults.serving_load import Asked, Counts, judge

READ = Asked("GET recommendations", "GET", "/v1/recommendations/u1", None, "u1")
BATCH = Asked("POST recommendations", "POST", "/v1/recommendations")
WRITE = Asked("POST events", "POST", "/v1/events")
MODEL, POPULAR = {"model": {"kind": "trained"}}, {"model": {"kind": "popular"}}
LATER = {"retry-after": "1"}


@pytest.mark.parametrize(
    ("asked", "answer", "verdict"),
    [
        (READ, httpx.Response(200, json=MODEL), "ok"),
        (READ, httpx.Response(200, json=POPULAR), "degraded"),
        (BATCH, httpx.Response(200, json={"results": [MODEL, POPULAR]}), "degraded"),
        (READ, httpx.Response(503, headers=LATER), "failed"),
        (WRITE, httpx.Response(202, json={"accepted": []}), "ok"),
        (WRITE, httpx.Response(503, headers=LATER), "degraded"),
        (WRITE, httpx.Response(503), "failed"),
        (WRITE, httpx.Response(500, headers=LATER), "failed"),
        (READ, httpx.ReadError("cut"), "failed"),
    ],
)
def test_a_request_fails_unless_its_answer_is_documented(asked, answer, verdict):
    found, cause = judge(asked, answer)
    assert found == verdict
    assert bool(cause) == (verdict != "ok")


@pytest.mark.parametrize(
    ("partition", "offset", "age_ms", "verdict"),
    [
        (1, 7, 20.0, "ok"),
        (1, 8, 20.0, "ok"),  # it has newer ones still
        (1, 6, 9000.0, "degraded"),
        (1, 6, None, "failed"),  # stale, and does not tell
        (2, 3, 20.0, "ok"),  # offsets of two partitions cannot be compared
    ],
)
def test_a_state_without_an_acknowledged_event_is_stale(partition, offset, age_ms, verdict):
    state = {"partition": partition, "offset": offset, "age_ms": age_ms}
    assert judge(READ, httpx.Response(200, json=MODEL | {"state": state}), (1, 7))[0] == verdict


def test_the_report_adds_up():
    calm, kills = Counts(), Counts()
    calm.add("ok", "", 0.01)
    for verdict in ("ok", "failed", "degraded", "failed"):
        kills.add(verdict, "cause", 0.2)
    outcome = Outcome(Counter(replica_kill=2), {"calm": calm, "replica_kill": kills})
    outcome.recovered_s["replica_kill"] += [7.51, 3.0]
    report = outcome.report()
    assert report["faults"] == {"replica_kill": 2}
    assert (report["requests"], report["failed_requests"], report["degraded_requests"]) == (5, 2, 1)
    assert report["by_kind"]["replica_kill"]["causes"] == {"cause": 3}
    assert report["by_kind"]["replica_kill"]["recovered_s"] == [7.5, 3.0]
