"""The whole system, small: broker, Ray, both applications, a learnable stream (`tests.e2e.ring`), HTTP."""

import json
import os
import re
from pathlib import Path

import httpx
import lmdb
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from services.applications import wait_until
from services.cli import app
from services.metric_catalog import families
from streaming import environment
from streaming.backup.snapshots import SnapshotStore
from streaming.catalog import CatalogReader
from streaming.config import SnapshotSettings, TraceSettings
from streaming.hashing import hash_one
from streaming.layout import shard_path, store_layout
from streaming.windows import complete_windows, read_window
from tests.e2e.ring import NUM_ITEMS, NUM_USERS, WINDOW_MS, ring_settings, ring_system
from tests.streaming.collector import collecting
from training.bundle import load_bundle, save_bundle
from training.data import from_window
from training.gate import Contender, judge, make_exam
from training.items import ItemSlots, build_table
from training.model import SequenceModel
from training.registry import Registry


@pytest.fixture(scope="module")
def collector():
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def system(broker, ray_session, tmp_path_factory, collector):
    training = {"min_initial_windows": 3, "initial_events": 20 * NUM_USERS, "initial_epochs": 60}
    folder = tmp_path_factory.mktemp("system")
    settings = ring_settings(broker, folder, "system", training | {"max_seconds_initial": 20})
    traces = TraceSettings(endpoint=collector.endpoint, share=0)
    settings = settings.model_copy(
        update={"streaming": settings.streaming.model_copy(update={"traces": traces})}
    )
    with ring_system(settings) as running:
        yield running


def test_before_any_model_it_answers_from_popularity(system):
    wait_until(lambda: system.http.get("/readyz").status_code == 200, 60, "readiness")
    system.walk(1)
    wait_until(lambda: system.recommend("u3")["state"]["events"] == 1, 30, "the first event in the state")
    answer = system.recommend("u3", k=5)
    assert answer["model"]["kind"] == "popular"
    assert len(answer["items"]) == 5
    assert system.recommend("nobody")["state"]["known"] is False


def test_the_first_model_is_trained_gated_and_served(system):
    system.walk(25)
    wait_until(lambda: system.recommend("u3")["model"]["kind"] == "trained", 150, "the first trained model")
    correct = 0
    for user in range(NUM_USERS):
        items = [item["item_id"] for item in system.recommend(f"u{user}", k=3, exclude_seen=False)["items"]]
        correct += f"i{(system.place[user] + 1) % NUM_ITEMS}" in items
    assert correct > 0.8 * NUM_USERS
    version = system.get("/v1/models")["versions"][-1]
    assert version["status"] == "promoted"
    assert version["eval"]["candidate"]["ndcg@10"] > version["eval"]["popularity"]["ndcg@10"]


def test_an_event_over_http_changes_the_next_ranking(system):
    before = system.recommend("visitor", exclude_seen=False)
    assert before["state"]["known"] is False
    event = {"user_id": "visitor", "item_id": "i30", "type": "view"}
    sent = system.http.post("/v1/events", json={"events": [event]})
    assert sent.status_code in {200, 202}, sent.text
    system.sent += 1
    wait_until(lambda: system.recommend("visitor")["state"]["known"], 20, "the event in the state")
    after = system.recommend("visitor", exclude_seen=False, k=3)
    assert "i31" in [item["item_id"] for item in after["items"]]
    assert any("Stop number 30" in reason for item in after["items"] for reason in item["reasons"])
    newest = system.get("/v1/users/visitor")["events"][-1]
    assert newest["title"] == "Stop number 30"
    assert newest["time"].startswith("1970-")  # dated by the stream, not by the clock


def test_a_new_window_makes_a_new_candidate_with_a_verdict(system):
    trained = len(system.get("/v1/models")["versions"])
    system.walk(8)
    wait_until(lambda: len(judged(system)) > trained, 90, "a verdict on the next candidate")
    newest = judged(system)[0]
    assert newest["reason"]
    assert newest["eval"]["incumbent"]["ndcg@10"] > 0
    assert newest["eval"]["candidate"]["attacked_ndcg@10"] is not None


def judged(system):
    return [model for model in system.get("/v1/models")["versions"] if model["status"] != "candidate"]


def test_every_event_is_accounted_for_and_metrics_are_exported(system):
    wait_until(lambda: system.get("/v1/stats")["events"]["applied"] == system.sent, 30, "all events applied")
    stats = system.get("/v1/stats")
    assert stats["events"]["dead_lettered"] == 0
    assert stats["users"] == NUM_USERS + 1
    assert set(stats["actors"].values()) == {"up"}
    assert "headrace_request_duration_seconds" in system.http.get("/metrics").text
    assert system.get("/openapi.json")["info"]["title"] == "Headrace"


