"""The judgement over a demo's report."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from services.report_check import Limits, check, main

GOOD: dict[str, Any] = {
    "events": {"produced": 66000, "applied": 66000, "duplicates": 0, "dead_lettered": 0},
    "windows": 12,
    "models": {"trained": 3, "promoted": 2, "rejected": 1},
    "prequential": {"requests": 900, "hit_rate@10": 0.16, "ndcg@10": 0.08, "popularity_hit_rate@10": 0.07},
    "request_ms": {"p50": 5.0, "p99": 40.0, "count": 2000, "errors": 0},
    "freshness_ms": {"p50": 60.0, "p99": 400.0},
    "seconds_to_first_recommendation": 95.0,
}


def failures(report: dict[str, Any], limits: Limits | None = None) -> list[str]:
    return [line.name for line in check(report, limits or Limits()) if not line.passed]


def test_a_good_report_passes() -> None:
    assert failures(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("events", "applied"), 65999, "events applied"),
        (("events", "dead_lettered"), 1, "dead letters"),
        (("models", "promoted"), 0, "models promoted"),
        (("request_ms", "errors"), 1, "request errors"),
        (("prequential", "hit_rate@10"), 0.07, "hit rate@10"),
        (("prequential", "hit_rate@10"), None, "hit rate@10"),
        (("freshness_ms", "p99"), 1001.0, "freshness p99, ms"),
        (("seconds_to_first_recommendation",), None, "first trained answer, s"),
    ],
)
def test_each_limit_is_held(path: tuple[str, ...], value: Any, name: str) -> None:
    report = copy.deepcopy(GOOD)
    place = report
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert failures(report) == [name]


def test_an_empty_report_passes_nothing() -> None:
    assert len(failures({})) == len(check({}, Limits()))


def test_the_command_prints_figures_and_its_status_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(GOOD))
    assert main([str(path)]) == 0
    assert "66,000, as many as produced" in capsys.readouterr().out
    assert main([str(path), "--promoted", "3", "--lift", "2.5"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  models promoted" in out
    assert "8 of 10 checks passed" in out
    assert main([str(tmp_path / "none.json")]) == 2
