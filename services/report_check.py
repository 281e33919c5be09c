"""Checks the report of a demo run against limits: `python -m services.report_check report.json`.

Prints each check with its figures and exits 1 when one fails. The defaults are for a run of a minute; a longer
run can be held to more (`--promoted 2 --lift 2`).
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What a report must keep to."""

    promoted: int = 1  # models promoted, at least
    windows: int = 1  # windows closed, at least
    requests: int = 100  # prequential requests answered by a trained model, at least
    lift: float = 1.0  # hit rate over the popularity baseline's: more than this
    freshness_p99_ms: float = 1000.0  # at most
    first_s: float = 240.0  # seconds to the first answer by a trained model, at most


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    passed: bool
    seen: str
    expected: str


def check(report: dict[str, Any], limits: Limits) -> list[Check]:
    """Compare a report with limits; a figure that is missing or null fails its check."""
    return list(_checks(report, limits))


def _checks(report: dict[str, Any], limits: Limits) -> Iterator[Check]:
    def figure(*path: str) -> float | None:
        value: Any = report
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    def least(name: str, seen: float | None, bound: float) -> Check:
        return Check(name, seen is not None and seen >= bound, _text(seen), f"at least {_text(bound)}")

    def most(name: str, seen: float | None, bound: float) -> Check:
        return Check(name, seen is not None and seen <= bound, _text(seen), f"at most {_text(bound)}")

    produced, applied = figure("events", "produced"), figure("events", "applied")
    yield least("events produced", produced, 1)
    same = produced is not None and applied == produced
    yield Check("events applied", same, _text(applied), f"{_text(produced)}, as many as produced")
    yield most("dead letters", figure("events", "dead_lettered"), 0)
    yield least("windows closed", figure("windows"), limits.windows)
    yield least("models promoted", figure("models", "promoted"), limits.promoted)
    yield most("request errors", figure("request_ms", "errors"), 0)
    yield least("requests scored", figure("prequential", "requests"), limits.requests)
    ours = figure("prequential", "hit_rate@10")
    theirs = figure("prequential", "popularity_hit_rate@10")
    better = ours is not None and theirs is not None and ours > limits.lift * theirs
    wanted = f"more than {limits.lift:g} x popularity ({_text(theirs)})"
    yield Check("hit rate@10", better, _text(ours), wanted)
    yield most("freshness p99, ms", figure("freshness_ms", "p99"), limits.freshness_p99_ms)
    yield most("first trained answer, s", figure("seconds_to_first_recommendation"), limits.first_s)


def _text(value: float | None) -> str:
    return "missing" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 all passed, 1 a check failed, 2 no readable report."""
    parser = argparse.ArgumentParser(
        prog="python -m services.report_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("report", type=Path)
    for name, default in vars(Limits()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args(arguments))
    path: Path = options.pop("report")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{path}: expected the JSON report of a demo run: {error}", file=sys.stderr)
        return 2
    checks = check(report, Limits(**options))
    for line in checks:
        print(f"{'pass' if line.passed else 'FAIL'}  {line.name:<24} {line.seen:>12}   {line.expected}")
    failed = sum(not line.passed for line in checks)
    print(f"{path}: {len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
