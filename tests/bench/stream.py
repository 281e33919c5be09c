"""Events per second, end to end: Headrace beside Bytewax and Quix Streams, in one run on one machine.

    make bench-stream REPORT=f.json            about 10 minutes
    python -m tests.bench.stream --only headrace_confluent --rounds 1 --no-visible --set batch_records=5000

The topic is produced once. Then the systems take turns, `--rounds` times over, so that whatever drifts on the machine
hits all of them; medians are compared. The broker is one more process on the same cores, for everybody. Before each
turn the machine is given up to 20 s to become quiet. How the clock runs stands in headrace.py,
peer_bytewax.py and peer_quix.py. Every turn's counts are checked: a system that loses or doubles an event fails.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.machine import machine
from services.machine import versions as installed
from streaming.broker import EmbeddedBroker
from tests.bench import peers, producer
from tests.bench.peers import BenchError, Run, Stream
from tests.bench.pipeline import TUNING, quiet
from tests.bench.profiling import profile_table
from tests.bench.report import HEADRACE, NAMES, PEERS, make_report, speed_table, visible_line
from tests.bench.workload import make_workload

TOPIC = "bench"
DEFAULT = (*HEADRACE, *PEERS, "bytewax_tuned")
CLIENTS = {"headrace_kafka_python": "kafka-python", "headrace_confluent": "confluent"}
OURS = ("headrace", "ray", "kafka-python", "confluent-kafka", "pyarrow", "lmdb", "numpy")
THEIRS = ("bytewax", "quixstreams", "confluent-kafka", "orjson")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--events", type=int, default=1_000_000, help="records on the topic (%(default)s)")
    parser.add_argument("--users", type=int, default=100_000, help="users they are of (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every system (%(default)s)")
    parser.add_argument(
        "--only",
        default=",".join(DEFAULT),
        help=f"systems, separated by commas, of {', '.join(NAMES)}; `headrace` means both of its clients",
    )
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=Path(".venv-peers"),
        help="environment of the peers; made from peers.txt where absent (%(default)s)",
    )
    parser.add_argument(
        "--peer-processes", type=int, default=2, help="processes of a peer: 2 was faster than 1 (%(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a streaming setting for Headrace, e.g. ingestors=2; several times if wanted",
    )
    parser.add_argument("--no-visible", action="store_true", help="leave out the produce-to-visible latency")
    parser.add_argument(
        "--visible-seconds", type=float, default=30, help="length of that load, s (%(default)s)"
    )
    parser.add_argument("--visible-rate", type=float, help="its events/s; default: half of Headrace's median")
    parser.add_argument(
        "--soak", type=float, default=0, metavar="SECONDS", help="only this: memory over time"
    )
    parser.add_argument("--soak-users", type=int, default=20_000, help="users of the soak (%(default)s)")
    parser.add_argument("--soak-rate", type=float, default=20_000, help="events/s of the soak (%(default)s)")
    parser.add_argument(
        "--profile", action="store_true", help="after the rounds, one more Headrace run under py-spy"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".bench"), help="folder for logs, profiles and samples (%(default)s)"
    )
    return parser.parse_args()


def systems(only: str) -> list[str]:
    """The systems asked for, in their order.

    Raises:
        BenchError: there is no such system.
    """
    asked = [name.strip() for name in only.split(",") if name.strip()]
    wanted = {name for entry in asked for name in (HEADRACE if entry == "headrace" else (entry,))}
    unknown = wanted - set(NAMES)
    if unknown:
        raise BenchError(f"--only: expected some of headrace, {', '.join(NAMES)}; got {', '.join(unknown)}")
    return [name for name in NAMES if name in wanted]


def overrides(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs, numbers as numbers.

    Raises:
        BenchError: one is not a pair.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise BenchError(f"--set: expected NAME=VALUE, got {pair!r}")
        found[name] = json.loads(value) if value and value[0] in '0123456789-[{"tfn' else value
    return found


class Bench:
    """One run of the benchmark against one broker."""

    def __init__(self, options: argparse.Namespace, broker: EmbeddedBroker, console: Console) -> None:
        self.options, self.broker, self.console = options, broker, console
        self.overrides = overrides(options.set)
        self.names = self._available(systems(options.only))
        if any(name not in HEADRACE for name in self.names):  # fail before an hour's work, not after
            self.python = peers.ensure_peers(options.peers_venv.absolute())
        self.out: Path = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)

    def rounds(self, stream: Stream) -> list[dict[str, dict[str, Any]]]:
        """Let the systems take turns."""
        found: list[dict[str, dict[str, Any]]] = []
        for number in range(self.options.rounds):
            entry: dict[str, dict[str, Any]] = {}
            found.append(entry)
            shift = number % len(self.names)  # nobody always comes after the same one
            for name in self.names[shift:] + self.names[:shift]:
                load = quiet()
                run = self._runner(name)(stream)
                entry[name] = run.figures() | {"load_before_percent": load}
                self.console.print(
                    f"round {number + 1}  {NAMES[name]:26} {run.events_per_s:>10,.0f} events/s  "
                    f"{run.seconds:6.2f} s, {run.cpu_s:6.2f} s of CPU"
                )
                # Quix Streams keeps a copy of its state in the broker's memory
                producer.delete_topics(self.broker.bootstrap_servers, ("changelog__",))
        return found

    def _runner(self, name: str) -> Callable[[Stream], Run]:
        if name in HEADRACE:
            return lambda stream: peers.run_headrace(stream, CLIENTS[name], self.overrides, self.out)
        python, count = self.python, self.options.peer_processes
        if name == "quixstreams":
            return lambda stream: peers.run_quix(stream, python, count, self.out)
        style = "tuned" if name == "bytewax_tuned" else "documented"
        return lambda stream: peers.run_bytewax(stream, python, style, count, self.out)

    def _available(self, names: list[str]) -> list[str]:
        if "headrace_confluent" in names and importlib.util.find_spec("confluent_kafka") is None:
            self.console.print("confluent-kafka is not installed (pip install 'headrace\\[fast]'): left out")
            return [name for name in names if name != "headrace_confluent"]
        return names

    def fastest(self, speeds: dict[str, float | None]) -> str:
        """The Headrace of the two that was faster, or the first asked for."""
        ours = [name for name in self.names if name in HEADRACE] or list(HEADRACE)[:1]
        return max(ours, key=lambda name: speeds.get(name) or 0)

    def load(self, module: str, name: str, rate: float, seconds: float, **more: Any) -> dict[str, Any]:
        """Headrace under a paced load on a topic of its own: `visible` or `soak`."""
        data_dir = Path(tempfile.mkdtemp(prefix=f"{module}-", dir=self.out))
        spec = {
            "broker": self.broker.bootstrap_servers,
            "topic": f"{TOPIC}.{module}.{name}",
            "client": CLIENTS[name],
            "data_dir": str(data_dir),
            "events_per_s": rate,
            "seconds": seconds,
            "users": self.options.users,
            "overrides": self.overrides,
            **more,
        }
        try:
            return peers.run_module(module, spec, self.out / f"{module}.log", 2 * seconds + 240)
        finally:
            shutil.rmtree(data_dir, ignore_errors=True)

    def profile(self, stream: Stream, name: str) -> Path:
        """One more run under py-spy; returns the folder of the profiles."""
        folder = self.out / "profile" / name
        shutil.rmtree(folder, ignore_errors=True)
        peers.run_headrace(stream, CLIENTS[name], self.overrides, self.out, folder)
        return folder


def versions(
    peers_python: Path | None, ours: Sequence[str] = OURS, theirs: Sequence[str] = THEIRS
) -> dict[str, str]:
    """What was compared: packages of this environment, and of the peers' where there is one."""
    found = installed(*ours)
    if peers_python is not None:
        listed = subprocess.run(
            [str(peers_python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        peer_versions = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
        found |= {f"peers: {name}": version for name, version in peer_versions.items() if name in theirs}
    return found


def soak_table(soak: dict[str, Any]) -> Table:
    """Memory of each process, and whether it grows."""
    table = Table(
        title=f"memory over {soak['seconds']:.0f} s at {soak['events_per_s']:,.0f} events/s",
        title_justify="left",
    )
    table.add_column("process", style="bold")
    for column in ("resident, MiB", "slope, MiB/min", "anonymous, MiB", "slope, MiB/min"):
        table.add_column(column, justify="right")
    for name, found in soak["processes"].items():
        values = (
            "rss_last_mib",
            "rss_slope_mib_per_min",
            "anonymous_last_mib",
            "anonymous_slope_mib_per_min",
        )
        table.add_row(name, *("–" if found[key] is None else f"{found[key]:.2f}" for key in values))
    return table


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All that the options ask for; prints as it goes, returns the report."""
    with EmbeddedBroker() as broker:
        bench = Bench(options, broker, console)
        if options.soak:
            samples = str(bench.out / "soak.jsonl")
            name = bench.fastest({})
            soak = bench.load(
                "soak", name, options.soak_rate, options.soak, samples_file=samples, users=options.soak_users
            )
            console.print(soak_table(soak))
            return {"machine": machine(), "versions": versions(None), "soak": soak}
        workload = make_workload(options.events, options.users)
        producer.create_topic(broker.bootstrap_servers, TOPIC)
        seconds = producer.produce(broker.bootstrap_servers, TOPIC, workload)
        console.print(f"{len(workload):,} events of {options.users:,} users produced in {seconds:.1f} s")
        stream = Stream.of(broker.bootstrap_servers, TOPIC, workload)
        rounds = bench.rounds(stream)
        with_peers = any(name not in HEADRACE for name in bench.names)
        extra = {
            "workload": {"events": len(workload), "users": options.users, "duplicates": workload.duplicates},
            "headrace": {client: settings | bench.overrides for client, settings in TUNING.items()},
            "machine": machine(),
            "versions": versions(options.peers_venv.absolute() / "bin" / "python" if with_peers else None),
        }
        report = make_report(rounds, None, **extra)
        console.print(speed_table(report))
        visible: dict[str, dict[str, Any]] = {}
        for name in [] if options.no_visible else [each for each in bench.names if each in HEADRACE]:
            rate = options.visible_rate or (report["events_per_s"][name] or 0) / 2
            visible[name] = bench.load("visible", name, rate, options.visible_seconds)
            console.print(f"{NAMES[name]}, {visible_line(visible[name])}")
        if visible:  # the headline is the client that everybody has, which comes first
            report = make_report(rounds, next(iter(visible.values())), visible=visible, **extra)
        if options.profile:
            for ours in [each for each in bench.names if each in HEADRACE]:
                console.print(f"[bold]{NAMES[ours]}[/]")
                console.print(profile_table(bench.profile(stream, ours)))
        return report


def main() -> int:
    """The command."""
    options, console = arguments(), Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        report = run(options, console)
    except (BenchError, OSError, TimeoutError) as error:
        console.print(f"[bold red]bench:[/] {error}", soft_wrap=True, markup=True)
        return 1
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {options.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
