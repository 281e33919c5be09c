"""A live system under attack: fake users in a window that it learns from, and what its users are shown afterwards.

People have five tastes among 300 items; half of them come in each window. The attack is what `headrace attack stream`
sends. Everything is real: the broker, the pipeline, the learner on Ray Train, the API. Fine-tuning is set so that it
follows the newest window closely, as otherwise a single attack would do nothing even undefended.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve

from services.actors import kill_actors
from services.applications import run, wait_until
from services.client import ApiClient
from services.settings import Settings, make_settings
from services.streamed_attack import Order, Planned, exposure, plan, send
from streaming.broker import free_port
from streaming.catalog import CatalogReader
from streaming.hashing import stable_hash
from streaming.kafka import ensure_topics, make_producer
from streaming.reader import StateReader
from streaming.trust import read_trust
from streaming.windows import WindowFiles, complete_windows, iso, read_window
from training.battery import run_battery
from training.bundle import load_bundle
from training.data import Sequences, from_window
from training.gate import Contender, make_exam
from training.items import ItemSlots, build_table
from training.learner import request_stop
from training.model import SequenceModel
from training.offline import Trainer
from training.registry import Registry
from training.warden import trusted_window

ITEMS, USERS, ACTIVE, TASTES = 300, 400, 120, 5
FIRST = 6  # windows that the first model learns from; the next one is its exam
ATTACKED = FIRST + 1
WINDOW_MS, START_MS = 100_000, 1_000_000
PEOPLE = [  # far apart, so that no fake user gets the id of somebody who is yet to come
    f"u{number}"
    for number in np.random.default_rng(2).choice(np.arange(10_000, 100_000), USERS, replace=False)
]
SHARE = 1.0 / (100 + np.arange(ITEMS))
SCREENED = True  # whether the system defends itself; without, these tests fail


def settings_for(broker: str, data_dir: Path) -> Settings:
    kafka = {name: f"poisoned.{name}" for name in ("items_topic", "dead_letter_topic")}
    model = {"dim": 32, "blocks": 1, "heads": 1, "length": 20, "id_capacity": 512, "repeats": "plain"}
    return make_settings(
        {
            "data_dir": data_dir,
            "kafka": kafka | {"bootstrap_servers": broker, "partitions": 2},
            "streaming": {
                "sources": [{"topic": "poisoned.events"}],
                "max_past_s": 4e9,
                "logical_shards": 2,
                "map_size_gib": 0.25,
                "sequence_length": 20,
                "windows": {"length_s": WINDOW_MS / 1000, "lateness_s": 0},
            },
            "training": {
                "model": model,
                "trust": {"enabled": SCREENED, "simulations": 2},
                "adversarial": {"enabled": False},
                "gate": {"min_targets": 50, "max_targets": 800, "unseen_only": False, "ndcg_tolerance": 0.3}
                | {"attacked_ndcg_tolerance": 0.9},
                "min_initial_windows": FIRST + 1,
                "initial_epochs": 8,
                "max_seconds_initial": 20,
                "epochs_per_window": 10,
                "window_lr": 1e-2,
                "replay_ratio": 0,
                "max_seconds_per_window": 20,
            },
            "serving": {"port": free_port(), "admin_open": True, "stream_clock": True},
            "metrics": {"port": 0},
        }
    )


class System:
    """The running system, and the honest part of its stream."""

    def __init__(self, settings: Settings, base: str) -> None:
        self.settings = settings
        self.api = ApiClient(base, timeout_s=10)
        self.producer = make_producer(settings.kafka)
        self.registry = Registry(settings.data_dir / "models")

    def catalogue(self) -> None:
        for item in range(ITEMS):
            record = {"item_id": f"i{item}", "title": f"Thing {item} of taste {item % TASTES}"}
            self.producer.send(
                self.settings.kafka.items_topic, json.dumps(record).encode(), key=b"i%d" % item
            )

    def people(self, number: int) -> None:
        """A window of people with 3 to 14 items each, mostly of their taste."""
        rng = np.random.default_rng([1, number])
        events: list[tuple[int, int, int]] = []
        for user in rng.choice(USERS, ACTIVE, replace=False).tolist():
            weights = SHARE * np.where(np.arange(ITEMS) % TASTES == user % TASTES, 20.0, 1.0)
            count = int(rng.integers(3, 15))
            items = rng.choice(ITEMS, count, replace=False, p=weights / weights.sum()).tolist()
            times = start_of(number) + np.sort(rng.integers(0, WINDOW_MS, count))
            events += zip(times.tolist(), [user] * count, items, strict=True)
        for time_ms, user, item in sorted(events):
            event = {"event_id": f"{user}-{item}-{number}", "user_id": PEOPLE[user], "item_id": f"i{item}"}
            value = json.dumps(event | {"type": "view", "timestamp": time_ms}).encode()
            self.producer.send(self.settings.streaming.events_topic, value, key=PEOPLE[user].encode())
        self.producer.flush(timeout=30)

    def learned(self, number: int) -> str | None:
        """The version that learned from a window, once it is judged."""
        for info in self.registry.versions():
            lineage = json.loads((self.registry.path(info.version) / "lineage.json").read_text())
            if iso(start_of(number)) in lineage["windows"] and info.status != "candidate":
                return info.version
        return None

    def closed(self, number: int) -> WindowFiles:
        folder, shards = self.settings.data_dir / "windows", self.settings.streaming.logical_shards
        return next(w for w in complete_windows(folder, shards) if w.start_ms == start_of(number))


def start_of(number: int) -> int:
    return START_MS + number * WINDOW_MS


@dataclass(frozen=True)
class Story:
    """What happened: the model before the attack and the one that learned from its window; exposure@10 of targets."""

    system: System
    planned: Planned
    incumbent: str
    candidate: str
    before: float
    after: float

    @property
    def screen(self) -> Any:
        return read_trust(self.system.settings.data_dir, start_of(ATTACKED))


@pytest.fixture(scope="module")
def story(broker: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Honest windows, a first model, a window with fake users in it, honest windows; until the verdict is served."""
    settings = settings_for(broker, tmp_path_factory.mktemp("poisoned"))
    ensure_topics(settings.kafka, [settings.streaming.events_topic])
    system = System(settings, run(settings))
    system.catalogue()
    for number in range(ATTACKED + 1):  # the last one stays open
        system.people(number)
    wait_until(lambda: system.learned(0) is not None, 150, "the first model")
    incumbent = system.registry.current()
    assert incumbent is not None, system.registry.versions()
    wait_until(lambda: system.api.recommend(PEOPLE[0]).version == incumbent, 30, "an answer by it")
    asked = PEOPLE[::4]
    planned = plan(settings, Order("bandwagon", 0.05, targets=3, seed=1))
    before = exposure(system.api, asked, planned.targets)
    assert send(settings, planned) == len(planned.times)
    for number in (ATTACKED + 1, ATTACKED + 2):
        system.people(number)
    wait_until(
        lambda: system.learned(ATTACKED) is not None, 120, "a verdict on what was learned from the window"
    )
    candidate = str(system.learned(ATTACKED))
    served = system.registry.current()
    wait_until(
        lambda: system.api.recommend(PEOPLE[0]).version == served, 30, "the verdict's model to be served"
    )
    after = exposure(system.api, asked, planned.targets)
    yield Story(system, planned, incumbent, candidate, before, after)
    request_stop(settings.data_dir)
    system.producer.close(timeout=1)
    system.api.close()
    kill_actors()
    serve.shutdown()


