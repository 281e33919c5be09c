"""`headrace doctor`: finds what is wrong, says what to do, hides nothing, and changes nothing that matters."""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections import namedtuple
from types import SimpleNamespace

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from typer.testing import CliRunner

from services.cli import app
from services.dead_letters import letters_in
from services.doctor import clocks, computer, examination, models, packages, ports, remotes, storage, topics
from services.doctor.finding import ok
from services.doctor.topics import Topic
from services.settings import make_settings
from services.topic_reader import TopicReader
from streaming.broker import free_port
from streaming.kafka import ensure_topics, make_producer
from streaming.layout import shard_path
from tests.streaming.collector import collecting


@pytest.fixture
def settings(broker, tmp_path):
    """Settings under which all is well, with topics of their own."""
    name = f"doctor-{uuid.uuid4().hex[:6]}"
    made = make_settings(
        {
            "data_dir": tmp_path / "data",
            "kafka": {
                "bootstrap_servers": broker,
                "items_topic": f"{name}.items",
                "dead_letter_topic": f"{name}.dead",
                "partitions": 2,
            },
            "streaming": {"sources": [{"topic": f"{name}.events"}], "logical_shards": 4, "map_size_gib": 0.1},
            "serving": {"port": free_port()},
        }
    )
    ensure_topics(made.kafka, [made.streaming.events_topic])
    produce(made, made.kafka.items_topic, [{"item_id": "i1", "title": "One"}])
    return made


def produce(settings, topic, documents):
    producer = make_producer(settings.kafka)
    for document in documents:
        producer.send(topic, json.dumps(document).encode(), key=b"u1")
    producer.flush(timeout=20)
    producer.close()


def event(ahead_s=0.0, **more):
    now_ms = int((time.time() + ahead_s) * 1000)
    return {
        "event_id": uuid.uuid4().hex,
        "user_id": "u1",
        "item_id": "i1",
        "type": "view",
        "timestamp": now_ms,
    } | more


def changed(settings, section, **values):
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


def found(report, what, group=None):
    """The findings of a name."""
    groups = [group] if group else report
    return [finding for name in groups for finding in report[name] if finding.what == what]


def bad(findings):
    return [(finding.what, finding.level, finding.seen) for finding in findings if finding.level != "ok"]


def run_doctor(settings, tmp_path, *arguments):
    file = tmp_path / "headrace.toml"
    kafka = settings.kafka
    file.write_text(
        f'data_dir = "{settings.data_dir}"\n[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n'
        f'items_topic = "{kafka.items_topic}"\ndead_letter_topic = "{kafka.dead_letter_topic}"\n'
        f"[streaming]\nlogical_shards = 4\nmap_size_gib = 0.1\n"
        f'[[streaming.sources]]\ntopic = "{settings.streaming.events_topic}"\n'
        f"[serving]\nport = {settings.serving.port}\n"
    )
    return CliRunner().invoke(app, ["doctor", "--settings", str(file), *arguments])


