"""The serving benchmark's figures as tables on a terminal, as a plot, and in the documentation.

python -m tests.bench.serve_view           rebuild the plot and docs/serving.md from docs/results/serve
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.results import lines_of
from tests.bench.serve_report import NAMES

RESULTS, PAGE = Path("docs/results/serve"), Path("docs/serving.md")
BEGIN, END = "<!-- bench-serve: begin -->", "<!-- bench-serve: end -->"
VERDICTS = {True: "yes", False: "no", None: "not measured"}
_STACKS_KEPT = 400

Rows = list[Sequence[str]]


def sections(report: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], Rows]]:
    """Title, header and rows of each table that there are figures for."""
    told = [[t["what"], t["target"], _number(t["measured"]), VERDICTS[t["met"]]] for t in report["targets"]]
    yield "Targets", ("what", "target", "measured", "met"), told
    speeds: Rows = [
        [NAMES[name], count, *_figures(found)]
        for name, by_count in (report["by_connections"] | {"large": report["large"]["many"]}).items()
        for count, found in by_count.items()
    ]
    if speeds:
        header = ("system", "connections", "requests/s", "min – max", "p50, ms", "p99, ms", "p99, min – max")
        yield "Load", header, speeds
    index = report.get("large_index")
    if index:
        recall = [[f"{index['recall@100']:.3f}"]]
        yield "The index of 100,000 items", ("recall of the true best hundred",), recall
    seen = report["event_to_response_ms"]
    if seen["p99"] is not None:
        percentiles = ("p50", "p90", "p99", "max")
        header = (
            "events/s meanwhile",
            "accepted, p50, ms",
            *(f"{at}, ms" for at in percentiles),
            "timed",
            "not seen",
        )
        row = [_number(seen["accepted_p50"]), *(_number(seen[at]) for at in percentiles)]
        counts = [str(seen[name]) for name in ("probes", "unseen")]
        yield (
            "From an event to the answer that it changed",
            header,
            [[f"{seen['events_per_s']:,.0f}", *row, *counts]],
        )
    for key, title, first in (
        ("cpu_us", "CPU time of one request, 16 connections", "process"),
        ("stages_us", "Time inside the replica per request, 16 connections", "stage"),
    ):
        if report.get(key):
            yield title, (first, "µs"), [[name, _number(us)] for name, us in report[key].items()]
    profile = report.get("profile")
    if profile:
        hot: Rows = [[name, f"{share:.1%}"] for name, share in list(profile["own"].items())[:15]]
        yield "Where the replica's time goes, 16 connections", ("function (file), own time", "share"), hot


def _figures(found: Mapping[str, float]) -> list[str]:
    return [
        f"{found['rps']:,.0f}",
        f"{found['rps_min']:,.0f} – {found['rps_max']:,.0f}",
        *(f"{found[name]:.2f}" for name in ("p50_ms", "p99_ms")),
        f"{found['p99_ms_min']:.2f} – {found['p99_ms_max']:.2f}",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}".rstrip("0").rstrip(".")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """All of it for a terminal."""
    for title, header, rows in sections(report):
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(header):
            table.add_column(column, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        yield table


def page_part(report: Mapping[str, Any]) -> str:
    """What stands between the marks of the documentation's page."""
    box, settings = report["machine"], report["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    about = (
        f"{box['cores']} shared cores ({box['cpu']}), {settings['items']:,} items, {settings['users']:,} users with "
        f"50 events each, another user with each request, one replica; medians of {settings['rounds']} rounds in "
        f"which the systems take turns, {settings['seconds']} s each. Load: {settings['load']} on the same cores. "
        f"{versions}."
    )
    lines = [textwrap.fill(about, 118), "", "```bash", "make bench-serve", "```", ""]
    for title, header, rows in sections(report):
        escaped = [[cell.replace("<", "&lt;") for cell in row] for row in rows]
        lines += [f"### {title}", "", *lines_of(header, escaped)]
    lines += ["![Latency of each system](results/serve/latency.png)", ""]
    return "\n".join(lines)


def put_on_page(report: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the tables between the marks; a page without marks gets them at its end, under a heading "Speed"."""
    text = page.read_text() if page.is_file() else "# Serving\n"
    if BEGIN not in text:
        heading = "" if "## Speed" in text else "## Speed\n\n"
        text = f"{text.rstrip()}\n\n{heading}{BEGIN}\n{END}\n"
    part = f"{BEGIN}\n\n{page_part(report)}\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: part, text, flags=re.DOTALL))


def plot(report: Mapping[str, Any], image: Path) -> None:
    """Histograms of the latencies at the fewest connections and at 16."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    counts = [count for count in ("1", "16") if any(count in c for c in report["latency_ms"].values())]
    figure, axes = plt.subplots(1, max(1, len(counts)), figsize=(10, 3.6), squeeze=False)
    for axis, count in zip(axes[0], counts, strict=False):
        curves = {name: c[count] for name, c in report["latency_ms"].items() if count in c}
        lowest, highest = min(min(c) for c in curves.values()), max(max(c) for c in curves.values())
        bins = np.geomspace(max(lowest, 0.01), max(highest, 0.02), 60)
        for name, curve in curves.items():
            axis.hist(
                curve, bins, weights=np.full(len(curve), 100 / len(curve)), alpha=0.55, label=NAMES[name]
            )
        axis.set(
            xscale="log",
            xlabel="latency, ms",
            ylabel="% of requests",
            title=f"{count} connection{'s' * (count != '1')}",
        )
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(image, dpi=110)
    plt.close(figure)


def keep(report: Mapping[str, Any], profile: Path) -> None:
    """Make a run the one that the documentation shows: report, profile, plot and page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "serve.json").write_text(json.dumps(report, indent=1) + "\n")
    stacks = profile / "replica.raw"
    if stacks.is_file():
        by_count = sorted(stacks.read_text().splitlines(), key=lambda line: -int(line.rpartition(" ")[2]))
        (RESULTS / "profile.raw").write_text("\n".join(by_count[:_STACKS_KEPT]) + "\n")
    show(report)


def show(report: Mapping[str, Any]) -> None:
    """Draw the plot and write the page."""
    plot(report, RESULTS / "latency.png")
    put_on_page(report)


def main() -> None:
    """Rebuild what is made from the report."""
    show(json.loads((RESULTS / "serve.json").read_text()))
    print(f"written: {PAGE}, {RESULTS / 'latency.png'}")


if __name__ == "__main__":
    main()
