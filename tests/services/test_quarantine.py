"""`headrace quarantine`: whom the detector holds, what they did, and what people decide about it."""

import json
import uuid

import numpy as np
import pytest
from typer.testing import CliRunner

from services.commands.quarantine import app
from services.quarantine import Quarantine, QuarantineError
from services.settings import load_settings
from services.topic_reader import TopicReader
from services.user_ids import find_ids
from streaming.catalog import CatalogStore, Item
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_producer
from streaming.state import open_store
from streaming.trust import decide, decisions_file, name_of, read_decisions, trust_file, weights, write_trust
from tests.streaming.oracle import Event, make_batch

HOUR = 3_600_000
MONDAY = 1_760_313_600_000
CROWD = "5 of 21 items are new favourites of 60 like-minded newcomers"


@pytest.fixture
def config(tmp_path):
    """Settings whose windows hold ann, bob and cat in two hours; the detector holds bob in both and cat in one."""
    file = tmp_path / "headrace.toml"
    file.write_text(
        f'data_dir = "{tmp_path}/data"\n[serving]\nport = 9\n[streaming]\nlogical_shards = 1\nmap_size_gib = 0.05\n'
    )
    settings = load_settings(file)
    data = settings.data_dir
    catalog = CatalogStore(data / "catalog", 0.05)
    catalog.apply([("film", Item(item_id="film", title="The Third Man"))], 0, 0)
    catalog.close()
    events = [
        Event(hash_one(user), hash_one(item), 0, MONDAY + hour * HOUR + place, offset=3 * hour + place)
        for hour in (0, 1, 3)
        for place, (user, item) in enumerate((("ann", "film"), ("bob", "film"), ("cat", "gone")))
    ]
    with open_store(data / "state", data / "windows", 0, settings.streaming) as store:
        starts = [event.time_ms // HOUR * HOUR for event in events]
        store.apply(make_batch(events, starts))
    hold(data, MONDAY, bob=0.2, cat=0.1)
    hold(data, MONDAY + HOUR, bob=0.0)
    return file


def hold(data, start_ms, **held):
    users = np.array([hash_one(user) for user in held], np.uint64)
    trust = np.array(list(held.values()), np.float32)
    write_trust(data, start_ms, users, trust, np.ones(len(users), bool), [CROWD] * len(users))


def run(config, *arguments, code=0, **options):
    command = CliRunner(env={"COLUMNS": "140"})
    result = command.invoke(app, [*arguments, "--settings", str(config)], **options)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def data_of(config):
    return load_settings(config).data_dir


def tag(user):
    return name_of(hash_one(user))


def test_list_says_who_is_held_since_when_and_why(config):
    output = run(config, "list")
    assert "2 users, 2 screened windows" in output
    assert f"{tag('bob')} 2025-10-13 00:00 2 2 0.00 held {CROWD}" in output
    assert output.index(tag("bob")) < output.index(tag("cat"))  # held last comes first
    assert tag("ann") not in output
    assert "1 more (--limit)" in run(config, "list", "--limit", "1")
    assert tag("cat") not in run(config, "list", "--since", "2025-10-13T00:30")


def test_list_as_json(config):
    bob, cat = json.loads(run(config, "list", "--json"))
    assert (bob["user"], bob["status"], bob["events"], bob["decision"]) == (tag("bob"), "held", 2, None)
    assert [window["window"] for window in bob["windows"]] == ["2025-10-13T00:00:00Z", "2025-10-13T01:00:00Z"]
    assert cat["windows"] == [{"window": "2025-10-13T00:00:00Z", "trust": 0.1, "reason": CROWD}]


def test_where_nobody_is_held_it_says_so(config):
    data = data_of(config)
    for hour in (0, 1):
        trust_file(data, MONDAY + hour * HOUR).unlink()
    assert run(config, "list") == "Nobody is held, after 0 screened windows."
    assert json.loads(run(config, "list", "--json")) == []
    assert "Nobody is held" in run(config, "release", "--all-held", "--yes")


@pytest.mark.parametrize("named", ["bob", tag("bob"), tag("bob").upper()[:8]])
def test_show_tells_what_a_user_did_in_the_windows_in_which_he_was_held(config, named):
    output = run(config, "show", named)
    assert "status held" in output
    assert "state trust 1.00" in output
    assert (
        f"2025-10-13T01:00:00Z trust 0.00 1 event {CROWD} 2025-10-13 01:00:00 view film The Third" in output
    )
    assert "03:00:00" not in output  # he was not held then
    assert ("id bob" in output) == (named == "bob")
    assert "not in the catalogue" in run(config, "show", "cat")


def test_show_as_json(config):
    shown = json.loads(run(config, "show", "bob", "--json"))
    assert shown["user_id"] == "bob"
    assert shown["state_trust"] == 1
    assert [event["title"] for event in shown["events"]] == ["The Third Man"] * 2


def test_release_makes_everything_count_again_and_hold_takes_it_back(config):
    data, users = data_of(config), np.array([hash_one(user) for user in ("ann", "bob", "cat")], np.uint64)
    assert weights(data, MONDAY, users).tolist() == [1, 0, 0]
    assert f"1 user released: {tag('bob')}" in run(
        config, "release", "bob", "--note", "a fan club", "--by", "eve"
    )
    assert weights(data, MONDAY, users).tolist() == [1, 1, 0]
    assert weights(data, MONDAY + HOUR, users).tolist() == [1, 1, 1]
    assert tag("bob") not in run(config, "list")
    assert tag("bob") in run(config, "list", "--all")
    assert "by eve: a fan club" in run(config, "show", "bob")
    run(config, "hold", "bob", "ann")
    assert weights(data, MONDAY, users).tolist() == [0, 0, 0]
    assert "3 users" in run(config, "list")


def test_all_who_are_held_are_released_after_a_question(config):
    assert "Release: 2 users?" in run(config, "release", "--all-held", code=1, input="n\n")
    assert read_decisions(data_of(config)) == {}
    run(config, "release", "--all-held", "--yes")
    assert {made.decision for made in read_decisions(data_of(config)).values()} == {"released"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "ann"], "was never held"),
        (["release", "ann"], "was never held"),
        (["show", "#0000"], "the beginning of none of those in quarantine"),
        (["list", "--since", "soon"], "--since: expected a time"),
        (["release"], "hashes in quotes"),
        (["purge", "bob", "--all-held"], "or else --all-held"),
        (["hold"], "hashes in quotes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(config, arguments, said):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--settings", str(config)])
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
    assert not decisions_file(data_of(config)).exists()


