"""What counts as a failed request, and what as a degraded one."""

from collections import Counter

import httpx
import pytest

from tests.faults.serving import Counts, judge, report_of

MODEL, POPULAR = {"model": {"kind": "trained"}}, {"model": {"kind": "popular"}}


@pytest.mark.parametrize(
    ("path", "answer", "verdict"),
    [
        ("/v1/recommendations/u1", httpx.Response(200, json=MODEL), "ok"),
        ("/v1/recommendations/u1", httpx.Response(200, json=POPULAR), "degraded"),
        ("/v1/recommendations", httpx.Response(200, json={"results": [MODEL, POPULAR]}), "degraded"),
        ("/v1/recommendations/u1", httpx.Response(503, headers={"retry-after": "1"}), "failed"),
        ("/v1/events", httpx.Response(202, json={"accepted": []}), "ok"),
        ("/v1/events", httpx.Response(503, headers={"retry-after": "1"}), "degraded"),
        ("/v1/events", httpx.Response(503), "failed"),
        ("/v1/rank", httpx.Response(500), "failed"),
        ("/v1/rank", httpx.ReadError("cut"), "failed"),
    ],
)
def test_a_request_fails_unless_its_answer_is_documented(path, answer, verdict):
    found, cause = judge("GET", path, answer)
    assert found == verdict
    assert bool(cause) == (verdict != "ok")


def test_the_report_adds_up():
    calm, kills = Counts(), Counts()
    calm.add("ok", "", 0.01)
    for verdict in ("ok", "failed", "degraded", "failed"):
        kills.add(verdict, "cause", 0.2)
    report = report_of(Counter(replica_kill=2), {"calm": calm, "replica_kill": kills}, {"replica_kill": 7.5})
    assert report["faults"] == {"replica_kill": 2}
    assert (report["requests"], report["failed_requests"], report["degraded_requests"]) == (5, 2, 1)
    assert report["by_kind"]["replica_kill"]["causes"] == {"cause": 3}
    assert report["by_kind"]["replica_kill"]["whole_after_s"] == 7.5
