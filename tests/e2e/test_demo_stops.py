"""Ctrl-C ends a demo within ten seconds and leaves no process behind."""

import os
import re
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.broker import free_port


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = 500
    columns = {
        "user_id": [f"u{row % 9}" for row in range(rows)],
        "item_id": [f"i{row % 30}" for row in range(rows)],
    }
    columns |= {"timestamp_ms": [row * 1000 for row in range(rows)], "event_type": ["view"] * rows}
    pq.write_table(
        pa.table(columns | {"value": pa.nulls(rows, pa.float32())}), folder / "interactions.parquet"
    )
    items = {"item_id": [f"i{row}" for row in range(30)], "title": [f"Item {row}" for row in range(30)]}
    lists = pa.array([["c"]] * 30, pa.list_(pa.string()))
    pq.write_table(
        pa.table(items | {"description": [""] * 30, "categories": lists}), folder / "items.parquet"
    )
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(dataset, tmp_path, number):
    demo = Demo(dataset, tmp_path, number)
    try:
        demo.wait_until_busy(120)
        demo.stop()
    finally:
        demo.process.kill()


@pytest.mark.slow
def test_of_two_demos_each_stops_alone(dataset, tmp_path):
    demos = [Demo(dataset, tmp_path / number.name, number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        for demo in demos:
            demo.wait_until_busy(180)
        first, second = demos
        first.stop()
        assert second.process.poll() is None
        assert len(marked(second.mark)) > 5
        second.stop()
    finally:
        for demo in demos:
            demo.process.kill()


class Demo:
    """A demo in a process of its own, whose descendants carry a mark."""

    def __init__(self, dataset, folder, number):
        folder.mkdir(exist_ok=True)
        self.log, self.number = folder / "log", number
        self.mark = f"headrace-test-{os.getpid()}-{number.name}"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.cli", "demo"),
                    *("--dataset", str(dataset), "--port", str(free_port())),
                    *("--data-dir", str(folder / "data")),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"HEADRACE_TEST_MARK": self.mark},
                start_new_session=True,
            )

    def wait_until_busy(self, timeout_s):
        """Until everything runs: a history this short may be applied between two lines of the view."""
        deadline = time.monotonic() + timeout_s
        while not re.search("history applied|first model", self.log.read_text(errors="replace")):
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(marked(self.mark)) > 5

    def stop(self):
        """Send the signal; within ten seconds nothing of it is left."""
        started = time.monotonic()
        self.process.send_signal(self.number)
        self.process.wait(30)
        assert time.monotonic() - started < 10
        deadline = time.monotonic() + 10  # what was killed may take a moment to be gone
        while marked(self.mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert marked(self.mark) == []


def marked(mark):
    """Living processes that inherited the mark."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ:
                if mark.encode() in environ.read():
                    found.append(pid)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found
