"""Keeps what is live in step with the registry and the catalogue, beside the requests.

One thread polls; whatever is slow (reading a bundle, encoding new items, warming up) happens in it, and what is new
is handed over by one assignment. Polling small files is chosen over being told because it needs no connection that
could break: after any failure on either side the next look finds the truth.

Each version that is live costs its bundle and a snapshot in memory, and is built anew when the catalogue changes:
one without experiments, one more for each further arm. A version of an arm that cannot be loaded switches its plan
off, and the main model goes on.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from serving import metrics
from serving.config import ServingSettings
from serving.experiments.config import CanarySettings
from serving.experiments.live import Live, Serving
from serving.experiments.rollout import CANARY
from serving.experiments.wanted import Wanted, wanted
from serving.items import Learned
from serving.popularity import WindowPopularity
from serving.snapshot import Snapshot, build
from streaming.catalog import CatalogReader
from streaming.config import StreamingSettings
from training.bundle import load_bundle
from training.registry import Registry

logger = logging.getLogger(__name__)


class _Arm(NamedTuple):
    model: Learned
    snapshot: Snapshot
    catalog_version: int


class _Failure(NamedTuple):
    retry_at: float  # monotonic s
    why: str
    times: int


class Refresher:
    """Builds snapshots when something has changed.

    Args:
        data_dir: holds `models/`, `catalog/` and `windows/`.
        streaming: settings of the stream.
        serving: settings of serving.
        publish: takes each new snapshot of the main model.
        live: takes all that is live; without it, experiments and canaries are left aside.
        canary: settings of canaries.
        prepare: does ahead what a request would have to wait for; gets a new snapshot and the main one before it.
    """

    def __init__(
        self,
        data_dir: Path,
        streaming: StreamingSettings,
        serving: ServingSettings,
        publish: Callable[[Snapshot], None],
        live: Live | None = None,
        canary: CanarySettings | None = None,
        prepare: Callable[[Snapshot, Snapshot | None], None] | None = None,
    ) -> None:
        self._prepare = prepare
        self._settings, self._event_types = serving, streaming.event_types
        self._publish, self._live, self._canary = publish, live, canary or CanarySettings()
        self._registry = Registry(data_dir / "models")
        self._catalog = CatalogReader(data_dir / "catalog")
        self._windows = WindowPopularity(data_dir / "windows", streaming.logical_shards, serving.popularity)
        self._model: Learned | None = None  # the main one
        self._main: Snapshot | None = None
        self._arms: dict[str, _Arm] = {}  # by version, beside the main one
        self._catalog_version: int | None = None
        self._handed: tuple[object, ...] = ()  # names what `live` has
        self._failed: dict[str, _Failure] = {}  # by version
        self._once = threading.Lock()  # refresh() may also be called from outside
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def refresh(self) -> bool:
        """Look once; publish if anything has changed, and tell whether it has."""
        with self._once:
            followed = self._live is not None
            wish = wanted(self._registry, self._canary) if followed else Wanted(self._registry.current())
            changed = self._follow(wish.main) or self._follow_catalog()
            if self._live is None:
                return changed
            self._follow_arms(wish)
            return self._hand_over(wish, self._live)

    def _follow_catalog(self) -> bool:
        catalog_changed = self._catalog.version() != self._catalog_version
        windows_changed = self._model is None and self._windows.refresh()
        if not (catalog_changed or windows_changed):
            return False
        self._take(self._model)
        return True

    def _follow(self, version: str | None) -> bool:
        """Take a bundle into service as the main one if it is another; the old one stays where that fails."""
        serving = self._model.bundle.version if self._model else None
        if version is None or version == serving or self._must_wait(version):
            return False
        try:
            known = self._arms.get(version)  # a canary that has proved itself
            self._take(known.model if known else self._load(version))
        except Exception as error:
            # whatever a damaged bundle raises: it is refused, and requests go on with what there is
            self._fail(version, error)
            logger.exception("model %s is not taken into service (%s stays): %s", version, serving, error)
            return False
        self._failed.clear()
        logger.info("model %s follows %s", version, serving)
        return True

    def _take(self, model: Learned | None) -> None:
        """Build the main snapshot, and only when that has gone well, hand over."""
        self._main, self._catalog_version = self._build(model)
        self._model = model
        if self._live is None:
            self._publish(self._main)

    def _build(self, model: Learned | None) -> tuple[Snapshot, int]:
        """A snapshot, and the version of the catalogue that it was made from."""
        catalog = self._catalog.snapshot()
        if model is not None and model.bundle.encoder is not None:
            # vectors of another text encoder would mean nothing to this model; the cataloguer is on its way
            catalog = catalog.of_encoder(model.bundle.encoder.fingerprint)
        snapshot = build(catalog, model, self._windows.shares(), self._event_types)
        if self._prepare is not None:
            self._prepare(snapshot, self._main)
        return snapshot, catalog.version

    def _load(self, version: str) -> Learned:
        return Learned.of(load_bundle(self._registry.path(version)), self._settings.threads)

    def _must_wait(self, version: str) -> bool:
        return version in self._failed and time.monotonic() < self._failed[version].retry_at

    def _fail(self, version: str, error: Exception) -> None:
        metrics.LOAD_FAILURES.inc()
        before = self._failed[version].times if version in self._failed else 0
        retry_at = time.monotonic() + self._settings.load_retry_s
        self._failed[version] = _Failure(retry_at, f"{type(error).__name__}: {error}", before + 1)

    # --- arms --------------------------------------------------------------------------------------------

    def _follow_arms(self, wish: Wanted) -> None:
        """Have the bundles of all arms, each with a snapshot of the catalogue that the main one is of."""
        main = self._model.bundle.version if self._model else None
        versions = [version for version in wish.versions if version != main]
        for version in versions:
            known = self._arms.get(version)
            if (known and known.catalog_version == self._catalog_version) or self._must_wait(version):
                continue
            try:
                model = known.model if known else self._load(version)
                self._arms[version] = _Arm(model, *self._build(model))
                self._failed.pop(version, None)
            except Exception as error:
                # as for the main model; its plan is off until this goes well
                self._fail(version, error)
                self._arms.pop(version, None)
                logger.exception("model %s is not taken into service as an arm: %s", version, error)
        self._arms = {version: self._arms[version] for version in versions if version in self._arms}

    def _hand_over(self, wish: Wanted, live: Live) -> bool:
        """Give `live` the main snapshot and those of all arms as one value, if anything about it is new."""
        assert self._main is not None  # the first look builds one
        snapshots = {version: arm.snapshot for version, arm in self._arms.items()}
        if self._model is not None:
            snapshots[self._model.bundle.version] = self._main
        plans, off, failed = [], dict(wish.off), None
        for plan in wish.plans:
            missing = [version for version in plan.versions if version not in snapshots]
            if not missing:
                plans.append(plan)
                continue
            failure = self._failed.get(missing[0], _Failure(0, "it is not loaded", 0))
            off[plan.name] = f"model {missing[0]}: {failure.why}"
            if plan.name == CANARY and failure.times > 1:  # not for a hiccup of the disk
                failed = off[plan.name]
        used = [id(snapshots[version]) for plan in plans for version in plan.versions]  # `live` keeps them
        state = (id(self._main), *used, *plans, wish.trial, *sorted(off.items()), failed)
        if state == self._handed:
            return False
        live.publish(Serving.of(self._main, plans, snapshots, wish.trial, off, failed))
        if self._handed[:1] != state[:1]:
            self._publish(self._main)
        self._handed = state
        return True

    # --- the thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start polling; does nothing when it runs already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="serving-refresh", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Look now instead of at the next turn."""
        self._wake.set()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop polling, wait for the thread, close the catalogue."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._catalog.close()

    def _run(self) -> None:
        pause_s = self._settings.refresh_s
        while not self._stopping.is_set():
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._stopping.is_set():
                return
            started = time.thread_time()
            try:
                self.refresh()
                if self._live is not None:
                    self._live.report()
            except Exception:
                # a catalogue or window that cannot be read now: counted, and looked at again next time
                metrics.REFRESH_FAILURES.inc()
                logger.exception("refresh failed; the snapshot in service stays")
            # a catalogue that changes all the time must not take the core from the requests
            spent_s = time.thread_time() - started
            pause_s = max(self._settings.refresh_s, spent_s / self._settings.refresh_share)
