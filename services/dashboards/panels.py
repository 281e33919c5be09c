"""Dashboards as plain data, and the JSON that Grafana (10 or newer) reads.

A panel's description ends with the meaning of every metric in it, from the catalogue; its threshold is that of the
alert it names, whose runbook it links.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from services.dashboards.queries import catalogue

SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH = 24  # columns of Grafana's grid
_METRIC = re.compile(r"headrace_[a-z0-9_]+")

Shape = Literal["timeseries", "stat", "heatmap", "table", "state-timeline"]


@dataclass(frozen=True)
class Line:
    """One query; `legend` may name labels as `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        title: what it shows. lines: its queries. unit: Grafana's name of the unit of all of them.
        about: what to make of it, before the meaning of its metrics.
        warn: value from which it is drawn in red, that of `alert`; below it where `low` is set.
        alert: what watches this. stacked: areas on top of each other. named: shows the legend, not the
            value. width: of 24 columns. height: in rows.
    """

    title: str
    lines: tuple[Line, ...]
    unit: str = "short"
    about: str = ""
    warn: float | None = None
    low: bool = False
    alert: str | None = None
    shape: Shape = "timeseries"
    stacked: bool = False
    named: bool = False
    width: int = 8
    height: int = 8

    def metrics(self) -> list[str]:
        """Names of the catalogue in its queries, in their order."""
        asked = (name for line in self.lines for name in _METRIC.findall(line.expr))
        return list(dict.fromkeys(re.sub("_(bucket|count|sum)$", "", name) for name in asked))

    def to_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """What Grafana draws at a place of its grid."""
        made: dict[str, Any] = {
            "id": number,
            "type": self.shape,
            "title": self.title,
            "description": self._description(),
            "datasource": SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [self._target(line, at) for at, line in enumerate(self.lines)],
            "fieldConfig": {"defaults": self._field(), "overrides": []},
            "options": self._options(),
        }
        if self.alert:
            url = "${runbooks}#" + self.alert.lower()
            made["links"] = [{"title": f"{self.alert}: what to do", "url": url, "targetBlank": True}]
        if self.shape == "table":
            hidden = {"Time": True, "Value": True, "__name__": True, "alertstate": True}
            made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
        return made

    def _description(self) -> str:
        meanings = [f"`{name}`: {catalogue()[name].help}" for name in self.metrics()]
        return "\n\n".join([self.about, *meanings] if self.about else meanings)

    def _target(self, line: Line, at: int) -> dict[str, Any]:
        once = self.shape in ("stat", "table")
        formats: dict[str, str] = {"heatmap": "heatmap", "table": "table"}
        return {
            "refId": chr(ord("A") + at),
            "datasource": SOURCE,
            "expr": line.expr,
            "legendFormat": line.legend or "__auto",
            "format": formats.get(self.shape, "time_series"),
            "instant": once,
            "range": not once,
        }

    def _field(self) -> dict[str, Any]:
        good, bad = ("red", "green") if self.low else ("green", "red")
        steps: list[dict[str, Any]] = [{"color": "green" if self.warn is None else good, "value": None}]
        if self.warn is not None:
            steps.append({"color": bad, "value": self.warn})
        made: dict[str, Any] = {"unit": self.unit, "thresholds": {"mode": "absolute", "steps": steps}}
        if self.shape == "timeseries":
            made["min"] = 0
            made["custom"] = {
                "fillOpacity": 40 if self.stacked else 5,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none"},
                "thresholdsStyle": {"mode": "off" if self.warn is None else "dashed"},
            }
        if self.shape == "state-timeline":
            made["color"] = {"mode": "palette-classic"}
            made["custom"] = {"fillOpacity": 70}
        return made

    def _options(self) -> dict[str, Any]:
        if self.shape == "stat":
            return {
                "reduceOptions": {"calcs": ["lastNotNull"]},
                "textMode": "name" if self.named else "auto",
                "colorMode": "value" if self.warn is None else "background",
                "graphMode": "none",
            }
        if self.shape == "heatmap":
            return {"calculate": False, "yAxis": {"unit": self.unit}, "color": {"scheme": "Oranges"}}
        if self.shape == "state-timeline":
            return {"showValue": "never", "legend": {"displayMode": "list", "placement": "bottom"}}
        if self.shape == "table":
            return {"showHeader": True}
        return {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One page.

    Args:
        name: of its file, and of its address in Grafana behind `headrace-`. title, about: what people read.
        rows: its contents.
    """

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]

    def panels(self) -> list[Panel]:
        """All of its panels."""
        return [panel for row in self.rows for panel in row.panels]

    def to_json(self, runbooks: str) -> dict[str, Any]:
        """What Grafana imports.

        Args:
            runbooks: address at which docs/operations.md is read.
        """
        return {
            "uid": f"headrace-{self.name}",
            "title": f"Headrace / {self.title}",
            "description": self.about,
            "tags": ["headrace"],
            "schemaVersion": 39,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Headrace",
                    "tags": ["headrace"],
                    "keepTime": True,
                    "includeVars": True,
                },
                {"type": "link", "title": "Runbooks", "url": "${runbooks}#alerts", "targetBlank": True},
            ],
            "annotations": {"list": [_swaps()]},
            "templating": {"list": _variables(runbooks)},
            "panels": self._placed(),
        }

    def _placed(self) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            place = {"h": 1, "w": _WIDTH, "x": 0, "y": y}
            made.append(
                {"id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": place}
            )
            x, y, tallest = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > _WIDTH:
                    x, y, tallest = 0, y + tallest, 0
                made.append(panel.to_json(len(made) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return made


def _variables(runbooks: str) -> list[dict[str, Any]]:
    jobs = "label_values(headrace_exporter_processes, job)"
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "job",
            "label": "Installation",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": jobs, "refId": "jobs"},
            "definition": jobs,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        },
        {
            "name": "runbooks",
            "label": "Runbooks at",
            "type": "textbox",
            "query": runbooks,
            "current": {"text": runbooks, "value": runbooks},
        },
    ]


def _swaps() -> dict[str, Any]:
    """A mark wherever another model began to answer."""
    return {
        "name": "Model swaps",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": 'max by (version) (headrace_model_info{job=~"$job"}) unless '
        'max by (version) (headrace_model_info{job=~"$job"} offset 1m)',
        "step": "60s",
        "titleFormat": "{{version}}",
    }
