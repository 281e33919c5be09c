"""The exporter against real processes that keep real metrics in files, and end in all the ways processes do."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from services import metric_archive
from services.exporter import Exporter
from services.metric_archive import MetricArchive
from services.metrics_config import MetricsSettings
from streaming import exposition
from streaming.meters import identity

DEFINITIONS = """
import sys, time
import numpy as np
from prometheus_client import Counter
from services.metrics import ACTORS
from serving.metrics import MODEL_AGE_SECONDS, MODEL_INFO, show_model
from streaming.meters import observe_many, since
from streaming.metrics import EVENTS, FRESHNESS_SECONDS, STATE_ROWS, INGEST_LAG
"""


class Process:
    """A process that runs what it is told, with the definitions imported."""

    def __init__(self, folder):
        loop = "for line in sys.stdin:\n    exec(line)\n    print('done', flush=True)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", DEFINITIONS + loop],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __call__(self, code):
        self._process.stdin.write(code + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def end(self, how=signal.SIGKILL):
        self._process.send_signal(how)
        self._process.wait(10)


@contextmanager
def processes(folder, count):
    started = [Process(folder) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.end()


def shown(text):
    """Value by sample and labels."""
    families = text_string_to_metric_families(text if isinstance(text, str) else text.decode())
    return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}


@pytest.fixture
def exporter(tmp_path):
    running = Exporter(MetricsSettings(port=0), tmp_path)
    yield running
    running.stop()


def scrape(exporter):
    answer = httpx.get(f"http://127.0.0.1:{exporter.status().port}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    return shown(answer.text)


def test_totals_of_living_and_ended_processes_add_up_and_gauges_end_with_them(exporter, tmp_path):
    with processes(tmp_path, 2) as (first, second):
        for process, rows in ((first, 10), (second, 5)):
            process(f"EVENTS.labels('applied').inc({rows}); STATE_ROWS.set({rows})")
            process("observe_many(FRESHNESS_SECONDS, np.array([0.02, 0.2, 400.0]))")
        both = scrape(exporter)
        assert both["headrace_events_total", "applied"] == 15
        assert both["headrace_state_rows",] == 15
        assert both["headrace_freshness_seconds_count",] == 6
        assert both["headrace_freshness_seconds_bucket", "0.25"] == 4
        first.end()
        second("EVENTS.labels('applied').inc()")
        one = scrape(exporter)
        assert one["headrace_events_total", "applied"] == 16
        assert one["headrace_freshness_seconds_count",] == 6
        assert one["headrace_freshness_seconds_sum",] == pytest.approx(800.44)
        assert one["headrace_state_rows",] == 5
        assert not list(tmp_path.glob(f"*_{first.pid}-*"))
    last = scrape(exporter)
    assert last["headrace_events_total", "applied"] == 16
    assert ("headrace_state_rows",) not in last
    assert sorted(path.name for path in tmp_path.glob("*.db")) == [
        "counter_archive.2.db",
        "histogram_archive.2.db",
    ]


def test_a_new_process_of_the_same_id_is_another_one(exporter, tmp_path):
    with processes(tmp_path, 1) as [process]:
        process("EVENTS.labels('applied').inc(4); STATE_ROWS.set(7)")
        name, own = f"{process.pid}-", identity(os.getpid())
    for path in tmp_path.glob(f"*_{name}*"):  # as if this test had got the id, which is alive
        path.rename(path.with_name(path.name.replace(path.stem.split("_")[-1], f"{os.getpid()}-1")))
    assert not exposition.alive(f"{os.getpid()}-1")
    assert exposition.alive(own)
    told = scrape(exporter)
    assert told["headrace_events_total", "applied"] == 4
    assert ("headrace_state_rows",) not in told


class CutError(Exception):
    pass


@pytest.mark.parametrize(
    "step", ["before the archive", "after the archive", "between the kinds", "setting aside"]
)
def test_a_fold_that_is_cut_off_counts_nothing_twice_and_loses_nothing(step, tmp_path, monkeypatch):
    write(tmp_path / "counter_1-1.db", 5)
    MetricArchive(tmp_path).fold()
    for process in (2, 3):
        write(tmp_path / f"counter_{process}-1.db", 1)
        write(tmp_path / f"histogram_{process}-1.db", 1)

    def refuse(*_, **__):
        raise CutError

    replace, rename, left = os.replace, Path.rename, [1]

    def refuse_second(original):
        def call(*arguments):
            if not left:
                raise CutError
            left.pop()
            return original(*arguments)

        return call

    with monkeypatch.context() as patched:
        if step == "before the archive":
            patched.setattr(metric_archive.os, "replace", refuse)
        elif step == "after the archive":
            patched.setattr(
                Path, "unlink", lambda path, missing_ok=False: refuse() if path.suffix == ".db" else None
            )
        elif step == "between the kinds":
            patched.setattr(metric_archive.os, "replace", refuse_second(replace))
        else:
            patched.setattr(Path, "rename", refuse_second(rename))
        with pytest.raises(CutError):
            MetricArchive(tmp_path).fold()
    assert totals(tmp_path) == (7, 2)
    write(tmp_path / "counter_4-1.db", 10)
    MetricArchive(tmp_path).fold()
    assert totals(tmp_path) == (17, 2)
    assert len(list(tmp_path.glob("*.db"))) == 2
    assert not list(tmp_path.glob("*.tmp"))


def write(path, value):
    """A file of a process that ended."""
    kind = path.name.split("_")[0]
    family = "headrace_events" if kind == "counter" else "headrace_freshness_seconds"
    sample, labels = ("_total", {}) if kind == "counter" else ("_bucket", {"le": "+Inf"})
    file = MmapedDict(str(path))
    file.write_value(json.dumps([family, family + sample, labels, "help"]), value, 0.0)
    file.close()


def totals(folder):
    told = shown(exposition.text(folder))
    return told["headrace_events_total",], told["headrace_freshness_seconds_count",]


def test_who_reads_while_files_are_folded_sees_no_total_go_down(tmp_path):
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            told = shown(exposition.text(tmp_path))
            seen.append(told.get(("headrace_events_total",), 0.0))

    reader = threading.Thread(target=read)
    reader.start()
    for process in range(1, 101):
        made = tmp_path / "made" / f"counter_{process}-1.db"  # appears whole, as one written to for long
        made.parent.mkdir(exist_ok=True)
        write(made, process)
        made.rename(tmp_path / made.name)
        MetricArchive(tmp_path).fold()
    stop.set()
    reader.join(30)
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert totals_of_counters(tmp_path) == 5050


def test_what_a_listing_missed_while_it_was_renamed_is_read_after_all(tmp_path, monkeypatch):
    for process in (1, 2):
        write(tmp_path / f"counter_{process}-1.db", 1)
    listed, complete = [], exposition.files_of

    def files_of(folder):
        listed.append(complete(folder))
        return listed[-1][1:] if len(listed) == 1 else listed[-1]

    monkeypatch.setattr(exposition, "files_of", files_of)
    assert totals_of_counters(tmp_path) == 2


def totals_of_counters(folder):
    return shown(exposition.text(folder))["headrace_events_total",]


def test_two_exporters_of_one_folder_fold_once(tmp_path):
    for process in range(1, 41):
        write(tmp_path / f"counter_{process}-1.db", 1)
    folding = [threading.Thread(target=MetricArchive(tmp_path).fold) for _ in range(4)]
    for thread in folding:
        thread.start()
    for thread in folding:
        thread.join(30)
    assert totals_of_counters(tmp_path) == 40


def test_files_that_are_just_being_made_or_damaged_hurt_nobody(exporter, tmp_path):
    own = identity(os.getpid())
    (tmp_path / f"counter_{own}.db").touch()
    (tmp_path / f"histogram_{own}.db").write_bytes(bytes(4096))
    (tmp_path / "counter_1-1.db").touch()
    (tmp_path / "histogram_1-1.db").write_bytes(b"\xff" * 4096)
    (tmp_path / "gauge_nonsense.db").touch()
    write(tmp_path / "counter_2-1.db", 3)
    assert scrape(exporter)["headrace_events_total",] == 3


def test_names_that_went_are_not_shown_and_ages_are_those_of_the_oldest(exporter, tmp_path):
    with processes(tmp_path, 3) as (first, second, third):
        first("show_model('v1', 'trained', time.time() - 1000)")
        second("show_model('v1', 'trained', time.time() - 1000)")
        first("show_model('v2', 'trained', time.time() - 10)")
        told = scrape(exporter)
        assert told["headrace_model_info", "trained", "v2"] == 1
        assert told["headrace_model_info", "trained", "v1"] == 1
        assert told["headrace_model_age_seconds",] >= 1000
        second("show_model('v2', 'trained', time.time() - 10)")
        third("MODEL_AGE_SECONDS.set(float('nan'))")
        told = scrape(exporter)
        assert ("headrace_model_info", "trained", "v1") not in told
        assert 10 <= told["headrace_model_age_seconds",] < 1000
        first("ACTORS.labels('shard', 'down').set(0)")
        assert scrape(exporter)["headrace_actors", "down", "shard"] == 0  # a zero that says something
        second.end()
        first("show_model(None, 'popular')")
        assert ("headrace_model_age_seconds",) not in scrape(exporter)


def test_what_other_programs_keep_in_the_folder_is_not_shown_and_does_not_pile_up(exporter, tmp_path):
    with processes(tmp_path, 1) as [process]:
        process("Counter('theirs', 'of a library', ['a']).labels('b').inc()")
        stranger = subprocess.run(
            [
                sys.executable,
                "-c",
                "from prometheus_client import Counter; Counter('headrace_not', '').inc()",
            ],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            timeout=60,
            check=True,
        )
        assert stranger.returncode == 0
        assert len(list(tmp_path.glob("counter_*.db"))) == 2
        told = scrape(exporter)
        assert all(name.startswith("headrace_") for name, *_ in told)
        assert not any(name.startswith("headrace_not") for name, *_ in told)
        assert len(list(tmp_path.glob("counter_*.db"))) == 1


def test_a_port_that_is_taken_is_a_named_problem_until_it_is_free(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exporter = Exporter(MetricsSettings(port=port), tmp_path)
        status = exporter.status()
        assert status.port is None
        assert f"no metrics at 127.0.0.1:{port}" in status.error
        assert "metrics.port" in status.error
    deadline = time.monotonic() + 20
    while exporter.status().port != port and time.monotonic() < deadline:
        time.sleep(0.05)
    assert exporter.status() == exporter.status()
    assert (exporter.status().port, exporter.status().error) == (port, None)
    exporter.stop()


def test_without_a_folder_the_status_says_what_to_set():
    status = Exporter(MetricsSettings(port=0)).status()
    assert status.port is None
    assert "PROMETHEUS_MULTIPROC_DIR" in status.error
