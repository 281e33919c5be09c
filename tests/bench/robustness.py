"""The tables and plots of docs/robustness.md, from the reports that `headrace robustness --report` wrote.

    make results

Between two marks of the page stands what is made here; the words around it are written by hand. A file in
docs/results/robustness is one run of the command, over seeds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.evaluation.robustness import text_after
from tests.bench.results import lines_of

FOLDER, PAGE = Path("docs/results/robustness"), Path("docs/robustness.md")
BEGIN, END = "<!-- made by `make results` -->", "<!-- end of what `make results` makes -->"

Report = dict[str, Any]


def reports(folder: Path) -> dict[Path, Report]:
    """All reports by file."""
    return {file: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def tables(folder: Path) -> str:
    """What stands between the marks."""
    lines: list[str] = []
    for file, report in reports(folder).items():
        lines += section(file, report)
    return "\n".join(lines).strip() + "\n"


def section(file: Path, report: Report) -> list[str]:
    """One run: defences beside each other, attack by attack, groups, and how it was made."""
    plan = report["plan"]
    targets = "head" if plan["popular"] else "unpopular"
    seeds = ", ".join(map(str, report["seeds"]))
    title = f"{report['dataset']}, {plan['size']:.0%} fake users, {plan['targets']} {targets} targets, seeds {seeds}"
    lines = [f"### {title}", "", *defences(report), *attacks(report), *groups(report)]
    image = image_of(file)
    if image.is_file():
        lines += [f"![exposure of the targets]({image.relative_to(PAGE.parent)})", ""]
    cpu = report["machine"]["cpu"]
    return [
        *lines,
        f"`{file.name}` ({cpu}, {report['minutes']:.0f} min):",
        "",
        "```bash",
        report["command"],
        "```",
        "",
    ]


def _percent(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.1%}" if sign else f"{value:.1%}"


def defences(report: Report) -> list[str]:
    """A column per defence, against the same model without any."""
    found = report["summary"]
    rows: list[list[str]] = []

    def row(label: str, read: Any) -> None:
        rows.append([label, *(read(one) for one in found.values())])

    for kind in report["plan"]["kinds"]:
        row(f"lift taken away: {kind}", lambda one, kind=kind: _percent(one["exposure_lift_reduction"][kind]))
    row("lift taken away, all", lambda one: _percent(one["exposure_lift_reduction_mean"]))
    row("– 95% interval", lambda one: _interval(one["exposure_lift_reduction_ci"]))
    row("HR@50 lift taken away, all", lambda one: _percent(_mean(one["hr50_lift_reduction"])))
    row("lift of text attacks taken away", lambda one: _percent(one["text_lift_reduction"]))
    row("NDCG@10, honest window", lambda one: _percent(one["clean_ndcg_change"], sign=True))
    row("NDCG@10 under PGD", lambda one: _percent(one["pgd_ndcg_change"], sign=True))
    row("fakes in quarantine", lambda one: _percent(one["caught"]))
    row("detector, ROC-AUC (least)", _auc)
    row("honest users in quarantine, honest window", lambda one: _percent(one["false_quarantine"]))
    row("– attacked window", lambda one: _percent(one["false_quarantine_attacked"]))
    row("– the busiest twentieth", lambda one: _percent(one["false_quarantine_power"]))
    row("a step costs, times", lambda one: f"{one['step_cost_ratio']:.2f}")
    return lines_of(("", *found), rows)


def _mean(values: dict[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


def _interval(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:.0%} to {pair[1]:.0%}"


def _auc(one: Report) -> str:
    if one["detector_auc"] is None:
        return "–"
    return f"{one['detector_auc']:.4f} ({one['detector_auc_least']:.4f})"


def attacks(report: Report) -> list[str]:
    """What each attack does to the targets and to all lists, without and with all defences; means over seeds."""
    variants = ["none", *report["summary"]]
    shown = ["none", "all" if "all" in variants else variants[-1]]
    rows = []
    for kind in report["plan"]["kinds"]:
        for variant in shown:
            runs = [run["poison"][kind] for run in report["runs"] if run["variant"] == variant]
            rows.append(
                [
                    kind,
                    variant,
                    *(
                        f"{_of(runs, 'clean', key):.4f} → {_of(runs, 'poisoned', key):.4f}"
                        for key in ("exposure@10", "hr@10", "hr@50", "ndcg@10")
                    ),
                    f"{sum(run['overlap@10'] for run in runs) / len(runs):.0%}",
                ]
            )
    for kind in report["plan"]["texts"]:
        for variant in shown:
            runs = [run for run in report["runs"] if run["variant"] == variant]
            before = [run["texts"][kind]["untouched"] for run in runs]
            after = [text_after(run, kind) for run in runs]
            cells = [
                f"{_of(before, 'before', key):.4f} → {_of(after, 'after', key):.4f}"
                for key in ("exposure@10", "hr@10", "hr@50", "ndcg@10")
            ]
            common = sum(one["overlap@10"] for one in after) / len(after)
            rows.append([f"text of untouched items: {kind}", variant, *cells, f"{common:.0%}"])
    header = ("attack", "defences", "targets' exposure@10", "HR@10", "HR@50", "NDCG@10", "lists in common")
    return [
        "Honest window → attacked window (texts: before → after), means over seeds:",
        "",
        *lines_of(header, rows),
    ]


def _of(runs: Sequence[Report], when: str, key: str) -> float:
    return float(sum(run[when][key] for run in runs) / len(runs))


def groups(report: Report) -> list[str]:
    """NDCG@10 of groups of users and items, without and with all defences."""
    headline = report["summary"].get("all", next(iter(report["summary"].values())))
    rows = []
    for title, found in headline["fairness"]["by"].items():
        for name, one in found["groups"].items():
            rows.append(
                [
                    f"{title}: {name}",
                    f"{one['queries']:.0f}",
                    f"{one['without']:.4f}",
                    f"{one['with']:.4f}",
                    _percent(one["change"], sign=True),
                ]
            )
        worst = ["–" if value is None else f"{value:.2f}" for value in found["disparity"]]
        rows.append([f"{title}: worst over best", "", *worst, ""])
    lines = lines_of(("group", "queries", "without", "with defences", ""), rows)
    for warning in headline["fairness"]["warnings"]:
        lines += [f"**Hurt beyond the tolerance:** {warning}.", ""]
    return lines


def image_of(file: Path) -> Path:
    """Where a run's plot stands."""
    return file.with_suffix(".png")