def test_where_all_is_well_there_is_no_error_and_nothing_is_left_behind(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(computer, "memory", lambda: (16 * 2**30, 8 * 2**30))  # whatever else runs here
    produce(settings, settings.streaming.events_topic, [event() for _ in range(20)])
    result = run_doctor(settings, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["counts"]["error"] == 0
    seen = {(finding["group"], finding["what"]): finding for finding in told["findings"]}
    events = settings.streaming.events_topic
    assert seen["kafka", f"events in {events}"]["seen"] == "20 of the newest 20 validate"
    assert seen["kafka", f"topic {settings.kafka.items_topic}"]["seen"] == "is compacted"
    assert seen["kafka", f"writing to {settings.kafka.dead_letter_topic}"]["level"] == "ok"
    assert all(finding["advice"] for finding in told["findings"] if finding["level"] != "ok")
    # the note it wrote is no dead letter, the events are untouched, and no file stays
    with TopicReader(settings.kafka, settings.kafka.dead_letter_topic) as reader:
        assert sum(reader.ends.values()) == 1
        assert list(letters_in(reader)) == []
    with TopicReader(settings.kafka, events) as reader:
        assert sum(reader.ends.values()) == 20
    assert {path.name for path in tmp_path.iterdir()} == {"headrace.toml"}


def test_a_person_reads_what_to_do(settings, tmp_path):
    with socket.create_server(("127.0.0.1", settings.serving.port)):
        result = run_doctor(settings, tmp_path)
    assert result.exit_code == 1
    assert f"{settings.serving.port} is taken by" in result.output
    assert f"(process {os.getpid()})" in result.output
    assert "→ stop that one, or set serving.port to another" in " ".join(result.output.split())
    assert "1 error" in result.output


def test_wrong_settings_are_a_finding_among_others(tmp_path):
    file = tmp_path / "headrace.toml"
    file.write_text("[streaming]\nlogical_shard = 4\n")
    result = CliRunner().invoke(app, ["doctor", "--settings", str(file), "--json"])
    assert result.exit_code == 1
    first, *others = json.loads(result.output)["findings"]
    assert "did you mean streaming.logical_shards?" in first["seen"]
    assert {finding["group"] for finding in others} == {"python", "machine"}


# the examination itself


def test_a_check_that_fails_or_hangs_is_told_and_the_others_go_on():
    halt = threading.Event()

    def check_breaks():
        yield ok("first", "fine")
        raise RuntimeError("gone wrong")

    def check_hangs():
        halt.wait(30)
        yield ok("never", "")

    report = examination.run({"a": [check_breaks, check_hangs], "b": [lambda: [ok("other", "fine")]]}, 0.2)
    halt.set()
    assert [finding.what for finding in report["b"]] == ["other"]
    first, failed, hung = report["a"]
    assert first.level == "ok"
    assert failed.level == hung.level == "error"
    assert "RuntimeError: gone wrong" in failed.seen
    assert (hung.what, hung.seen) == ("hangs", "no answer within 0.2 s")


# the broker


def test_a_broker_that_refuses_is_the_only_finding_about_kafka(settings):
    away = changed(settings, "kafka", bootstrap_servers=f"127.0.0.1:{free_port()}")
    report = examination.examine(away, timeout_s=0.3)
    (finding,) = report["kafka"]
    assert finding.level == "error"
    assert "Connection refused" in finding.seen
    assert "kafka.bootstrap_servers" in finding.seen


def test_a_listener_that_says_nothing_does_not_hold_it_up(settings):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = changed(settings, "kafka", bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}")
        report = examination.examine(away, timeout_s=0.2)
    assert [finding.level for finding in report["kafka"]][-1] == "error"


def test_topics_that_are_not_there_are_not_made_by_asking(settings):
    missing = changed(
        settings, "kafka", items_topic="doctor.nowhere", dead_letter_topic="doctor.nowhere-either"
    )
    findings = examination.examine(missing)["kafka"]
    absent = [finding.what for finding in findings if finding.seen == "does not exist"]
    assert absent == ["topic doctor.nowhere", "topic doctor.nowhere-either"]
    again = examination.examine(missing)["kafka"]
    assert [finding.what for finding in again if finding.seen == "does not exist"] == absent


def test_a_catalogue_that_is_not_compacted_is_an_error(settings, broker):
    admin = KafkaAdminClient(bootstrap_servers=broker)
    name = f"{settings.kafka.items_topic}.flat"
    admin.create_topics([NewTopic(name, 1, 1, topic_configs={"cleanup.policy": "delete"})])
    admin.close()
    report = examination.examine(changed(settings, "kafka", items_topic=name))
    assert bad(found(report, f"topic {name}")) == [(f"topic {name}", "error", "cleanup.policy = delete")]
    assert bad(found(report, f"records in {name}")) == [
        (f"records in {name}", "warning", "none: nothing can be recommended")
    ]


def test_a_clock_that_is_ahead_shows_in_the_events(settings):
    topic = settings.streaming.events_topic
    produce(settings, topic, [event(), event(ahead_s=3000), event(ahead_s=3000)])
    (finding,) = found(examination.examine(settings), f"clock of the producers of {topic}")
    assert finding.level == "warning"
    assert "2 of 3 events are dated ahead, up to " in finding.seen


def test_records_that_do_not_validate_name_the_reason_and_the_way_out(settings):
    topic = settings.streaming.events_topic
    produce(settings, topic, [event(user_id=None) for _ in range(3)])
    (finding,) = found(examination.examine(settings), f"events in {topic}")
    assert finding.level == "error"
    assert "0 of the newest 3 validate: field user_id" in finding.seen
    assert f"headrace inspect --topic {topic}" in finding.advice


def test_more_ingestors_than_partitions_are_told(settings):
    more = changed(settings, "streaming", ingestors=3)
    (finding,) = found(examination.examine(more), "partitions")
    assert (finding.level, finding.seen) == (
        "warning",
        "2 partitions, 4 logical shards for up to 3 ingestors and 1 shard actors",
    )


# what a broker may say of topics; the embedded one does not replicate and grants everything


def topic(name="events", configs=None, **more):
    return Topic(
        name,
        **{"partitions": 4, "replicas": 3, "in_sync": 3, "configs": configs or {}, "rights": None} | more,
    )


@pytest.mark.parametrize(
    ("given", "brokers", "level"),
    [
        (topic(configs={"min.insync.replicas": "2"}), 3, "ok"),
        (topic(replicas=1, in_sync=1), 1, "ok"),
        (topic(replicas=1, in_sync=1), 3, "warning"),
        (topic(in_sync=2, configs={"min.insync.replicas": "2"}), 3, "warning"),
        (topic(in_sync=1, configs={"min.insync.replicas": "2"}), 3, "error"),
        (topic(configs={"min.insync.replicas": "3"}), 3, "warning"),
    ],
)
def test_replication(given, brokers, level):
    assert [finding.level for finding in topics.judge_replication(given, brokers)] == [level]


def test_rights_that_are_missing_are_named_with_their_use():
    needed = {"DESCRIBE": "to know its partitions", "WRITE": "to keep what does not validate"}
    (finding,) = topics.judge_rights(topic(rights=["DESCRIBE", "READ"]), needed)
    assert (finding.level, finding.seen) == ("error", "not granted: Write (to keep what does not validate)")
    assert bad(topics.judge_rights(topic(rights=["DESCRIBE", "WRITE"]), needed)) == []
    assert list(topics.judge_rights(topic(rights=None), needed)) == []


@pytest.mark.parametrize(
    ("configs", "level"),
    [
        ({}, "ok"),
        ({"retention.ms": "-1"}, "ok"),
        ({"retention.ms": "604800000"}, "ok"),
        ({"retention.ms": "7200000"}, "warning"),
        ({"retention.ms": "60000"}, "error"),
        ({"retention.ms": "604800000", "cleanup.policy": "compact"}, "error"),
    ],
)
def test_retention_of_events(settings, configs, level):
    findings = list(topics.judge_events(topic(configs=configs), settings))
    assert max((finding.level for finding in findings), key=("ok", "warning", "error").index) == level


def test_retention_must_reach_back_beyond_the_oldest_snapshot(settings):
    kept = {"url": "file:///nowhere", "every_s": 86_400.0, "keep": 3}
    snapshots = settings.streaming.snapshots.model_copy(update=kept)
    with_snapshots = changed(settings, "streaming", snapshots=snapshots)
    two_days = topic(configs={"retention.ms": str(2 * 86_400_000)})
    assert bad(topics.judge_events(two_days, settings)) == []
    assert [level for _, level, _ in bad(topics.judge_events(two_days, with_snapshots))] == ["error"]


def test_what_was_taken_in_must_fit_into_a_dead_letter():
    events = topic(configs={"max.message.bytes": "5000000"})
    small = topic("dead", configs={"max.message.bytes": "1048588"})
    assert [level for _, level, _ in bad(topics.judge_dead_letters(small, [events]))] == ["error"]
    assert bad(topics.judge_dead_letters(events, [small])) == []


@pytest.mark.parametrize(
    ("appended", "level", "seen"),
    [
        (None, "ok", "not told"),
        (10_050, "ok", "+0.0 s"),
        (13_100, "warning", "+3.0 s"),
        (7_000, "warning", "-3.0 s"),
        (90_100, "error", "+80.0 s"),
    ],
)
def test_the_clock_of_the_broker(appended, level, seen):
    finding = clocks.judge_broker(appended, before_ms=10_000, after_ms=10_100)
    assert (finding.level, seen in finding.seen) == (level, True)


def test_records_stamped_ahead_put_our_own_clock_in_doubt():
    (finding,) = clocks.judge_events("events", [1000], [1000, 9000], now_ms=2000)
    assert (finding.what, finding.level) == ("our clock against events", "warning")


# the machine

Vfs = namedtuple("Vfs", "f_bavail f_frsize f_blocks f_files f_favail")


@pytest.mark.parametrize(
    ("free_gib", "inodes", "wrong"),
    [(50, 10**6, []), (4, 10**6, ["warning"]), (0.5, 10**6, ["error"]), (50, 12, ["error"])],
)
def test_a_disk_that_is_full(settings, monkeypatch, free_gib, inodes, wrong):
    settings.data_dir.mkdir()
    stat = Vfs(int(free_gib * 2**18), 4096, 100 * 2**18, 10**7, inodes)
    monkeypatch.setattr(storage.os, "statvfs", lambda folder: stat)
    findings = bad(storage.check_data_dir(settings))
    assert [level for what, level, _ in findings if what in ("disk", "inodes")] == wrong


@pytest.mark.parametrize(
    ("kind", "level"),
    [("ext4", "ok"), ("overlay", "warning"), ("tmpfs", "warning"), ("nfs4", "error"), ("9p", "error")],
)
def test_the_kind_of_file_system(settings, monkeypatch, kind, level):
    parts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(settings.data_dir), fstype=kind),
    ]
    settings.data_dir.mkdir()
    monkeypatch.setattr(storage.psutil, "disk_partitions", lambda all: parts)
    (finding,) = [one for one in storage.check_data_dir(settings) if one.what == "file system"]
    assert (finding.level, finding.seen) == (level, f"{kind} at {settings.data_dir}")


