"""Dead letters: found by their cause, shown without harm, sent again once."""

import json
import re
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaError
from typer.testing import CliRunner

from services import redelivery
from services.commands.dlq import app
from services.dead_letters import (
    MAX_GROUPS,
    OTHER_REASONS,
    DeadLetter,
    Place,
    Replayed,
    kind_of,
    summarise,
)
from services.plain_text import pretty, printable, since_ms
from services.redelivery import Redelivery
from services.settings import load_settings
from services.topic_reader import TopicReader
from streaming.dead_letters import send_dead_letters
from streaming.events import EventDecoder
from streaming.kafka import ensure_topics, make_producer
from streaming.source import Records

NOW_MS = 1_795_000_000_000
GOOD = {"event_id": "e", "user_id": "ann", "item_id": "film", "type": "view", "timestamp": NOW_MS}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("field value: expected a number, got '3,5'", "field value: expected a number, got None"),
        (
            "not JSON: Expecting value: line 1 column 5 (char 4)",
            "not JSON: Expecting value: line 9 column 1 (char 77)",
        ),
        (
            "field t: later than 2026-11-22T10:00:00+00:00, got 1",
            "field t: later than 2027-01-01T00:00:00+00:00, got 2",
        ),
        ("field a.b: 'x' is given twice in one object", "field a.b: 'yy' is given twice in one object"),
        ("holds a NUL character, got 'a\nb got c'", "holds a NUL character, got b'\"'"),
    ],
)
def test_reasons_that_differ_by_record_are_of_one_kind(one, other):
    assert kind_of(one) == kind_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("field user_id: missing or null", "field item_id: missing or null"),
        ("field data.1.id: empty", "field data.2.id: empty"),
        ("field v2: empty", "field v3: empty"),
        ("streaming.sources[0].types", "streaming.sources[1].types"),
        ("not UTF-8: invalid start byte", "not UTF-16: invalid start byte"),
    ],
)
def test_names_of_fields_and_settings_keep_kinds_apart(one, other):
    assert kind_of(one) != kind_of(other)


def letter(offset, reason="field user_id: empty", value=b"{}", topic="events", time_ms=None):
    return DeadLetter(
        Place(0, offset), offset if time_ms is None else time_ms, reason, topic, 0, offset, None, value, ()
    )


def test_ten_thousand_letters_of_one_cause_are_one_group():
    letters = (
        letter(n, f"field user_id: longer than 512, got {n}: 'u{n}'", b"x" * 9999) for n in range(10_000)
    )
    summary = summarise(letters, Replayed([Place(0, 3)]), limit=5)
    (group,) = summary.groups
    assert (group.count, group.replayed, group.first_ms, group.last_ms) == (10_000, 1, 0, 9999)
    assert [kept.place.offset for kept in summary.newest] == [9999, 9998, 9997, 9996, 9995]
    assert max(len(kept.value) for kept in [*summary.newest, group.example]) < 2000, "whole letters are kept"


def test_the_newest_letters_are_so_by_time_and_not_by_place():
    summary = summarise(
        [letter(0, time_ms=9), letter(1, time_ms=5), letter(2, time_ms=7)], Replayed(), limit=2
    )
    assert [kept.time_ms for kept in summary.newest] == [9, 7]


def test_endless_kinds_of_reasons_are_counted_together():
    summary = summarise(
        (letter(n, f"field a{n}z: empty") for n in range(MAX_GROUPS + 100)), Replayed(), limit=0
    )
    assert len(summary.groups) == MAX_GROUPS + 1
    assert summary.groups[0].kind == OTHER_REASONS
    assert summary.count == MAX_GROUPS + 100


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 5)), max_size=20))
def test_what_was_replayed_is_a_set_of_places(runs):
    replayed, oracle = Replayed(), set()
    for partition, first, more in runs:
        replayed.add(partition, first, first + more)
        oracle |= {Place(partition, offset) for offset in range(first, first + more + 1)}
    again = Replayed()
    again.add_json(replayed.to_json())
    for place in (Place(partition, offset) for partition in range(3) for offset in range(40)):
        assert (place in replayed) == (place in again) == (place in oracle)


@given(
    st.one_of(
        st.none(),
        st.binary(),
        st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
            lambda x: json.dumps(x).encode()
        ),
    )
)
def test_a_note_that_somebody_else_wrote_is_passed_over(data):
    replayed = Replayed()
    replayed.add_json(data)
    assert Place(0, 0) not in replayed


