"""Reports for people: a table in the terminal, and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table


def table(report: dict[str, Any]) -> Table:
    """Models by NDCG@10, best first."""
    title = f"{report['dataset']}, {report['protocol']}, seed {report['seed']}, reading: {report['filter']}"
    made = Table(title=title, title_justify="left")
    made.add_column("model", style="bold")
    for column in ("NDCG@10", "95% interval", "HR@10", "MRR@10", "coverage", "Gini", "novelty, bits"):
        made.add_column(column, justify="right")
    for name, found in sorted(report["models"].items(), key=lambda pair: -pair[1]["ndcg@10"]):
        low, high = found["ndcg@10_ci"]
        made.add_row(
            name,
            f"{found['ndcg@10']:.4f}",
            f"{low:.4f} – {high:.4f}",
            f"{found['hr@10']:.4f}",
            f"{found['mrr@10']:.4f}",
            f"{found['coverage@10']:.3f}",
            f"{found['gini@10']:.3f}",
            f"{found['novelty@10']:.1f}",
        )
    return made


def plot(report: dict[str, Any], file: Path) -> None:
    """NDCG@10 over the windows of a prequential report, or against the number of known events of another.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    if "curve" in report:
        windows = [entry["window"] + 1 for entry in report["curve"]]
        for way in report["models"]:
            values = [entry[way]["ndcg@10"] for entry in report["curve"]]
            axes.plot(windows, values, marker="o", markersize=3, label=way)
        axes.set_xlabel("window")
    else:
        for name, found in report["models"].items():
            steps = found[report["filter"]]["by_history"]
            axes.plot(
                [step["from"] for step in steps],
                [step["ndcg@10"] for step in steps],
                marker="o",
                markersize=3,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_xlabel("events known of the user (at least)")
    axes.set_ylabel("NDCG@10")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(f"{report['dataset']}, {report['protocol']}, reading: {report['filter']}", loc="left")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