def test_a_beginning_that_fits_two_users_is_refused(config):
    settings = load_settings(config)
    for user in (0xABCD << 48, 0xABCD << 48 | 1):
        decide(settings.data_dir, user, "held")
    with pytest.raises(QuarantineError, match="beginning of 2 of those in quarantine: #abcd0000"):
        Quarantine(settings).find("#abcd")
    assert Quarantine(settings).find("#abcd000000000001").user == 0xABCD << 48 | 1


def test_a_damaged_file_is_named(config):
    trust_file(data_of(config), MONDAY).write_bytes(b"PAR1")
    assert "remove it, and the window counts as not screened" in run(config, "list", code=1)


@pytest.fixture
def online(config, broker):
    """The same with topics of its own on the real broker, and no pipeline."""
    name = f"quarantine-{uuid.uuid4().hex[:6]}"
    config.write_text(
        config.read_text()
        + f'[kafka]\nbootstrap_servers = "{broker}"\nitems_topic = "{name}.items"\npartitions = 2\n'
        f'dead_letter_topic = "{name}.dead"\n[[streaming.sources]]\ntopic = "{name}"\n'
        'fields.user_id = "who.id"\n'
    )
    settings = load_settings(config)
    ensure_topics(settings.kafka, [name])
    producer = make_producer(settings.kafka)
    for number, user in enumerate(("ann", "bob", "ann")):
        event = {"event_id": str(number), "who": {"id": user}, "item_id": "film", "type": "view"}
        value = json.dumps(event | {"timestamp": MONDAY}).encode()
        producer.send(name, value, key=b"some other key").get(10)
    producer.send(name, b"no event at all").get(10)
    producer.close(timeout=5)
    return config


def test_ids_are_found_in_the_events_topics(online):
    settings = load_settings(online)
    wanted = np.array([hash_one(user) for user in ("bob", "cat")], np.uint64)
    assert find_ids(settings, wanted) == {hash_one("bob"): "bob"}
    bob = json.loads(run(online, "list", "--ids", "--json"))[0]
    assert (bob["user"], bob["user_id"]) == (tag("bob"), "bob")


def test_without_a_pipeline_a_purge_waits_in_the_topic_and_says_so(online):
    settings = load_settings(online)
    output = run(online, "purge", "--all-held", "--yes", code=1)
    assert f"1 user purged: {tag('bob')}" in output
    assert "1 could not be purged, as no events topic holds a record of theirs any more" in output
    assert f"needs the id ({tag('cat')})" in output
    assert "no pipeline runs here: the erasure waits in the topic" in output
    with TopicReader(settings.kafka, settings.streaming.events_topic) as reader:
        newest = max(reader.read(reader.everything()), key=lambda record: record.timestamp)
    assert newest.key == b"bob"
    assert json.loads(newest.value)["type"] == "$forget"
    assert [made.decision for made in read_decisions(settings.data_dir).values()] == ["purged"]
    output = run(online, "purge", "cat", code=1)
    assert "no pipeline runs here: the erasure waits in the topic, and `headrace up` carries it out" in output