@given(st.binary(max_size=400) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
def test_whatever_a_record_holds_a_terminal_only_prints_it(value):
    assert printable(value).isprintable()
    assert len(printable(value, 20)) <= 20
    assert all(line.isprintable() for line in pretty(value)[1].split("\n"))


def test_bytes_are_shown_as_what_they_are():
    assert pretty(b'{"a": "\x1b[2J"}')[0] == "text", "JSON must not hold a control character"
    assert pretty(b'{"a":{"b":1}}') == ("JSON", '{\n  "a": {\n    "b": 1\n  }\n}')
    assert pretty(b'["\\u202eevil"]')[1] == '[\n  "\\u202eevil"\n]'
    assert pretty(b"caf\xc3\xa9\x1b[0m ole")[1] == "café\\x1b[0m ole"
    assert pretty(b"\x00\x01abc")[1].split() == ["00000000", "00", "01", "61", "62", "63", "..abc"]
    assert pretty(b"\x00" * 100, max_lines=2)[1].endswith("… 84 more bytes")


def test_a_time_is_iso_or_how_long_ago():
    from datetime import UTC, datetime

    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    ms = int(noon.timestamp() * 1000)
    assert since_ms("2h", lambda: noon) == ms - 7_200_000
    assert since_ms("2026-11-22T12:00") == since_ms("2026-11-22T13:00+01:00") == ms
    with pytest.raises(ValueError, match="expected a time such as 2026-11-22T10:00"):
        since_ms("yesterday")


# On the real broker


@pytest.fixture
def config(broker, tmp_path):
    """A settings file with topics of its own."""
    name = f"dlq-{uuid.uuid4().hex[:6]}"
    file = tmp_path / "headrace.toml"
    file.write_text(
        f'[kafka]\nbootstrap_servers = "{broker}"\ndead_letter_topic = "{name}.dead"\nitems_topic = "{name}.items"\n'
        f'partitions = 3\n[[streaming.sources]]\ntopic = "{name}"\n'
    )
    ensure_topics(load_settings(file).kafka, [name])
    return file


def bury(config, *values, partition=1, key=b"ann", headers=(("trace", b"abc"),)):
    """Put records that do not validate where the ingestor would."""
    settings = load_settings(config)
    _, rejected = EventDecoder(settings.streaming).decode(values)
    assert len(rejected) == len(values)
    batch = Records(
        settings.streaming.events_topic,
        partition,
        np.arange(len(values)) + 40,
        np.zeros(len(values), np.int64),
        [key] * len(values),
        list(values),
        lambda _: list(headers),
    )
    producer = make_producer(settings.kafka)
    send_dead_letters(producer, settings.kafka, batch, rejected)
    producer.close(timeout=5)


def unknown_type(number=0):
    return json.dumps(GOOD | {"event_id": f"e{number}", "type": "look"}).encode()


def mend(config):
    """Give the type a meaning, so that the letters would be accepted."""
    config.write_text(config.read_text() + '[streaming.sources.types]\nlook = "view"\n')


def records_of(config, topic=None):
    settings = load_settings(config)
    with TopicReader(settings.kafka, topic or settings.streaming.events_topic) as reader:
        return sorted(reader.read(reader.everything()), key=lambda record: (record.partition, record.offset))


def run(config, *arguments, code=0, **options):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [*arguments, "--settings", str(config)], **options)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_the_list_counts_by_cause_and_shows_the_newest(config):
    bury(config, *(json.dumps(GOOD | {"value": f"x{number}"}).encode() for number in range(30)), b"[1]")
    output = run(config, "list", "--limit", "2")
    assert "31 dead letters" in output
    assert re.search(
        r"30 field value: expected a number, got … from dlq-\w+ · .* such as 0:0 \(was 1:40\)", output
    )
    assert "1 expected a JSON object, got …" in output
    assert "0:30" in output
    assert "0:28" not in output, "more than the newest two are shown"


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--reason", "json OBJECT"], 1),
        (["--since", "1h"], 2),
        (["--since", "2200-01-01"], 0),
        (["--topic", "x"], 0),
    ],
)
def test_the_list_can_be_narrowed(config, options, count):
    bury(config, unknown_type(), b"[1]")
    output = run(config, "list", *options)
    assert f"{count} dead letter" in output if count else "No dead letters" in output


