"""The demo: the whole system on one machine, and a recorded stream played against it.

It composes what a user would deploy (broker, Ray, the two applications) and a client of it (the replay). The
first 60% of the events go in as fast as the pipeline takes them; then the first model is trained, gated and
served; then the rest follows at a steady rate while windows close and models are fine-tuned, judged and swapped.
"""

import contextlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.client import ApiClient, ApiError
from services.datasets import Dataset, repeat_share, resolve_dataset
from services.demo_attack import DemoAttack
from services.replay import REPEATS_MATTER, Replay, ReplayKnobs
from services.report import write_report
from services.settings import Settings, make_settings
from services.view import DemoSnapshot, GateVerdict, LiveView, Phase

HISTORY_SHARE = 0.6
_WINDOW_EVENTS = 1000  # about how many events a window of the steady part holds
_MODEL_TIMEOUT_S = 600.0
_READY_TIMEOUT_S = 120.0
_LIVE_POLL_S = 0.5
_ATTACK_SHARE, _ATTACK_AFTER_S = 0.25, 20.0  # of the duration, or where there is none
_ASKED_USERS = 50  # whose lists tell what the targets gained


@dataclass(frozen=True)
class DemoOptions:
    """What the command line passes on."""

    dataset: Path | None = None
    duration_s: float | None = None  # after the first trained model began to serve; None: until Ctrl-C
    report: Path | None = None
    rate: float = 50.0  # events/s of the steady part
    requests_per_s: float = 20.0
    attack: bool = False  # fake users come after a quarter of the duration
    port: int = 8000
    data_dir: Path = Path(".headrace/demo")
    cache_dir: Path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headrace"


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def demo_settings(options: DemoOptions, dataset: Dataset, bootstrap_servers: str, external: bool) -> Settings:
    """Settings for this dataset on one small machine.

    Windows are cut so that one of the steady part holds some thousands of events; the first training begins
    when the windows that the history completes are all there.
    """
    split = history_rows(dataset)
    times = dataset.interactions["timestamp_ms"].to_numpy()
    length_ms = window_length_ms(times, split)
    window = np.floor_divide(times[:split], length_ms)
    # one window less than the newest event closes: some partition's newest event is older
    closed = np.flatnonzero((window + 2) * length_ms <= times[split - 1])
    types = sorted(set(dataset.interactions["event_type"].unique().to_pylist()))
    unseen_only = repeat_share(dataset) <= REPEATS_MATTER
    topic = f"headrace-demo-{int(time.time())}-" if external else ""
    known = Settings.model_fields["streaming"].default.event_types
    values: dict[str, Any] = {
        "data_dir": options.data_dir,
        "kafka": {
            "bootstrap_servers": bootstrap_servers,
            # Kafka answers a fetch as soon as there is something; the embedded broker when the wait is over
            "fetch_wait_ms": 100 if external else 10,
            "items_topic": topic + "items",
            "dead_letter_topic": topic + "events.dead-letter",
        },
        "streaming": {
            "sources": [{"topic": topic + "events"}],
            "event_types": [*known, *(kind for kind in types if kind not in known)],
            "windows": {"length_s": length_ms / 1000, "lateness_s": length_ms / 100_000},
        },
        "training": {
            "min_initial_windows": 2,
            "initial_events": int(0.98 * len(closed)),
            "model": {"repeats": "excluded" if unseen_only else "copied"},
            "gate": {"unseen_only": unseen_only},
        },
        "serving": {
            "port": options.port,
            "admin_open": True,
            "simulations": True,
            "exclude_seen": unseen_only,
            "stream_clock": True,  # an event dated today would end the windows of a replayed past
        },
    }
    return make_settings(values, "the demo")


def history_rows(dataset: Dataset) -> int:
    """Rows that are played at once, before the first model."""
    return int(len(dataset) * HISTORY_SHARE)


