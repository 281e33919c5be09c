"""The quality tables of docs/results.md, from the reports that `headrace evaluate --out` wrote.

    make results

Every folder under docs/results/quality is one table; a file in it is one run. Runs of one table that differ in
nothing but the seed are averaged. Figures come from the files alone: a run that is not there is not in a table.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from services.evaluation.run import MODELS

FOLDER, PAGE = Path("docs/results/quality"), Path("docs/results.md")
BASELINES = tuple(name for name in MODELS if name not in ("ours", "random"))

# HR@10 and NDCG@10 on MovieLens-1M, last item of each user, full ranking without the history, as published.
PUBLISHED = (
    ("SASRec, one negative (Klenitskiy and Vasilev 2023)", 0.2500, 0.1341),
    ("BERT4Rec (the same)", 0.2843, 0.1537),
    ("gSASRec, 256 negatives (Petrov and Macdonald 2023)", 0.3003, 0.1726),
    ("SASRec, full cross-entropy (Klenitskiy and Vasilev 2023)", 0.3152, 0.1821),
    ("SASRec, cross-entropy, 3,000 negatives (the same)", 0.3159, 0.1857),
    ("HSTU-large, its own preprocessing (Zhai et al. 2024)", 0.3294, 0.1893),
)


@dataclass(frozen=True)
class Run:
    """One report and the file it stands in."""

    file: Path
    report: dict[str, Any]

    @property
    def title(self) -> str:
        """What it measured, without the seed."""
        cold = self.report.get("split", {}).get("cold_items")
        return f"{self.report['dataset']}, {self.report['protocol']}" + (
            f", {cold} cold items" if cold else ""
        )

    def models(self, reading: str | None = None) -> dict[str, Any]:
        """Figures per model, of one reading or the headline's; ours carries how it takes repeats."""
        found = {}
        for name, figures in self.report["models"].items():
            shape = figures.get("settings", {}).get("training", {}).get("model", {})
            called = f"ours, repeats {shape.get('repeats', 'excluded')}" if name == "ours" else name
            found[called] = figures if reading is None else figures[reading]
        return found


def runs_of(folder: Path) -> list[Run]:
    """The runs of one table, by file name."""
    return [Run(file, json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]


def together(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by what they measured."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.title, []).append(run)
    return found


def lines_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are set to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)] + [""]


def averaged(runs: Sequence[Run], reading: str | None = None) -> dict[str, dict[str, Any]]:
    """Per model the mean of each figure over the seeds that have it, NDCG@10 of each seed besides."""
    all_models = [run.models(reading) for run in runs]
    found = {}
    for name in dict.fromkeys(name for models in all_models for name in models):
        entries = [models[name] for models in all_models if name in models]
        keys = ("ndcg@10", "hr@10", "mrr@10", "coverage@10", "gini@10", "novelty@10")
        found[name] = {key: mean(entry[key] for entry in entries) for key in keys}
        found[name]["seeds"] = [entry["ndcg@10"] for entry in entries]
    return found


def quality(runs: Sequence[Run]) -> list[str]:
    """Models beside each other: new items alone and, where some model copies, with repeats."""
    lines = ["New items, the history is taken out:", "", *compared(averaged(runs, "unseen"))]
    if any("copied" in name for run in runs for name in run.models()):
        lines += ["Every event, repeats count:", "", *compared(averaged(runs, "all"))]
    image = history_image(runs)
    if image.is_file():
        lines += [f"![quality against known events]({image.relative_to(PAGE.parent)})", ""]
    return lines


def by_history(runs: Sequence[Run], image: Path) -> None:
    """Draw quality against the number of known events, means over the seeds, new items alone."""
    from services.evaluation.report import plot

    found: dict[str, list[list[dict[str, Any]]]] = {}
    for run in runs:
        for name, figures in run.models("unseen").items():
            found.setdefault(name, []).append(figures["by_history"])
    models = {
        name: {"unseen": {"by_history": [_mean_step(steps) for steps in zip(*seeds, strict=True)]}}
        for name, seeds in found.items()
    }
    plot({**runs[0].report, "filter": "unseen", "models": models}, image)


def _mean_step(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"from": steps[0]["from"], "ndcg@10": mean(step["ndcg@10"] for step in steps)}


def history_image(runs: Sequence[Run]) -> Path:
    """Where that drawing stands."""
    return runs[0].file.with_name(f"{runs[0].report['dataset']}-history.png")


def compared(found: dict[str, dict[str, Any]]) -> list[str]:
    """Models best first, and the gain over the best baseline."""
    rows = []
    for name, figures in sorted(found.items(), key=lambda pair: -pair[1]["ndcg@10"]):
        seeds = figures["seeds"]
        spread = f" ({min(seeds):.4f} – {max(seeds):.4f})" if len(set(seeds)) > 1 else ""
        more = [f"{figures[key]:.3f}" for key in ("coverage@10", "gini@10")]
        rows.append(
            [
                name,
                f"{figures['ndcg@10']:.4f}{spread}",
                f"{figures['hr@10']:.4f}",
                f"{figures['mrr@10']:.4f}",
                *more,
            ]
        )
    lines = lines_of(("model", "NDCG@10", "HR@10", "MRR@10", "coverage", "Gini"), rows)
    best = max(
        (name for name in found if name in BASELINES), key=lambda name: found[name]["ndcg@10"], default=None
    )
    ours = max((found[name]["ndcg@10"] for name in found if name.startswith("ours")), default=None)
    if best and ours:
        gain = ours / found[best]["ndcg@10"] - 1
        lines += [f"Ours against the best baseline, {best}: {gain:+.1%} NDCG@10.", ""]
    return lines