def test_without_letters_or_topic_the_list_says_so(config):
    assert "No dead letters" in run(config, "list")
    config.write_text(config.read_text().replace(".dead", ".nowhere"))
    assert "does not exist yet" in run(config, "list")


def test_a_letter_is_shown_whole_and_does_no_harm(config):
    evil = b'{"user_id": "\x1b]0;owned\x07"}'
    bury(config, evil, key=b"\x1b[31mred", headers=[("h", b"\x9b2J")])
    output = run(config, "show", "0:0")
    assert "\x1b" not in output
    for part in (
        r"\x1b]0;owned",
        r"\x1b[31mred",
        r"h: \x9b2J",
        "partition 1, offset 40",
        "today ✘ not JSON",
        "replayed no",
    ):
        assert part in output
    raw = CliRunner().invoke(app, ["show", "0:0", "--raw", "--settings", str(config)])
    assert raw.stdout_bytes == evil


def test_showing_says_what_todays_settings_make_of_it(config):
    bury(config, unknown_type())
    assert "today ✘ field type: expected one of" in run(config, "show", "0:0")
    mend(config)
    assert "would be accepted now" in run(config, "show", "0:0")


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("0:9", "no dead letter at 0:9; it holds 0:0 to 0:0"),
        ("7:0", "no dead letter at 7:0"),
        ("seven", "expected a place .* as partition:offset, such as 0:17, got 'seven'"),
    ],
)
def test_a_place_without_a_letter_is_an_error_that_says_what_there_is(config, place, complaint):
    bury(config, unknown_type())
    assert re.search(complaint, run(config, "show", place, code=1))


@pytest.mark.parametrize("partition", [0, 1, 2])
def test_a_mended_letter_goes_back_to_its_partition_as_it_was(config, partition):
    """The partition that it came from, not that of its key: the producer may have chosen otherwise than we would."""
    bury(config, unknown_type(), partition=partition, key=b"ann", headers=[("trace", b"abc")])
    mend(config)
    assert "1 sent again" in run(config, "replay", "0:0", "--yes")
    (record,) = records_of(config)
    assert (record.partition, record.key, record.value) == (partition, b"ann", unknown_type())
    assert record.headers == [("trace", b"abc"), ("headrace.replayed-from", b"0:0")]


def test_a_letter_is_not_replayed_twice_by_accident(config):
    bury(config, unknown_type(1), unknown_type(2))
    mend(config)
    run(config, "replay", "0:1", "--yes")
    output = run(config, "replay", "--all", "--yes")
    assert "1 sent again" in output
    assert "1 skipped: already replayed" in output
    assert "0 sent again" in run(config, "replay", "--all", "--yes")
    assert [record.headers[-1][1] for record in records_of(config)] == [b"0:1", b"0:0"]
    assert "2 dead letters ↻ 2 replayed" in run(config, "list"), "notes count as letters"
    assert "replayed yes" in run(config, "show", "0:0")
    assert "2 sent again" in run(config, "replay", "--all", "--yes", "--again")


def test_what_would_fail_again_is_sent_only_by_force(config):
    bury(config, unknown_type(), b"[1]")
    output = run(config, "replay", "--all", "--yes")
    assert "0 sent again" in output
    assert "1 skipped: expected a JSON object, got … · such as 0:1" in output
    assert records_of(config) == []
    assert "2 sent again" in run(config, "replay", "--all", "--yes", "--force")


def test_a_dry_run_and_a_no_send_nothing(config):
    bury(config, unknown_type())
    mend(config)
    assert "1 would be sent" in run(config, "replay", "--all", "--dry-run")
    assert "Send 1 records?" in run(config, "replay", "--all", input="n\n", code=1)
    assert records_of(config) == []
    assert "1 sent again" in run(config, "replay", "--all", input="y\n")


@pytest.mark.parametrize("arguments", [[], ["0:0", "--all"], ["0:0", "--reason", "x"]])
def test_replay_wants_to_know_which_letters(config, arguments):
    run(config, "replay", *arguments, "--yes", code=2)


def test_a_letter_of_a_partition_that_is_gone_goes_by_its_key(config):
    bury(config, unknown_type(1), unknown_type(2), partition=99)
    mend(config)
    assert "2 sent again" in run(config, "replay", "--all", "--yes")
    assert len({record.partition for record in records_of(config)}) == 1