# metrics of what this system does not do
NOT_HERE = {
    "headrace_snapshots_total",  # no snapshots are configured
    "headrace_snapshot_age_seconds",
    "headrace_quarantined_users",  # too few users to screen
    "headrace_trust_decisions_total",
    "headrace_impressions_lost_total",
    *(
        f"headrace_experiment_{name}"
        for name in ("share", "rankings_total", "failures_total", "duration_seconds")
    ),
}


def test_one_scrape_shows_every_metric_of_every_process(system):
    wait_until(lambda: system.get("/v1/stats")["events"]["applied"] == system.sent, 30, "all events applied")
    [exporter] = system.get("/v1/stats")["metrics"]["exporters"]
    found = [
        list(text_string_to_metric_families(httpx.get(url, timeout=10, trust_env=False).text))
        for url in (
            f"http://{exporter['host']}:{exporter['port']}/metrics",
            f"{system.http.base_url}/metrics",
        )
    ]
    by_node, by_api = [{s.name: s.value for shown in one for s in shown.samples} for one in found]
    expected = {f.name + ("_count" if f.kind == "histogram" else "") for f in families()} - NOT_HERE
    expected -= {f"{name}_count" for name in NOT_HERE}
    assert expected - by_node.keys() == set()
    assert expected - by_api.keys() == set()
    topic = {"topic": system.settings.streaming.events_topic}
    records = [
        s.value
        for shown in found[0]
        for s in shown.samples
        if s.name == "headrace_ingest_records_total" and s.labels == topic
    ]
    assert records == [system.sent]
    # counters outlive processes, so they may be of systems that this Ray ran before, too
    assert by_node["headrace_freshness_seconds_count"] >= system.sent
    assert by_node["headrace_state_rows"] == NUM_USERS + 1
    assert by_node["headrace_exporter_processes"] >= 7


def test_every_process_logs_json_and_names_no_user(system):
    folder = Path(os.environ["HEADRACE_RAY_SESSION"], "ray", "session_latest", "logs")
    lines = [line for file in folder.glob("*.err") for line in file.read_text(errors="replace").splitlines()]
    told = [json.loads(line) for line in lines if line.startswith('{"level"')]
    kinds = {line["role"].split("-")[0] for line in told}
    assert {"api", "supervisor", "shard", "ingestor", "catalog", "learner", "trainer", "exporter"} <= kinds
    assert any(
        "window" in line
        for line in told
        if line["message"].endswith("promoted") or "promoted:" in line["message"]
    )
    assert not [line for line in told if re.search(r"\bu\d+\b|visitor", line["message"])]


def test_requests_events_and_rounds_of_training_are_traced(system, collector):
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    event = {"user_id": "traced", "item_id": "i30", "type": "view"}
    headers = {"traceparent": f"00-{trace}-{caller}-01"}
    assert system.http.post("/v1/events", json={"events": [event]}, headers=headers).status_code == 202
    system.sent += 1
    whole = {"POST /v1/events", "ingest", "apply", "batch"}
    told = collector.wait_for(lambda told: whole <= {span.name for span in told if span.trace == trace})
    assert {span.role for span in told if span.trace == trace} == {"api", "ingestor", "shard"}
    first = min((span for span in told if span.name == "round"), key=lambda span: span.start_ns)
    assert first.role == "trainer"
    assert first.attributes["version"] == system.get("/v1/models")["versions"][-1]["version"]
    parts = {span.name for span in told if span.parent == first.span}
    assert parts == {"train", "report", "judge"}


def test_no_port_of_the_ingress_is_one_that_every_ray_takes(system):
    # one per node
    [config] = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.glob("*/haproxy.cfg")
    ports = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", config.read_text())}
    assert int(os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]) in ports
    assert not ports & {8500, 9500}


