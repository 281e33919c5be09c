"""The catalogue of metrics, and the page made from it."""

import ast
import re
from pathlib import Path

import pytest

from services.metric_catalog import families
from services.metric_page import PAGE, page

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    assert (ROOT / PAGE).read_text() == page(), "run python -m services.metric_page"


def test_names_follow_the_rules_of_prometheus():
    names = [family.name for family in families()]
    assert len(set(names)) == len(names)
    for family in families():
        assert re.fullmatch(r"headrace_[a-z0-9_]+", family.name)
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert "duration" not in family.name or family.name.endswith("_seconds")
        assert family.help
        assert not family.help.endswith(".")


@pytest.mark.parametrize("family", [f for f in families() if f.kind == "histogram"], ids=lambda f: f.name)
def test_buckets_rise_and_are_few(family):
    assert list(family.buckets) == sorted(set(family.buckets))
    assert 5 <= len(family.buckets) <= 16


def test_every_metric_is_filled_in_somewhere():
    """A definition that nothing refers to would be a series that is always 0."""
    defined, used = {}, set()
    for file in sorted(
        p
        for package in ("streaming", "training", "serving", "services")
        for p in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = getattr(node.value.func, "id", "")
                if made in {"Counter", "Gauge", "Histogram"} and node.targets[0].id.isupper():
                    defined[node.targets[0].id] = file
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                used.add(node.id if isinstance(node, ast.Name) else node.attr)
    assert len(defined) == len(families())
    assert {name for name in defined if name not in used} == set()


def test_no_label_can_hold_an_id():
    allowed = {
        *("outcome", "cache", "part", "verdict", "reason", "source", "stage", "why", "phase", "measure"),
        *("kind", "state", "decision", "method", "status"),
        *("route", "topic", "partition"),  # of the API and of the settings
        *("version", "experiment", "arm"),  # of the registry
    }
    assert {label for family in families() for label in family.labels} <= allowed
