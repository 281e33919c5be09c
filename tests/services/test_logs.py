"""What processes log, as text and as JSON."""

import json
import logging
from datetime import datetime

import pytest
from pydantic import ValidationError

from services.named import logged
from services.settings import make_settings
from serving import request_id
from streaming import logs
from streaming.logs import LogSettings


@pytest.fixture(autouse=True)
def _as_before():
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in logs.PACKAGES}
    root.handlers[:] = [
        one for one in handlers if not isinstance(one, logs.Handler)
    ]  # a test before set one up
    request = request_id._current.set(request_id.NONE)  # what a test before began may not have ended
    yield
    request_id._current.reset(request)
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_json_says_when_where_and_what(capsys):
    logs.configure(LogSettings(format="json"), "shard-0")
    logging.getLogger("streaming.shard").warning("shard %d: %s", 3, 'no "snapshot"\nyet')
    started, line = lines(capsys)
    assert datetime.fromisoformat(line.pop("time")).utcoffset().total_seconds() == 0
    assert line.pop("pid") > 0
    assert line == {
        "level": "WARNING",
        "logger": "streaming.shard",
        "message": 'shard 3: no "snapshot"\nyet',
        "role": "shard-0",
    }
    assert started["message"] == "this process is shard-0"


def test_an_exception_stays_on_its_line(capsys):
    logs.configure(LogSettings(format="json"), "learner")
    try:
        raise ValueError("of this")
    except ValueError:
        logging.getLogger("headrace.training").exception("it failed")
    _, line = lines(capsys)
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ValueError: of this")


def test_lines_say_which_window_and_request_they_are_about(capsys):
    logs.configure(LogSettings(format="json"), "api", request_id=request_id.current)
    log = logging.getLogger("serving.engine")
    log.info("before")
    token = request_id._current.set("abc-1")
    with logs.about_window("2026-11-23T07:00:00Z"):
        log.info("within")
    log.info("after", extra={"model": "v0007"})
    request_id._current.reset(token)
    _, before, within, after = lines(capsys)
    assert not {"request_id", "window"} & before.keys()
    assert (within["request_id"], within["window"]) == ("abc-1", "2026-11-23T07:00:00Z")
    assert (after["request_id"], after["model"]) == ("abc-1", "v0007")
    assert "window" not in after


def test_text_is_for_people(capsys):
    logs.configure(LogSettings(), "trainer-0")
    with logs.about_window("2026-11-23T07:00:00Z"):
        logging.getLogger("headrace.training").info("%s promoted", "v0002")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("INFO headrace.training trainer-0 window=2026-11-23T07:00:00Z v0002 promoted")


def test_the_level_is_of_our_lines_and_others_are_shown_from_warnings_on(capsys):
    logs.configure(LogSettings(format="json", level="DEBUG"), "ingestor-0")
    logging.getLogger("streaming.ingestor").debug("ours")
    logging.getLogger("some.library").info("theirs")
    logging.getLogger("some.library").warning("theirs, but a warning")
    assert [line["message"] for line in lines(capsys)] == [
        "this process is ingestor-0",
        "ours",
        "theirs, but a warning",
    ]
    logs.configure(LogSettings(format="json", level="ERROR"), "ingestor-0")
    logging.getLogger("streaming.ingestor").warning("ours")
    assert lines(capsys) == []


def test_setting_up_again_replaces_what_was_and_what_is_started_takes_it_over(capsys):
    assert logs.installed() is None
    logs.configure(LogSettings(format="json"), "one")

    class Actor:
        def __init__(self, *arguments):
            self.seen = arguments, logs.installed()

    wanted = LogSettings(format="json", level="WARNING")
    actor = logged(Actor, wanted, "two")(1, 2)
    assert actor.seen == ((1, 2), wanted)
    assert type(actor).__name__ == "Actor"
    logging.getLogger("services").warning("once")
    assert [line["role"] for line in lines(capsys)] == ["one", "two"]


def test_settings_of_logs_come_from_the_file_and_the_environment(monkeypatch):
    assert make_settings({}).log == LogSettings(format="text", level="INFO")
    monkeypatch.setenv("HEADRACE_LOG__FORMAT", "json")
    assert make_settings({"log": {"level": "DEBUG"}}).log == LogSettings(format="json", level="DEBUG")
    with pytest.raises(ValidationError):
        LogSettings(format="xml")
