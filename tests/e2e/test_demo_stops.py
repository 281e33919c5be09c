"""Ctrl-C ends a demo within ten seconds and leaves no process behind."""

import os
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
    log = tmp_path / "log"
    mark = f"headrace-test-{os.getpid()}-{number}"
    command = [
        sys.executable,
        "-m",
        "services.cli",
        "demo",
        "--dataset",
        str(dataset),
        "--port",
        str(free_port()),
    ]
    with log.open("wb") as out:
        demo = subprocess.Popen(
            [*command, "--data-dir", str(tmp_path / "data")],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HEADRACE_TEST_MARK": mark},
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while "history applied" not in log.read_text(errors="replace") and time.monotonic() < deadline:
        assert demo.poll() is None, log.read_text(errors="replace")[-3000:]
        time.sleep(0.2)
    assert len(marked(mark)) > 5
    started = time.monotonic()
    demo.send_signal(number)
    demo.wait(30)
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 10  # what was killed may take a moment to be gone
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []


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
