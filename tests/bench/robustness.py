"""The tables and plots of docs/robustness.md, from the reports that `headrace robustness --report` wrote.

    make results

Between two marks of the page stands what is made here; the words around it are written by hand. A file in
docs/results/robustness is one run of the command: over several seeds for the headline, over one for a defence at a
time or another attack, without any attack where ways of training are compared. The folder scratch holds runs
of `headrace attack run --scratch`.
"""

import json
from pathlib import Path

from tests.bench.robustness_tables import (
    Report,
    attacks,
    changes_of,
    defences,
    groups,
    headline,
    scratch,
    setting_of,
    ways,
)

FOLDER, PAGE = Path("docs/results/robustness"), Path("docs/robustness.md")
BEGIN, END = "<!-- made by `make results` -->", "<!-- end of what `make results` makes -->"


def reports(folder: Path) -> dict[Path, Report]:
    """All reports by file; targets from the head come after the unpopular ones."""
    found = {file: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda one: one[1]["plan"]["popular"]))


def tables(folder: Path) -> str:
    """What stands between the marks."""
    found = reports(folder)
    attacked = {file: report for file, report in found.items() if report["plan"]["kinds"]}
    whole = {file: report for file, report in attacked.items() if is_whole(report)}
    lines = ["### Against the same model without defences", "", *headline(list(whole.values()))]
    for file, report in whole.items():
        lines += [f"### {title_of(report)}", "", *attacks(report), *groups(report), *made_by(file, report)]
    for file, report in sorted(attacked.items(), key=lambda one: -len(one[1]["summary"])):
        if file not in whole:
            lines += [
                f"### {title_of(report)}",
                "",
                *defences(report),
                *attacks(report),
                *made_by(file, report),
            ]
    others = [report for file, report in found.items() if file not in attacked]
    lines += ways(others, list(attacked.values()))
    lines += scratch([json.loads(file.read_text()) for file in sorted((folder / "scratch").glob("*.json"))])
    return "\n".join(lines).strip() + "\n"


def is_whole(report: Report) -> bool:
    """A headline: over several seeds."""
    return len(report["seeds"]) > 1


def title_of(report: Report) -> str:
    """What was attacked, and how."""
    seeds = ", ".join(map(str, report["seeds"]))
    several = ["one defence at a time"] if len(report["summary"]) > 1 else []
    told = "".join(f"; {words}" for words in (*several, *changes_of(report)))
    return f"{setting_of(report)}, seed{'s' * is_whole(report)} {seeds}{told}"


def made_by(file: Path, report: Report) -> list[str]:
    """The plot, where there is one, and the command."""
    image = image_of(file)
    shown = f"![gain of the targets]({image.relative_to(PAGE.parent)})"
    return [
        *([shown, ""] if image.is_file() else []),
        f"`{file.name}` ({report['machine']['cpu']}):",
        "",
        "```bash",
        report["command"],
        "```",
        "",
    ]


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
        if is_whole(report) and report["plan"]["kinds"]:
            draw(report, image_of(file))
    PAGE.write_text(rebuilt(PAGE.read_text(), FOLDER))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