def test_scaling_moves_the_shards_of_the_running_system(system):
    def scale(*arguments):
        done = CliRunner().invoke(app, ["scale", "--url", str(system.http.base_url), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    system.walk(1)
    assert "shard actors 1 → 2" in scale("--shards", "2")
    system.walk(1)
    wait_until(lambda: system.get("/v1/stats")["events"]["applied"] == system.sent, 30, "all events applied")
    assert "shard actors 2 → 1" in scale("--shards", "1")
    system.walk(1)
    wait_until(lambda: system.get("/v1/stats")["events"]["applied"] == system.sent, 30, "all events applied")
    assert system.get("/v1/stats")["events"]["duplicates"] == 0
    too_many = CliRunner().invoke(app, ["scale", "--url", str(system.http.base_url), "--shards", "3"])
    assert too_many.exit_code == 2
    assert "expected 1 to 2 (the logical shards), got 3" in too_many.output


def test_a_forgotten_user_is_in_no_state_no_window_and_no_snapshot(system, tmp_path):
    user = hash_one("u5")
    assert any(user in users_of(window) for window in system.windows())
    before = system.get("/v1/users/u5")["total"]
    done = system.http.delete("/v1/users/u5")
    assert done.status_code == 202, done.text
    wait_until(lambda: system.http.get("/v1/users/u5").status_code == 410, 20, "the erasure")
    [proof] = system.http.get("/v1/users/u5").json()["erasures"]
    assert (proof["offset"], proof["events"]) == (done.json()["offset"], before)
    assert proof["windows"]
    assert system.recommend("u5")["state"]["known"] is False
    assert not any(user in users_of(window) for window in system.windows())

    known = len(system.windows())
    system.send("u5", "i1", 1)  # comes late, from the erased past
    for step in range(3):
        for other in range(10, 20):
            system.send(f"u{other}", f"i{step}", system.time_ms)
        system.time_ms += WINDOW_MS
    system.producer.flush(timeout=10)
    wait_until(lambda: len(system.windows()) > known, 30, "a later window")
    assert not any(user in users_of(window) for window in system.windows())
    assert system.http.get("/v1/users/u5").status_code == 410
    wait_until(lambda: system.get("/v1/stats")["events"]["erased"] == 1, 20, "the count of the late event")

    store = SnapshotStore(SnapshotSettings(url=f"file://{tmp_path}/snapshots"))
    shard = user % system.settings.streaming.logical_shards
    env = environment.open_reader(shard_path(system.settings.data_dir / "state", shard))
    store.save(env, shard, store_layout(system.settings.streaming))
    environment.close(env)
    store.restore(shard, tmp_path / "restored")
    with lmdb.open(str(tmp_path / "restored"), max_dbs=4, readonly=True) as copy, copy.begin() as txn:
        assert txn.get(user.to_bytes(8, "big"), db=copy.open_db(b"rows", txn, create=False)) is None
        assert txn.get(user.to_bytes(8, "big"), db=copy.open_db(b"proofs", txn, create=False)) is not None


def users_of(window):
    return set(read_window(window.path, ["user"])["user"].to_pylist())


def test_a_broken_candidate_is_rejected_and_the_api_says_why(system):
    """The gate's own functions on the newest window that the live system closed, with scrambled weights."""
    settings = system.settings
    registry = Registry(settings.data_dir / "models")
    current = registry.current()
    incumbent = load_bundle(registry.path(current))
    catalog = CatalogReader(settings.data_dir / "catalog").snapshot()
    window = complete_windows(settings.data_dir / "windows", settings.streaming.logical_shards)[-1]
    unseen = from_window(read_window(window.path))
    slots = ItemSlots(incumbent.config.id_capacity)
    table = build_table(
        slots, catalog.hashes, catalog.ids, catalog.vectors, unseen.items, incumbent.config.text_dim
    )
    broken = SequenceModel(incumbent.config)
    exam = make_exam(
        unseen, table, np.ones(len(table), np.float32), settings.training.gate, length=20, name=window.name
    )
    order = np.argsort(incumbent.item_hashes)
    known = incumbent.item_slots[order][np.searchsorted(incumbent.item_hashes[order], table.hashes)]
    verdict = judge(
        Contender("broken", broken, table.slots),
        Contender(current, incumbent.model, known),
        exam,
        settings.training.gate,
    )
    assert not verdict.promote
    save_bundle(
        registry.models_dir,
        "broken",
        model=broken,
        table=table,
        popularity=exam.popularity,
        event_types=settings.streaming.event_types,
        evaluation={"promoted": verdict.promote, "reason": verdict.reason, **verdict.numbers},
        lineage={"parent": current},
    )
    registry.reject("broken", verdict.reason)
    stored = json.loads((registry.path("broken") / "eval.json").read_text())
    listed = {model["version"]: model for model in system.get("/v1/models")["versions"]}["broken"]
    assert listed["status"] == "rejected"
    assert "NDCG@10" in listed["reason"]
    assert listed["reason"] == stored["reason"] == verdict.reason
    promoted = {current, registry.current()}  # the learner may have promoted another one meanwhile
    assert system.recommend("u1")["model"]["version"] in promoted