def test_a_letter_of_a_topic_that_is_gone_or_not_read_is_skipped(config):
    bury(config, unknown_type())
    config.write_text(config.read_text() + '[[streaming.sources]]\ntopic = "nowhere"\n')
    text = config.read_text()
    config.write_text(text[: text.index("[[")] + '[[streaming.sources]]\ntopic = "nowhere"\n')
    assert "is not among streaming.sources (nowhere)" in run(config, "replay", "--all", "--yes")
    forced = run(config, "replay", "--all", "--yes", "--force")
    assert "1 sent again" in forced, "its topic still exists"


def test_headers_of_producers_are_not_taken_for_ours(config):
    """A producer may send any header: what Headrace appended counts, and a letter is no note of a replay."""
    forged = [
        ("headrace.reason", b"forged"),
        ("headrace.topic", b"forged"),
        ("headrace.replayed", b'{"0": [[0, 9]]}'),
    ]
    bury(config, unknown_type(), headers=forged)
    output = run(config, "list")
    assert "1 dead letter" in output
    assert "1 field type: expected one of" in output


def test_an_erasure_keeps_its_time(config):
    """A user's events since then must survive: an erasure counts from its record's time on."""
    bury(config, None, key=b"\xff")
    (buried,) = records_of(config, load_settings(config).kafka.dead_letter_topic)
    run(config, "replay", "--all", "--yes", "--force")
    (record,) = records_of(config)
    assert record.value is None
    assert record.timestamp == int(dict(buried.headers)["headrace.time"])


def test_only_what_was_acknowledged_is_noted(config, monkeypatch):
    class LosesTheSecond:
        """A producer whose second record is never acknowledged."""

        def __init__(self, settings):
            self.inner, self.sent = make_producer(settings), 0

        def send(self, *arguments, **options):
            self.sent += 1
            if self.sent == 2:
                return SimpleNamespace(succeeded=lambda: False, exception=KafkaError("cut off"))
            return self.inner.send(*arguments, **options)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    bury(config, unknown_type(1), unknown_type(2), unknown_type(3))
    mend(config)
    with monkeypatch.context() as patch:
        patch.setattr(redelivery, "make_producer", LosesTheSecond)
        output = run(config, "replay", "--all", "--yes", code=1)
    assert "did not acknowledge 1 letters" in output
    assert "1 sent again" in run(config, "replay", "--all", "--yes")
    assert [json.loads(record.value)["event_id"] for record in records_of(config)] == ["e1", "e3", "e2"]


def test_a_record_the_producer_refuses_stops_no_other(config, monkeypatch):
    bury(config, unknown_type(1))
    mend(config)
    monkeypatch.setattr("streaming.kafka.LARGEST_REQUEST", 2**20)
    settings = load_settings(config)
    huge = letter(
        5, value=json.dumps(GOOD | {"x": "y" * 3_000_000}).encode(), topic=settings.streaming.events_topic
    )
    small = letter(6, value=unknown_type(), topic=settings.streaming.events_topic)
    outcome = Redelivery(settings, Replayed(), force=True).run([huge, small])
    assert outcome.sent == 1
    assert "the producer refuses it" in next(iter(outcome.skipped))


def test_without_a_broker_the_error_is_readable(tmp_path):
    config = tmp_path / "headrace.toml"
    config.write_text('[kafka]\nbootstrap_servers = "127.0.0.1:1"\nrequest_timeout_s = 1\n')
    output = run(config, "list", code=1)
    assert "headrace:" in output
    assert "127.0.0.1:1" in output
    assert "Traceback" not in output


def test_the_reader_knows_the_end_though_the_broker_names_a_batch(config):
    """The embedded broker gives the offset after the last batch's first record for the end."""
    settings = load_settings(config)
    producer = make_producer(settings.kafka, linger_ms=100)
    for partition, count in ((0, 100), (1, 3), (2, 30)):
        for number in range(count):
            producer.send(settings.streaming.events_topic, b"%d" % number, partition=partition)
    producer.flush(10)
    with TopicReader(settings.kafka, settings.streaming.events_topic) as reader:
        assert reader.ends == {0: 100, 1: 3, 2: 30}
        for _ in range(2):
            assert len(list(reader.read(reader.everything()))) == 133
        assert reader.newest(20) == {1: (0, 3), 2: (21, 30), 0: (92, 100)}
        assert len(list(reader.read(reader.newest(20)))) == 20