def window_length_ms(times: Any, split: int) -> int:
    """Window length at which the first part of the steady replay fills windows of `_WINDOW_EVENTS`.

    Small datasets get smaller windows, so that the history holds several.
    """
    events = max(1, min(_WINDOW_EVENTS, split // 8))
    ahead = times[split : split + 5 * events]
    share = events / max(1, len(ahead))
    return max(1000, int((int(ahead[-1]) - int(ahead[0])) * share) // 1000 * 1000)


class Stage:
    """What the demo is doing now, shared between the thread that does it and the one that draws it."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def phase(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Show a phase while the block runs; yields what to call with (done, total)."""
        self._set(label, Phase(label, None, 1.0))
        started = time.monotonic()
        yield lambda done, total: self._set(label, Phase(label, done, total))
        took = time.monotonic() - started
        self._set(label, Phase(label, 1.0, 1.0, f"{took:.1f} s"))

    def show(self, phase: Phase) -> None:
        """Show a phase in place of the one whose label begins with the same word."""
        self._set(phase.label.split()[0], phase)

    def phases(self) -> tuple[Phase, ...]:
        """All phases so far, in the order of their last change."""
        with self._lock:
            return tuple(self._phases.values())

    def _set(self, label: str, phase: Phase) -> None:
        with self._lock:
            self._phases.pop(label, None)  # what moved last stands last
            self._phases[label] = phase


class Demo:
    """Runs the demo; use as a context manager, so that everything it started is stopped.

    Args:
        options: from the command line.
        view: where it shows itself.
    """

    def __init__(self, options: DemoOptions, view: LiveView) -> None:
        self._options, self._view = options, view
        self._stage = Stage()
        self._halt = threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._started_at = time.monotonic()
        self._replay: Replay | None = None
        self._client: ApiClient | None = None
        self._stats: dict[str, Any] = {}
        self._models: list[dict[str, Any]] = []
        self._rates: deque[float] = deque(maxlen=30)
        self._attack: DemoAttack | None = None
        self._settings: Settings | None = None
        self.report: dict[str, Any] | None = None

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *error: object) -> None:
        self._halt.set()
        if self._replay is not None:
            self._replay.close()
        self._cleanup.close()

    def run(self) -> dict[str, Any] | None:
        """Run until the duration is over or Ctrl-C; returns the report where there is one.

        The work is done in the calling thread, which must be the main one: the kernel ends Ray's processes with
        the thread that started them. Another thread paints.
        """
        painter = threading.Thread(target=self._paint, name="painter", daemon=True)
        painter.start()
        try:
            self._start()
            self._play()
        except KeyboardInterrupt:
            self._view.say("stopping …")
        finally:
            self._halt.set()
            painter.join(5)
        return self.report

    def _paint(self) -> None:
        while not self._halt.wait(_LIVE_POLL_S):
            self._poll()
            self._view.update(self._snapshot())
        self._view.update(self._snapshot())

    def _start(self) -> None:
        from services.local_ray import start_ray, stop_ray

        options, stage = self._options, self._stage
        shutil.rmtree(options.data_dir, ignore_errors=True)
        with stage.phase("dataset"):
            dataset = resolve_dataset(options.dataset, options.cache_dir, self._view.say)
        with stage.phase("broker"):
            external = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
            servers = external or self._embedded_broker()
            settings = demo_settings(options, dataset, servers, bool(external))
        with stage.phase("Ray"):
            self._cleanup.callback(stop_ray)
            start_ray(options.data_dir)
        from services.applications import run
        from streaming.kafka import ensure_topics, make_producer

        ensure_topics(settings.kafka, [settings.streaming.events_topic])
        producer = make_producer(settings.kafka)
        self._cleanup.callback(producer.close, timeout=1)
        client = ApiClient(f"http://127.0.0.1:{options.port}")
        self._replay = Replay(
            dataset,
            producer,
            client,
            ReplayKnobs(rate=options.rate, requests_per_s=options.requests_per_s),
            settings.streaming.events_topic,
            settings.kafka.items_topic,
            self._started_at,
        )
        with stage.phase("catalogue → Kafka") as advance:
            self._replay.publish_items(advance)
        with stage.phase("pipeline and API"):
            run(settings)
            self._wait(client.ready, _READY_TIMEOUT_S, "the API to be ready")
        self._client, self._settings = client, settings

    def _embedded_broker(self) -> str:
        from streaming.broker import EmbeddedBroker

        return self._cleanup.enter_context(EmbeddedBroker()).bootstrap_servers

    def _play(self) -> None:
        replay, options = self._replay, self._options
        assert replay is not None
        split = history_rows(replay.dataset)
        with self._stage.phase("history → Kafka") as advance:
            replay.publish_events(0, split, advance, self._halt)
        with self._stage.phase("history applied") as advance:
            self._wait(lambda: self._applied(advance, split), _MODEL_TIMEOUT_S, "the history to be applied")
        with self._stage.phase("first model"):
            self._wait(self._judged, _MODEL_TIMEOUT_S, "a first model", poll_s=0.5)
        replay.start_steady(split)  # after a first rejection too: the next candidate needs new windows
        self._wait(self._over, None, "the end")
        reached = replay.stop_steady()
        with self._stage.phase("settling") as advance:
            self.report = replay.settle(30.0, advance)
        self.report["steady_events"] = reached - split
        if self._attack is not None:
            self.report["attack"] = self._attack.report()
        if options.report:
            write_report(self.report, options.report)

    def _be_attacked(self) -> None:
        replay = self._replay
        settings, client = self._settings, self._client
        if replay is None or settings is None or client is None:
            raise AssertionError("attacked only while it runs")
        newest = replay.dataset.interactions["user_id"][history_rows(replay.dataset) :].unique()
        self._attack = DemoAttack(settings, client, newest[:_ASKED_USERS].to_pylist())
        with self._stage.phase("an attack: fake users come"):
            replay.more(self._attack.launch())

    def _applied(self, advance: Callable[[int, int], None], total: int) -> bool:
        events = self._stats.get("events") or {}
        done = sum(events.get(name, 0) for name in ("applied", "duplicates", "dead_lettered"))
        advance(min(done, total), total)
        return bool(done >= total)

    def _over(self) -> bool:
        assert self._replay is not None
        if self._replay.steady_done():
            self._stage.show(Phase("the stream has been played to its end", 1.0, 1.0))
        duration, since = self._options.duration_s, self._serving_since
        if self._options.attack and self._attack is None and since is not None:
            waited = time.monotonic() - since
            if waited >= (_ATTACK_AFTER_S if duration is None else duration * _ATTACK_SHARE):
                self._be_attacked()
        if since is None and self._replay.steady_done():
            raise DemoError(f"no model was good enough to be served; see GET /v1/models. {self._where()}")
        return duration is not None and since is not None and time.monotonic() - since >= duration

    def _judged(self) -> bool:
        """Whether a trained model answers, or the gate has refused one."""
        assert self._replay is not None
        with contextlib.suppress(ApiError):
            user = self._replay.dataset.interactions["user_id"][0].as_py()
            self._replay.client.recommend(user, exclude_seen=self._replay.exclude_seen)
        return self._serving_since is not None or any(model["status"] == "rejected" for model in self._models)

    @property
    def _serving_since(self) -> float | None:
        return None if self._client is None else self._client.first_trained_at

    def _wait(
        self, check: Callable[[], bool], timeout_s: float | None, what: str, poll_s: float = 0.1
    ) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not check():
            self._halt.wait(poll_s)
            if deadline is not None and time.monotonic() > deadline:
                raise DemoError(f"waited {timeout_s:.0f} s in vain for {what}; {self._where()}")

    def _where(self) -> str:
        problems = self._stats.get("problems") or self._stats.get("error") or "no problem is reported"
        return f"pipeline: {problems}; logs: {self._options.data_dir}/logs"

    def _poll(self) -> None:
        if self._client is None:
            return
        with contextlib.suppress(ApiError):
            self._stats = self._client.stats()
            self._models = self._client.models()
        self._rates.append((self._stats.get("events") or {}).get("rate_per_s", 0.0))
        learner = self._stats.get("learner") or {}
        if learner.get("phase"):
            working = learner["phase"] in {"training", "judging"}
            done = learner.get("progress") if working or not self._models else 1.0
            self._stage.show(Phase(f"learner {learner['phase']}", done, 1.0, learner.get("detail") or ""))

    def _snapshot(self) -> DemoSnapshot:
        stats, options = self._stats, self._options
        events, models, model = (stats.get(name) or {} for name in ("events", "models", "model"))
        base = f"http://127.0.0.1:{options.port}"
        remaining = None
        if options.duration_s is not None and self._serving_since is not None:
            remaining = max(0.0, options.duration_s - (time.monotonic() - self._serving_since))
        snapshot = DemoSnapshot(
            elapsed_s=time.monotonic() - self._started_at,
            remaining_s=remaining,
            phases=self._stage.phases(),
            events_per_s=events.get("rate_per_s"),
            events_per_s_history=tuple(self._rates),
            applied=events.get("applied"),
            duplicates=events.get("duplicates"),
            dead_lettered=events.get("dead_lettered"),
            lag=stats.get("lag"),
            users=stats.get("users"),
            items=(stats.get("catalog") or {}).get("items"),
            windows=stats.get("windows"),
            model_version=model.get("version"),
            model_age_s=model.get("age_s"),
            promoted=models.get("promoted", 0),
            rejected=models.get("rejected", 0),
            verdicts=tuple(_verdict(entry) for entry in self._models if entry["status"] != "candidate"),
            urls=(("page", f"{base}/"), ("docs", f"{base}/docs")) if self._client else (),
        )
        return self._with_replay(snapshot)

    def _with_replay(self, snapshot: DemoSnapshot) -> DemoSnapshot:
        if self._replay is None:
            return snapshot
        now = self._replay.snapshot()
        score = now.prequential
        return replace(
            snapshot,
            title=self._replay.dataset.name,
            produced=now.produced,
            total=now.total,
            request_p50_ms=now.request_ms.p50,
            request_p99_ms=now.request_ms.p99,
            requests=now.request_ms.count,
            request_errors=now.errors,
            freshness_p50_ms=now.freshness.p50,
            freshness_p99_ms=now.freshness.p99,
            hit_rate=score.hit_rate,
            recent_hit_rate=score.recent_hit_rate,
            popularity_hit_rate=score.popularity_hit_rate,
            scored=score.requests,
        )


def _verdict(entry: dict[str, Any]) -> GateVerdict:
    numbers = entry.get("eval") or {}
    candidate, incumbent = numbers.get("candidate") or {}, numbers.get("incumbent") or {}
    return GateVerdict(
        version=entry["version"],
        promoted=entry["status"] == "promoted",
        reason=entry.get("reason") or "",
        candidate_ndcg=candidate.get("ndcg@10"),
        incumbent_ndcg=incumbent.get("ndcg@10"),
        candidate_attacked_ndcg=candidate.get("attacked_ndcg@10"),
        incumbent_attacked_ndcg=incumbent.get("attacked_ndcg@10"),
    )