def draw(report: Report, image: Path) -> None:
    """Exposure of the targets after each attack, without and with defences; a point per seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = report["plan"]["kinds"]
    variants = ["none", *report["summary"]]
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        runs = [run for run in report["runs"] if run["variant"] == variant]
        gains = [
            [run["poison"][kind]["poisoned"]["hr@50"] - run["poison"][kind]["clean"]["hr@50"] for run in runs]
            for kind in kinds
        ]
        at = [place + (number - (len(variants) - 1) / 2) * width for place in range(len(kinds))]
        axes.bar(
            at, [sum(one) / len(one) for one in gains], width * 0.9, label=f"defences: {variant}", alpha=0.75
        )
        for place, one in zip(at, gains, strict=True):
            axes.plot([place] * len(one), one, "k.", markersize=4)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("gain in the targets' HR@50")
    axes.set_title(f"{report['dataset']}, {report['plan']['size']:.0%} fake users", loc="left")
    axes.legend(frameon=False)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(image, dpi=120)
    plt.close(figure)


def rebuilt(page: str, folder: Path) -> str:
    """The page with what stands between the marks made anew.

    Raises:
        ValueError: the marks are missing.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"expected {BEGIN!r} and {END!r} in the page")
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{tables(folder)}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Plots first, since the page names those that are there."""
    for file, report in reports(FOLDER).items():
        draw(report, image_of(file))
    PAGE.write_text(rebuilt(PAGE.read_text(), FOLDER))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
