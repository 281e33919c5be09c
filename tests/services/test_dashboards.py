"""The dashboards: made from the catalogue, as committed, and read by Prometheus."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from services.cli import app
from services.dashboards.files import NOT_SHOWN, dashboards, texts
from services.dashboards.panels import Panel
from services.dashboards.queries import QueryError, quantile, rate, value
from services.metric_catalog import families
from tests.k8s.rendering import K8S, of_kind, render
from tests.prometheus import GRAFANA, filled, needs_prometheus, promtool, rule_groups

COMMITTED = K8S / "components" / "monitoring" / "dashboards"
FAMILIES = {family.name: family for family in families()}
PANELS = [
    pytest.param(panel, id=f"{page.name}: {panel.title}") for page in dashboards() for panel in page.panels()
]
PROMETHEUS = {"le", "job", "instance", "version"}


def test_the_committed_files_are_what_the_code_makes(tmp_path):
    done = CliRunner().invoke(app, ["dashboards", "--out", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    made = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert made == {path.name: path.read_text() for path in COMMITTED.iterdir()}, (
        f"run: headrace dashboards --out {COMMITTED}"
    )


def test_every_metric_is_on_some_dashboard_or_left_out_for_a_reason():
    shown = {name for page in dashboards() for panel in page.panels() for name in panel.metrics()}
    assert shown | NOT_SHOWN.keys() == FAMILIES.keys()
    assert not shown & NOT_SHOWN.keys()


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_what_there_is(panel: Panel):
    for line in panel.lines:
        metrics = [FAMILIES[name] for name in Panel("", (line,)).metrics()]
        labels = {label for family in metrics for label in family.labels}
        for grouped in re.findall(r"by \(([^)]*)\)", line.expr):
            assert set(grouped.split(", ")) <= labels | {"le"}, line.expr
        for name, matchers in re.findall(r"(headrace_\w+?)(?:_bucket|_sum|_count)?\{([^}]*)\}", line.expr):
            assert set(re.findall(r"(\w+)=", matchers)) <= {*FAMILIES[name].labels, "job"}, line.expr
            assert 'job=~"$job"' in matchers
        assert set(re.findall(r"{{(\w+)}}", line.legend)) <= labels | PROMETHEUS, line.legend
        if "histogram_quantile" in line.expr:
            assert re.search(
                r"histogram_quantile\([\d.]+, sum by \(le\b[^)]*\) \(rate\(\w+_bucket{", line.expr
            )
        for family in metrics:  # a counter is never shown bare
            assert family.kind != "counter" or re.search(rf"(rate|increase)\({family.name}\{{", line.expr)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_in_which_unit(panel: Panel):
    made = panel.to_json(1, 0, 0)
    assert made["description"]
    for name in panel.metrics():
        assert f"`{name}`: {FAMILIES[name].help}" in made["description"]
    seconds = all(name.endswith("_seconds") for name in panel.metrics()) and panel.metrics()
    plain = not any("/" in line.expr.split("{")[0] or "_count{" in line.expr for line in panel.lines)
    if seconds and plain:
        assert panel.unit == "s"


@pytest.mark.parametrize("panel", [p for p in PANELS if p.values[0].alert or p.values[0].warn])
def test_thresholds_are_those_of_the_alerts(panel: Panel):
    alerts = {rule["alert"]: rule["expr"] for group in rule_groups() for rule in group["rules"]}
    if panel.alert is None:
        assert panel.title == "Alerts that fire"
        return
    expression = alerts[panel.alert]
    if panel.alert != "HeadraceExporterGone":
        assert any(name in expression for name in panel.metrics())
    if panel.warn is not None:
        bounds = {float(number) for number in re.findall(r"[<>=]=? ([\d.]+)", expression)}
        assert bounds & {panel.warn, panel.warn - 1}, (
            expression
        )  # a count of 1 warns where the alert says > 0
    [link] = panel.to_json(1, 0, 0)["links"]
    assert link["url"] == "${runbooks}#" + panel.alert.lower()


def test_every_page_can_be_placed_and_found():
    for name, text in texts().items():
        page = json.loads(text)
        assert len(text) < 250_000, f"{name} is too large for a ConfigMap that kubectl applies"
        assert page["uid"] == f"headrace-{name.removesuffix('.json')}"
        ids = [panel["id"] for panel in page["panels"]]
        assert len(set(ids)) == len(ids)
        places = [panel["gridPos"] for panel in page["panels"]]
        taken = [
            (x, y)
            for p in places
            for x in range(p["x"], p["x"] + p["w"])
            for y in range(p["y"], p["y"] + p["h"])
        ]
        assert len(set(taken)) == len(taken), "panels overlap"
        assert max(x for x, _ in taken) < 24
        variables = {variable["name"] for variable in page["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", text)) - {name.strip("$") for name in GRAFANA} | {"job"}
        assert used - {"__all"} <= variables


def test_runbooks_are_where_one_says():
    assert "https://git.example.org/ops.md" in texts("https://git.example.org/ops.md")["overview.json"]


def test_kubernetes_ships_them_as_grafana_looks_for_them():
    shipped = [
        d
        for d in of_kind(render("prod"), "ConfigMap")
        if d["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]
    assert {name: text for d in shipped for name, text in d["data"].items()} == texts()


@needs_prometheus
def test_prometheus_reads_every_query(tmp_path):
    queries = [line.expr for page in dashboards() for panel in page.panels() for line in panel.lines]
    rules = [{"record": f"query:{number}", "expr": filled(query)} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(path))


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (lambda: rate("headrace_event_total"), "not in the catalogue"),
        (lambda: rate("headrace_catalog_items"), "is a gauge"),
        (lambda: value("headrace_ingest_lag_records", "shard"), "not shard"),
        (lambda: quantile(0.5, "headrace_freshness_seconds", user="u1"), "not user"),
    ],
)
def test_a_query_for_what_is_not_there_is_refused(query, problem):
    with pytest.raises(QueryError, match=problem):
        query()
