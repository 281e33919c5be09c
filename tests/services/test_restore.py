"""`headrace restore` and `headrace snapshots list`: real shards, real snapshots, the real command line."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from services.commands.restore import restore, snapshots
from services.restore import Restore, Restored, restored_table, snapshots_of
from services.settings import make_settings
from streaming.backup.snapshots import SnapshotStore
from streaming.errors import StoreError
from streaming.layout import own, shard_path, store_layout
from streaming.state import open_store
from tests.streaming.oracle import Event, make_batch

SHARDS = 2


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(restore)
    app.add_typer(snapshots)
    return app


@pytest.fixture
def headrace(app, tmp_path, monkeypatch):
    """Run the command with settings for this test; gives exit code and output."""
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "headrace.toml"
    file.write_text(
        f'data_dir = "{tmp_path / "node"}"\n'
        f"[streaming]\nlogical_shards = {SHARDS}\nmap_size_gib = 0.05\n"
        f'[streaming.snapshots]\nurl = "file://{tmp_path / "backup"}"\n'
    )

    def run(*arguments):
        command, *options = arguments
        words = ["snapshots", "list"] if command == "list" else [command]
        done = CliRunner().invoke(app, [*words, "--settings", str(file), *options])
        return done.exit_code, done.output

    return run


@pytest.fixture
def settings(tmp_path):
    return make_settings(
        {
            "data_dir": tmp_path / "node",
            "streaming": {
                "logical_shards": SHARDS,
                "map_size_gib": 0.05,
                "snapshots": {"url": f"file://{tmp_path}/backup"},
            },
        }
    )


@pytest.fixture
def store(settings):
    return SnapshotStore(settings.streaming.snapshots)


def take(settings, store, root, shard, upto):
    """A snapshot of a shard elsewhere that has applied offsets up to `upto`."""
    streaming = settings.streaming
    with open_store(root / "elsewhere", root / "windows", shard, streaming) as shard_store:
        events = [Event(user=1, time_ms=10 * offset, offset=offset) for offset in range(upto + 1)]
        shard_store.apply(make_batch(events, [0] * len(events)))
        return store.save(shard_store._env, shard, json.loads(json.dumps(store_layout(streaming))))


def test_an_empty_node_gets_all_shards_and_says_what_comes_next(headrace, settings, store, tmp_path):
    for shard in range(SHARDS):
        take(settings, store, tmp_path, shard, upto=4)
        take(settings, store, tmp_path, shard, upto=9)
    code, output = headrace("restore")
    assert code == 0
    assert output.count("events/0 9") == SHARDS
    assert "Restored 2 of 2 shards" in output
    assert "`headrace up` applies what came into the topics after these offsets" in output
    for shard in range(SHARDS):
        with open_store(tmp_path / "node" / "state", tmp_path / "w", shard, settings.streaming) as restored:
            assert restored.positions()[0].applied == 9
            assert restored.rows()["total"].tolist() == [10]


def test_a_dry_run_shows_the_same_and_writes_nothing(headrace, settings, store, tmp_path):
    take(settings, store, tmp_path, 0, upto=4)
    code, output = headrace("restore", "--dry-run")
    assert code == 0
    assert "events/0 4" in output
    assert "no snapshot: starts empty" in output
    assert "nothing was written" in output
    assert not (tmp_path / "node").exists()


def test_before_takes_an_older_one_and_shard_only_that_one(headrace, settings, store, tmp_path):
    first = take(settings, store, tmp_path, 1, upto=4)
    take(settings, store, tmp_path, 1, upto=9)
    before = (first.taken_at + timedelta(milliseconds=1)).isoformat()
    code, output = headrace("restore", "--shard", "1", "--before", before)
    assert code == 0
    assert "events/0 4" in output
    assert [path.name for path in (tmp_path / "node" / "state").iterdir()] == ["shard=0001"]


def test_state_is_refused_before_anything_is_written(headrace, settings, store, tmp_path):
    for shard in range(SHARDS):
        take(settings, store, tmp_path, shard, upto=4)
    with open_store(tmp_path / "node" / "state", tmp_path / "w", 1, settings.streaming):
        pass
    code, output = headrace("restore")
    assert code == 1
    assert "shard=0001 holds state already, and nothing was restored" in " ".join(output.split())
    assert not (shard_path(tmp_path / "node" / "state", 0) / "data.mdb").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_shard_that_a_process_hosts_is_refused(dry_run, settings, store, tmp_path):
    take(settings, store, tmp_path, 0, upto=4)
    held = own(shard_path(tmp_path / "node" / "state", 0))
    with pytest.raises(StoreError, match="is hosted by process"):
        Restore(settings, store).run(dry_run=dry_run)
    assert held
    assert not (shard_path(tmp_path / "node" / "state", 0) / "data.mdb").exists()


def test_snapshots_of_other_settings_are_refused(headrace, settings, store, tmp_path):
    other = settings.model_copy(
        update={"streaming": settings.streaming.model_copy(update={"sequence_length": 9})}
    )
    take(other, store, tmp_path, 0, upto=4)
    code, output = headrace("restore")
    assert code == 1
    assert "'sequence_length': (9, 50)" in " ".join(output.split())
    assert not (shard_path(tmp_path / "node" / "state", 0) / "data.mdb").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "2"], "expected shards from 0 to 1, got [2]"),
        (["--before", "yesterday"], "--before: expected a time such as"),
        (["--from", "nosuch://x"], "Protocol not known: nosuch"),
        ([], "no snapshot in file://"),
    ],
)
def test_what_cannot_be_done_is_said(options, message, headrace):
    code, output = headrace("restore", *options)
    assert code != 0
    assert message in " ".join(output.split())


def test_without_snapshots_nothing_is_made(headrace, tmp_path):
    assert headrace("restore")[0] == 1
    assert not (tmp_path / "node").exists()


def test_the_list_shows_every_snapshot_newest_first(headrace, settings, store, tmp_path):
    for upto in (4, 9):
        take(settings, store, tmp_path, 0, upto)
    take(settings, store, tmp_path, 1, upto=5)
    code, output = headrace("list")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()[1:]] == ["0", "0", "1"]
    assert [word for word in ("events/0 9", "events/0 4", "events/0 5") if word not in output] == []
    assert output.index("events/0 9") < output.index("events/0 4")
    assert headrace("list", "--shard", "1")[1].count("events/0") == 1
    assert "No snapshots in memory://none" in headrace("list", "--from", "memory://none")[1]
    assert [info.shard for info in snapshots_of(store)] == [0, 0, 1]


def test_many_partitions_are_cut_short_and_ages_are_readable(settings, store, tmp_path):
    taken = take(settings, store, tmp_path, 0, upto=4)
    info = replace(taken, positions={f"events/{part}": 1000 * part for part in range(9)})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(restored_table([Restored(0, info, 1.25)], info.taken_at + timedelta(minutes=90)))
    text = capture.get()
    assert "events/3 3,000 and 5 more" in " ".join(text.split())
    assert "1.5 h" in text
