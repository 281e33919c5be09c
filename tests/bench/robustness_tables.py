"""Tables of docs/robustness.md, each from reports that `headrace robustness --report` wrote."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.evaluation.robustness import ALL, NONE, text_after
from tests.bench.results import lines_of

Report = dict[str, Any]


def setting_of(report: Report) -> str:
    """The data, the size of the attack and its targets."""
    plan = report["plan"]
    targets = "head" if plan["popular"] else "unpopular"
    return f"{report['dataset']}, {plan['size']:.0%} fake users, {plan['targets']} {targets} targets"


def changes_of(report: Report) -> list[str]:
    """What the command changed of the recipe's training."""
    words = report["command"].split(" --set training.")[1:]
    return [word.split()[0].replace("=", " ") for word in words]


def _percent(value: float | None, sign: bool = False, digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{value:+.{digits}%}" if sign else f"{value:.{digits}%}"


# What is aimed at with all defences: at least (+1) or at most (-1) so much.
AIMS: dict[str, tuple[str, int, float]] = {
    "exposure_lift_reduction_mean": ("≥ 60%", 1, 0.6),
    "text_lift_reduction": ("≥ 40%", 1, 0.4),
    "clean_ndcg_change": ("≥ -0.5%", 1, -0.005),
    "pgd_ndcg_change": ("≥ +20%", 1, 0.2),
    "detector_auc": ("≥ 0.95", 1, 0.95),
    "false_quarantine": ("≤ 0.5%", -1, 0.005),
    "step_cost_ratio": ("≤ 2.2", -1, 2.2),
}


_INTERVAL, _SEEDS = "– 95% interval", "– each seed"


def missed(found: Report, key: str) -> bool:
    """Whether a summary falls short of an aim; what was not measured does not."""
    _, sign, limit = AIMS[key]
    return found[key] is not None and sign * found[key] < sign * limit


def headline(found: Sequence[Report]) -> list[str]:
    """A column per report, with all defences, beside what is aimed at; bold where an aim is missed."""
    columns = {setting_of(report): report["summary"][ALL] for report in found}
    kinds = dict.fromkeys(kind for report in found for kind in report["plan"]["kinds"])
    made = figures(columns, list(kinds), aims=True)
    rises = ["attacks and seeds whose lift rose", "0", *(risen(report) for report in found)]
    at = len(kinds) + 2
    return lines_of(("", "aim", *columns), [*made[:at], rises, *made[at:]])


def risen(report: Report) -> str:
    """How often the targets gained more exposure with all defences than without."""
    gains: dict[tuple[str, int], dict[str, float]] = {}
    for run in report["runs"]:
        for kind, one in run["poison"].items():
            gained = one["poisoned"]["exposure@10"] - one["clean"]["exposure@10"]
            gains.setdefault((kind, run["seed"]), {})[run["variant"]] = gained
    rose = sum(one[ALL] > one[NONE] for one in gains.values())
    told = f"{rose} of {len(gains)}"
    return f"**{told}**" if rose else told


def defences(report: Report) -> list[str]:
    """A column per defence, without rows that say nothing about one seed or this attack."""
    rows = figures(report["summary"], report["plan"]["kinds"])
    if len(report["seeds"]) == 1:
        rows = [row for row in rows if row[0] not in (_INTERVAL, _SEEDS)]
    return lines_of(("", *report["summary"]), [row for row in rows if {*row[1:]} != {"–"}])


def figures(columns: Mapping[str, Report], kinds: Sequence[str], *, aims: bool = False) -> list[list[str]]:
    """Rows of a label and a cell per summary, with the aim between them where it is asked for."""
    rows: list[list[str]] = []

    def row(label: str, read: Callable[[Report], str], key: str = "") -> None:
        cells = [read(one) for one in columns.values()]
        if aims:
            short = [bool(key) and missed(one, key) for one in columns.values()]
            cells = [f"**{cell}**" if fell else cell for cell, fell in zip(cells, short, strict=True)]
            cells.insert(0, AIMS[key][0] if key else "")
        rows.append([label, *cells])

    for kind in kinds:
        row(f"lift taken away: {kind}", _taken(kind))
    row(
        "lift taken away, all",
        lambda one: _percent(one["exposure_lift_reduction_mean"]),
        "exposure_lift_reduction_mean",
    )
    row(_INTERVAL, lambda one: _interval(one["exposure_lift_reduction_ci"]))
    row("HR@50 lift taken away, all", _seen_50)
    row(
        "lift of text attacks taken away",
        lambda one: _percent(one["text_lift_reduction"]),
        "text_lift_reduction",
    )
    row(
        "NDCG@10, honest window",
        lambda one: _percent(one["clean_ndcg_change"], True, 2),
        "clean_ndcg_change",
    )
    row(_SEEDS, lambda one: ", ".join(_percent(x, True) for x in one["clean_ndcg_changes"]))
    row("NDCG@10 under PGD", lambda one: _percent(one["pgd_ndcg_change"], True), "pgd_ndcg_change")
    row("detector, ROC-AUC (least)", _auc, "detector_auc")
    row("fakes in quarantine", lambda one: _percent(one["caught"]))
    row(
        "honest users in quarantine",
        lambda one: _percent(one["false_quarantine"], digits=2),
        "false_quarantine",
    )
    row("– attacked window", lambda one: _percent(one["false_quarantine_attacked"], digits=2))
    row("– the busiest twentieth", lambda one: _percent(one["false_quarantine_power"], digits=2))
    row("a step costs, times", lambda one: _times(one["step_cost_ratio"]), "step_cost_ratio")
    return rows


def _seen_50(one: Report) -> str:
    """Of attacks that gained exposure at all: the rest is noise over noise."""
    known = [
        value
        for kind, value in one["hr50_lift_reduction"].items()
        if value is not None and one["exposure_lift_reduction"][kind] is not None
    ]
    return _percent(sum(known) / len(known) if known else None)


def _taken(kind: str) -> Callable[[Report], str]:
    return lambda one: _percent(one["exposure_lift_reduction"].get(kind))


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def ways(found: Sequence[Report], recipes: Sequence[Report]) -> list[str]:
    """Settings of adversarial training beside that of the recipe, at the same seeds."""
    if not found:
        return []
    rows = []
    for name in dict.fromkeys(report["dataset"] for report in found):
        asked = [report for report in found if report["dataset"] == name]
        for seeds in dict.fromkeys(tuple(report["seeds"]) for report in asked):
            same = [one for one in asked if tuple(one["seeds"]) == seeds]
            variant = next(iter(same[0]["summary"]))
            known = [
                one
                for one in recipes
                if one["dataset"] == name and {*seeds} <= {*one["seeds"]} and variant in one["summary"]
            ]
            rows += [_way(one, seeds, variant, as_recipe=one in known) for one in (*known[:1], *same)]
    header = ("data", "adversarial training", "seeds", "NDCG@10", "under PGD", "a step costs, times")
    commands = ["```bash", *(report["command"] for report in found), "```", ""]
    return ["### Other ways to train adversarially", "", *lines_of(header, rows), *commands]


def _way(report: Report, seeds: Sequence[int], variant: str, *, as_recipe: bool) -> list[str]:
    runs = [run for run in report["runs"] if run["seed"] in seeds]
    mine, bare = ([run for run in runs if run["variant"] == name] for name in (variant, NONE))

    def change(read: Callable[[Report], float]) -> str:
        return _percent(sum(map(read, mine)) / sum(map(read, bare)) - 1, True, 2)

    told = ", ".join(word.removeprefix("adversarial.") for word in changes_of(report))
    costs = [run["step_cost"] for run in mine]
    return [
        report["dataset"],
        "as in the recipe" if as_recipe else told,
        ", ".join(map(str, seeds)),
        change(lambda run: run["clean"]["ndcg@10"]),
        change(lambda run: run["pgd"]["after"]["ndcg@10"]),
        _times(sum(costs) / len(costs)),
    ]


def scratch(found: Sequence[Report]) -> list[str]:
    """Attacks that meet a training from scratch."""
    if not found:
        return []
    rows = []
    for one in found:
        targets = "head" if one["popular"] else "unpopular"
        cells = [
            f"{one['clean'][key]:.4f} → {one['poisoned'][key]:.4f}"
            for key in ("exposure@10", "hr@50", "ndcg@10")
        ]
        screened = "all" if "detector" in one else "none"
        rows.append([one["dataset"], f"{one['kind']}, {one['size']:.0%}, {targets}", screened, *cells])
    header = ("data", "attack", "defences", "targets' exposure@10", "HR@50", "NDCG@10")
    return [
        "### A training from scratch on the attacked window and all before it, seed 0",
        "",
        *lines_of(header, rows),
    ]


def _interval(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:.0%} to {pair[1]:.0%}"


def _auc(one: Report) -> str:
    if one["detector_auc"] is None:
        return "–"
    return f"{one['detector_auc']:.4f} ({one['detector_auc_least']:.4f})"


def attacks(report: Report) -> list[str]:
    """What each attack does to the targets and to all lists, without and with all defences; means over seeds."""
    variants = [NONE, *report["summary"]]
    shown = variants if len(variants) == 2 else [NONE, ALL]
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
    """NDCG@10 of groups of users and items, trust and the head's places, without and with all defences."""
    headline = report["summary"][ALL]
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
    bare, mine = reversed(headline["head_share"])
    rows.append(["share of all places that the head is shown in", "", f"{bare:.4f}", f"{mine:.4f}", ""])
    rows += trusted(report)
    lines = lines_of(("group", "queries", "without", "with defences", ""), rows)
    for warning in headline["fairness"]["warnings"]:
        lines += [f"**Hurt beyond the tolerance:** {warning}.", ""]
    return lines


def trusted(report: Report) -> list[list[str]]:
    """Mean trust of honest users in attacked windows, by how many events they have there (thirds)."""
    thirds = [
        list(one["detector"]["honest_trust_by_events"].values())
        for run in report["runs"]
        for one in run["poison"].values()
        if "detector" in one
    ]
    rows = []
    for place, name in enumerate(("few", "some", "many")):
        values = [third[place] for third in thirds if len(third) == 3]
        if values:
            mean = sum(values) / len(values)
            rows.append(
                [f"trust of honest users with {name} events in the window", "", "", f"{mean:.4f}", ""]
            )
    return rows