def published(runs: Sequence[Run]) -> list[str]:
    """Leave-one-out beside what others published."""
    rows = [(name, hr, ndcg) for name, hr, ndcg in PUBLISHED]
    for run in runs:
        rows += [
            (f"**{name}** (`{run.file.name}`)", figures["hr@10"], figures["ndcg@10"])
            for name, figures in run.report["models"].items()
        ]
    rows.sort(key=lambda row: row[2])
    return lines_of(
        ("model", "HR@10", "NDCG@10"), [(name, f"{hr:.4f}", f"{ndcg:.4f}") for name, hr, ndcg in rows]
    )


def cold(runs: Sequence[Run]) -> list[str]:
    """Recall among items that were kept out of training, and users of whom little is known."""
    found = averaged(runs)
    chance = found.get("random", {}).get("hr@10")
    rows = []
    for name, figures in sorted(found.items(), key=lambda pair: -pair[1]["hr@10"]):
        times = f"{figures['hr@10'] / chance:.1f}×" if chance else ""
        rows.append([name, f"{figures['hr@10']:.4f}", times, f"{figures['ndcg@10']:.4f}"])
    return lines_of(("model", "Recall@10 among cold items", "against random", "NDCG@10"), rows)


def encoders(runs: Sequence[Run]) -> list[str]:
    """One model with different text encoders, or different parts of one trained."""
    rows = []
    for run in runs:
        figures = run.report["models"]["ours"]
        training = figures["settings"]["training"]
        encoder, tuned = training.get("text_encoder", "packaged"), training.get("finetune", "frozen")
        seconds = figures["settings"]["train_seconds"]
        row = [f"{figures[key]:.4f}" for key in ("ndcg@10", "hr@10")]
        rows.append([f"`{run.file.stem}`", encoder, tuned, *row, f"{seconds:,.0f}"])
    return lines_of(("run", "encoder", "trained of it", "NDCG@10", "HR@10", "seconds in steps"), rows)


def over_time(runs: Sequence[Run]) -> list[str]:
    """Ways to learn over the windows of a stream."""
    lines = []
    for run in runs:
        ways, curve = run.report["models"], run.report["curve"]
        retrained = [entry for entry in curve if entry["window"] % 5 == 0 and entry["window"]]
        full = ways["retrained"]["train_seconds_after_first"]
        rows = []
        for way, figures in ways.items():
            seconds = figures["train_seconds_after_first"]
            fresh = mean(entry[way]["ndcg@10"] for entry in retrained)
            rows.append(
                [
                    way,
                    f"{figures['ndcg@10']:.4f}",
                    f"{figures['hr@10']:.4f}",
                    f"{fresh:.4f}",
                    f"{seconds / full:.0%}",
                ]
            )
        lines += lines_of(
            ("way", "NDCG@10", "HR@10", "NDCG@10 right after retraining", "compute against retraining"), rows
        )
        image = run.file.with_suffix(".png")
        if image.is_file():
            lines += [f"![{run.title}]({image.relative_to(PAGE.parent)})", ""]
    return lines


TABLES = {
    "loo": ("Leave one out", published),
    "temporal": ("A stream parted in time, every next event asked", quality),
    "cold": ("Items nobody has touched", cold),
    "prequential": ("Continuous learning", over_time),
    "text": ("The text encoder", encoders),
}


def page(folder: Path) -> str:
    """The whole page."""
    lines = [
        "# Quality",
        "",
        "Made by `make results` from the reports in `docs/results/quality`. What the protocols and columns mean:",
        "[evaluation.md](evaluation.md). Means over the seeds (lowest and highest NDCG@10 in brackets).",
        "",
    ]
    for name, (title, table) in TABLES.items():
        groups = together(runs_of(folder / name))
        if not groups:
            continue
        lines += [f"## {title}", ""]
        for what, runs in groups.items():
            seeds = ", ".join(map(str, sorted({run.report["seed"] for run in runs})))
            lines += [f"### {what}, seed{'s' * (',' in seeds)} {seeds}", "", *table(runs)]
            lines += [line for run in runs for line in made_by(run)]
    return "\n".join(lines).rstrip() + "\n"


def made_by(run: Run) -> list[str]:
    """Where the figures come from."""
    report = run.report
    machine = f"{report['machine']['cpu']}, {report['threads']} thread{'s' * (report['threads'] > 1)}"
    seconds = [figures.get("fit_seconds") for figures in report["models"].values()]
    spent = f", fits {sum(filter(None, seconds)) / 60:.0f} min" if any(seconds) else ""
    return [f"`{run.file.name}` ({machine}{spent}):", "", "```bash", report["command"], "```", ""]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.results", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    chosen.page.write_text(page(chosen.folder))
    for runs in together(runs_of(chosen.folder / "temporal")).values():
        by_history(runs, history_image(runs))
    print(f"written: {chosen.page}")


if __name__ == "__main__":
    main()