def test_a_data_directory_that_cannot_be_written(settings, tmp_path):
    (tmp_path / "data").write_text("a file stands there")
    blocked = settings.model_copy(update={"data_dir": tmp_path / "data" / "deeper"})
    assert (
        bad(storage.check_data_dir(blocked)) == []
    )  # tmp_path can be written, which is all that is there yet
    blocked = settings.model_copy(update={"data_dir": storage.Path("/proc/headrace")})
    (finding, *_) = bad(storage.check_data_dir(blocked))
    assert finding[:2] == ("data_dir", "error")


def test_who_hosts_the_state_is_named(settings):
    folder = shard_path(settings.data_dir / "state", 1)
    folder.mkdir(parents=True)
    (folder / "owner").write_text(str(os.getpid()))
    assert bad(storage.check_holders(settings)) == []
    with (folder / "owner").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (finding,) = storage.check_holders(settings)
    assert finding.level == "warning"
    assert (
        f"1 of 4 logical shards are hosted by {storage.psutil.Process().name()} (process {os.getpid()})"
        in finding.seen
    )


def test_memory_is_that_of_the_container(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(str(4 * 2**30))
    (tmp_path / "memory.current").write_text(str(3 * 2**30))
    monkeypatch.setattr(computer, "_CGROUPS", tmp_path)
    (finding,) = computer.check_memory()
    assert (finding.level, finding.seen) == ("error", "1.0 of 4.0 GiB are free")
    (tmp_path / "memory.max").write_text("max")
    assert computer.memory()[0] == computer.psutil.virtual_memory().total


def test_a_small_dev_shm(monkeypatch):
    monkeypatch.setattr(
        computer.os, "statvfs", lambda folder: Vfs(2**14, 4096, 2**14, 1, 1)
    )  # Docker's 64 MiB
    (finding,) = computer.check_shared_memory()
    assert finding.level == "warning"
    assert "--shm-size" in finding.advice


@pytest.mark.parametrize(("hard", "level"), [(512, "error"), (4096, "warning"), (65_536, "ok"), (-1, "ok")])
def test_open_files(monkeypatch, hard, level):
    monkeypatch.setattr(computer.resource, "getrlimit", lambda what: (256, hard))
    assert [finding.level for finding in computer.check_open_files()] == [level]


def test_a_gpu_that_is_asked_for_and_not_there(settings):
    asked = changed(settings, "training", use_gpu=True)
    *_, finding = computer.check_training(asked)
    assert (finding.what, finding.level) == ("gpu", "error")
    assert [finding.what for finding in computer.check_training(settings)] == ["deepspeed"]


# ports


def test_a_headrace_that_serves_is_no_fault(settings, monkeypatch):
    with socket.create_server(("127.0.0.1", settings.serving.port)):
        monkeypatch.setattr(ports, "_answers", lambda settings: True)
        assert bad(ports.check_api_port(settings)) == []


def test_the_port_of_the_metrics_only_warns(settings):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = changed(settings, "metrics", port=stranger.getsockname()[1])
        assert [level for _, level, _ in bad(ports.check_metrics_port(taken))] == ["warning"]
        assert bad(ports.check_metrics_port(changed(taken, "metrics", enabled=False))) == []
    assert bad(ports.check_metrics_port(taken)) == []


def test_strangers_among_the_ports_of_replicas(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setenv("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", str(port - 3))
        (finding,) = [one for one in ports.check_ray_ports() if one.what == "ports of replicas, HTTP"]
    assert finding.level == "warning"
    assert f"taken {port} by {storage.psutil.Process().name()} (process {os.getpid()})" in finding.seen


def test_another_rays_address_is_an_error_outside_a_cluster(monkeypatch):
    def told():
        return [finding.seen for finding in ports.check_ray_ports() if finding.what == "RAY_ADDRESS"]

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert told() == ["is set to 10.0.0.1:6379"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.2")
    assert told() == []


def test_ephemeral_ports_matter_on_a_cluster(monkeypatch, tmp_path):
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.2")

    def level(text):
        (tmp_path / "range").write_text(text)
        return [finding.level for finding in ports.check_ray_ports() if finding.what == "ephemeral ports"]

    assert level("32768\t60999\n") == ["warning"]
    assert level("41001\t52000\n") == ["ok"]


# packages, models, and what is elsewhere


def test_a_package_that_is_missing_or_too_old(monkeypatch):
    required = ["torch>=99", "no-such-package>=1", "numpy", "peft>=1; extra == 'lora'"]
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: required)
    (finding,) = packages.check_packages()
    assert finding.level == "error"
    assert "torch is " in finding.seen
    assert "no-such-package is missing" in finding.seen
    assert "peft" not in finding.seen


def test_extras_follow_the_settings(settings, monkeypatch):
    wanting = changed(settings, "kafka", client="confluent")
    assert set(packages.wanted_extras(wanting)) == {"fast", "local"}
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    advice = [finding.advice for finding in packages.check_extras(wanting) if finding.level == "error"]
    assert advice == ["pip install 'headrace[fast]'", "pip install 'headrace[local]'"]


@pytest.mark.parametrize("name", ["someone/a-model-that-is-not-here", "folder"])
def test_an_encoder_that_is_not_here(settings, tmp_path, monkeypatch, name):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    (finding,) = models.check_text_encoder(changed(settings, "training", text_encoder=name))
    assert (finding.what, finding.level) == ("text encoder", "error")


def test_a_model_that_is_not_whole(settings):
    version = settings.data_dir / "models" / "v0001"
    version.mkdir(parents=True)
    (version.parent / "current").write_text("v0001")
    (version / "manifest.json").write_text('{"model.safetensors": "1234"}')
    assert bad(models.check_model(settings)) == [("model", "error", "v0001 lacks model.safetensors")]
    (version / "model.safetensors").write_bytes(b"")
    assert bad(models.check_model(settings)) == []


def test_the_store_of_snapshots_is_tried_and_left_as_it_was(settings, tmp_path):
    def at(url):
        return changed(
            settings, "streaming", snapshots=settings.streaming.snapshots.model_copy(update={"url": url})
        )

    assert bad(remotes.check_snapshots(at(f"file://{tmp_path}/store"))) == []
    assert list((tmp_path / "store").iterdir()) == []
    (finding,) = bad(remotes.check_snapshots(at("file:///proc/store")))
    assert finding[:2] == ("snapshots", "error")


def test_an_identity_provider_that_is_away(settings):
    jwt = {"jwks_url": f"http://127.0.0.1:{free_port()}/jwks.json", "issuer": "me", "audience": "you"}
    security = settings.serving.security
    asked = changed(
        settings, "serving", security=security.model_copy(update={"jwt": security.jwt.model_copy(update=jwt)})
    )
    assert [level for _, level, _ in bad(remotes.check_identity_provider(asked))] == ["error"]
    assert bad(remotes.check_identity_provider(settings)) == []


def test_a_collector_of_traces_is_told_of_nothing(settings):
    def at(endpoint):
        return changed(
            settings,
            "streaming",
            traces=settings.streaming.traces.model_copy(update={"endpoint": endpoint}),
        )

    with collecting() as collector:
        assert bad(remotes.check_collector(at(collector.endpoint))) == []
        assert [one.level for one in remotes.check_collector(at(collector.endpoint))] == ["ok"]
        assert collector.spans == []
    away = f"http://127.0.0.1:{free_port()}/v1/traces"
    assert [level for _, level, _ in bad(remotes.check_collector(at(away)))] == ["error"]
    assert list(remotes.check_collector(settings)) == []
    assert packages.wanted_extras(at(away))["otel"][0] == "opentelemetry.exporter.otlp"