def test_fake_users_are_held_and_people_are_not(story: Story) -> None:
    assert story.planned.windows == [iso(start_of(ATTACKED))]
    assert story.screen is not None, "the window was learned from without being screened"
    held = story.screen.filter(story.screen["quarantined"])["user"].to_numpy()
    fakes = stable_hash(story.planned.users)
    users = read_window(story.system.closed(ATTACKED).path, ["user"])["user"].to_numpy()
    assert np.isin(fakes, users).all()
    assert np.isin(fakes, held).mean() > 0.7
    assert (~np.isin(held, fakes)).sum() < 0.05 * (len(users) - len(fakes))


def test_the_state_trusts_them_no_more(story: Story) -> None:
    name = iso(start_of(ATTACKED))
    wait_until(
        lambda: (story.system.api.stats()["trust"]["screened"] or "") >= name, 30, "the screen in the state"
    )
    held = story.screen.filter(story.screen["quarantined"])["user"].to_numpy()
    reader = StateReader(story.system.settings.data_dir / "state", story.system.settings.streaming)
    fakes = np.intersect1d(held, stable_hash(story.planned.users))
    assert not reader.read_hashed(fakes)["trust"].any()
    honest = reader.read(PEOPLE)["trust"]
    assert (honest == 1).mean() > 0.9
    reader.close()


def test_their_targets_gain_nothing(story: Story) -> None:
    rejected = story.system.registry.verdict(story.candidate) == "rejected"
    assert rejected or story.after <= 1.3 * story.before + 0.01


def test_without_the_screen_they_would_have_gained(story: Story) -> None:
    """The same window learned from the same weights, with and without those who are held."""
    window = story.system.closed(ATTACKED)
    everybody = shown(story, from_window(read_window(window.path)))
    trusted = shown(story, trusted_window(story.system.settings.data_dir, window))
    assert everybody > 0.03
    assert trusted < 0.01


def shown(story: Story, window: Sequences) -> float:
    """Exposure@10 of the targets among people of the next window, after a round on this one."""
    settings = story.system.settings.training
    bundle = load_bundle(story.system.registry.path(story.incumbent))
    catalog = CatalogReader(story.system.settings.data_dir / "catalog").snapshot()
    unseen = from_window(read_window(story.system.closed(ATTACKED + 1).path))
    slots = ItemSlots(bundle.config.id_capacity)
    known = bundle.item_slots >= 0
    slots.place(bundle.item_hashes[known], bundle.item_slots[known], tick=1)
    slots.touch(window.items, tick=2)
    table = build_table(
        slots, catalog.hashes, catalog.ids, catalog.vectors, window.items, bundle.config.text_dim
    )
    trainer = Trainer(settings.model_copy(update={"model": bundle.config}), bundle.model.state_dict())
    fitted = trainer.fit(window, table, epochs=settings.epochs_per_window, lr=settings.window_lr, number=2)
    model = SequenceModel(bundle.config)
    model.load_state_dict(fitted.weights)
    popularity = np.ones(len(table), np.float32)
    exam = make_exam(unseen, table, popularity, settings.gate, length=bundle.config.length, name="next")
    seen_by = run_battery(Contender("tried", model, table.slots), exam).shown
    rows = table.rows_of(np.sort(stable_hash(story.planned.targets)))
    return float(seen_by[rows].sum() / 10)
