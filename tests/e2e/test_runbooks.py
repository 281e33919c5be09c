"""Every command of docs/operations.md that needs no cluster is run, in the order of the page.

Most need a broker and a data directory; those that ask the API need a running Headrace, which takes a minute.
"""

import json
import re
import shlex
import subprocess
import uuid

import httpx
import pytest
from ray import serve
from typer.testing import CliRunner

from services.actors import kill_actors
from services.cli import app
from services.doctor import computer
from services.settings import make_settings
from streaming import environment
from streaming.backup.snapshots import SnapshotStore
from streaming.broker import free_port
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_producer
from streaming.layout import shard_path, store_layout
from streaming.state import open_store
from tests.faults import serving_system
from tests.faults.pipeline import wait_until
from tests.runbook import commands
from tests.streaming.oracle import Event, make_batch

KEY = f"hr_test_{uuid.uuid4().hex}"
LINES = commands("headrace", "curl", "mkdir", "rm")
ASKING = [line for line in LINES if line.startswith(("curl", "headrace scale"))]
LOCAL = [line for line in LINES if line not in ASKING]


def run(line, **meant):
    """Run a line, with words of the page replaced by what they mean here; returns its output."""
    for word, here in meant.items():
        line = line.replace(word, here)
    words, env = shlex.split(line), {"COLUMNS": "200"}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words[0] != "headrace":
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout
    result = CliRunner(env=env).invoke(app, words[1:])
    assert result.exit_code == 0, (line, result.output)
    return result.output


def variables(settings):
    """Settings as a shell has them; a variable of one setting still goes before its section's."""
    serving = settings.serving.model_dump(mode="json", exclude={"admin_api_key"})
    return {
        "HEADRACE_DATA_DIR": str(settings.data_dir),
        "HEADRACE_KAFKA": settings.kafka.model_dump_json(),
        "HEADRACE_STREAMING": settings.streaming.model_dump_json(),
        "HEADRACE_SERVING": json.dumps(serving),
    }


@pytest.fixture
def shop(broker, tmp_path, monkeypatch):
    """A shell in a folder with some state, a snapshot of it, events and a dead letter."""
    name = f"runbook-{uuid.uuid4().hex[:6]}"
    settings = make_settings(
        {
            "data_dir": tmp_path / "data",
            "kafka": {
                "bootstrap_servers": broker,
                "items_topic": f"{name}.items",
                "dead_letter_topic": f"{name}.dead",
            },
            "streaming": {
                "sources": [{"topic": f"{name}.events"}],
                "logical_shards": 1,
                "map_size_gib": 0.1,
                "snapshots": {"url": f"file://{tmp_path}/snapshots"},
            },
            "serving": {"port": free_port()},
            "metrics": {"port": 0},
        }
    )
    ensure_topics(settings.kafka, [settings.streaming.events_topic])
    producer, kafka = make_producer(settings.kafka), settings.kafka
    event = {
        "event_id": "e1",
        "user_id": "u1",
        "item_id": "i1",
        "type": "view",
        "timestamp": 1_790_000_000_000,
    }
    producer.send(settings.streaming.events_topic, json.dumps(event).encode())
    producer.send(kafka.items_topic, json.dumps({"item_id": "i1", "title": "One"}).encode(), key=b"i1")
    why = [
        ("headrace.reason", b"not valid JSON"),
        ("headrace.topic", settings.streaming.events_topic.encode()),
    ]
    producer.send(kafka.dead_letter_topic, b"no event", headers=why)
    producer.flush(timeout=20)
    producer.close()
    with open_store(
        settings.data_dir / "state", settings.data_dir / "windows", 0, settings.streaming
    ) as store:
        store.apply(make_batch([Event(hash_one("u1"), time_ms=1_760_000_000_000)], [1_760_000_400_000]))
        env = environment.open_reader(shard_path(settings.data_dir / "state", 0))
        SnapshotStore(settings.streaming.snapshots).save(env, 0, store_layout(settings.streaming))
        environment.close(env)
    for variable, value in (variables(settings) | {"HEADRACE_METRICS__PORT": "0"}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    return settings


def test_commands_that_need_a_broker_and_a_folder(shop, monkeypatch):
    monkeypatch.setattr(computer, "memory", lambda: (16 * 2**30, 8 * 2**30))  # whatever else runs here
    said = {line: run(line, **{"--topic events": f"--topic {shop.streaming.events_topic}"}) for line in LOCAL}
    assert "checks are well" in said["headrace doctor"]
    assert json.loads(said["headrace doctor --json"])["counts"]["error"] == 0
    assert "Restored 1 of 1 shards" in said["HEADRACE_DATA_DIR=drill headrace restore"].replace("\n", " ")
    assert "not valid JSON" in said["headrace dlq list"]
    assert not (shop.data_dir.parent / "drill").exists()


@pytest.fixture
def system(ray_session, tmp_path, monkeypatch):
    """The whole of Headrace with one replica, two models and some users."""
    monkeypatch.setattr(serving_system, "REPLICAS", 1)
    with serving_system.System(tmp_path / "data", admin_api_key=KEY) as running:
        for variable, value in (variables(running.settings) | {"HEADRACE_API_KEY": KEY}).items():
            monkeypatch.setenv(variable, value)
        monkeypatch.chdir(tmp_path)
        yield running
        serve.shutdown()
        kill_actors()


@pytest.mark.slow
def test_commands_that_ask_the_api(system):
    meant = {"localhost:8000": system.url.removeprefix("http://"), "/VERSION/": "/v0002/", "/USER": "/u7"}
    said = {}
    for line in ASKING:
        said[line] = run(line, **meant)
        if "/promote" in line:
            wait_until(lambda: system.versions() == {"v0002"}, 30, "the version that was rolled back to")
        if "--request DELETE" in line:
            wait_until(lambda: httpx.get(f"{system.url}/v1/users/u7").status_code == 410, 30, "the erasure")
    assert "shard actors 2 → 1, ingestors 2 → 1" in said["headrace scale --shards 1 --ingestors 1"]
    assert '"erasures"' in said[ASKING[-1]]  # the proof
