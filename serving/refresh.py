"""Keeps a snapshot in step with the registry and the catalogue, beside the requests.

One thread polls; whatever is slow (reading a bundle, encoding new items, warming up) happens in it, and the
new snapshot is handed over by one assignment. Polling small files is chosen over being told because it
needs no connection that could break: after any failure on either side the next look finds the truth.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving import metrics
from serving.config import ServingSettings
from serving.items import Learned
from serving.popularity import WindowPopularity
from serving.snapshot import Snapshot, build
from streaming.catalog import CatalogReader
from streaming.config import StreamingSettings
from training.bundle import load_bundle
from training.registry import Registry

logger = logging.getLogger(__name__)


class Refresher:
    """Builds snapshots when something has changed.

    Args:
        data_dir: holds `models/`, `catalog/` and `windows/`.
        streaming: settings of the stream.
        serving: settings of serving.
        publish: takes each new snapshot.
    """

    def __init__(
        self,
        data_dir: Path,
        streaming: StreamingSettings,
        serving: ServingSettings,
        publish: Callable[[Snapshot], None],
    ) -> None:
        self._settings, self._event_types = serving, streaming.event_types
        self._publish = publish
        self._registry = Registry(data_dir / "models")
        self._catalog = CatalogReader(data_dir / "catalog")
        self._windows = WindowPopularity(data_dir / "windows", streaming.logical_shards, serving.popularity)
        self._model: Learned | None = None
        self._catalog_version: int | None = None
        self._failed: dict[str, float] = {}  # version → when to try again, monotonic s
        self._once = threading.Lock()  # refresh() may also be called from outside
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def refresh(self) -> bool:
        """Look once; publish a new snapshot if anything has changed, and tell whether it has."""
        with self._once:
            if self._follow_registry():
                return True
            catalog_changed = self._catalog.version() != self._catalog_version
            windows_changed = self._model is None and self._windows.refresh()
            if not (catalog_changed or windows_changed):
                return False
            self._rebuild(self._model)
            return True

    def _rebuild(self, model: Learned | None) -> None:
        """Build, and only when that has gone well, hand over."""
        catalog = self._catalog.snapshot()
        if model is not None and model.bundle.encoder is not None:
            # vectors of another text encoder would mean nothing to this model; the cataloguer is on its way
            catalog = catalog.of_encoder(model.bundle.encoder.fingerprint)
        self._publish(build(catalog, model, self._windows.shares(), self._event_types))
        self._model, self._catalog_version = model, catalog.version

    def _follow_registry(self) -> bool:
        """Take the promoted bundle into service if it is another one; the old one stays where that fails."""
        wanted = self._registry.current()
        serving = self._model.bundle.version if self._model else None
        if wanted is None or wanted == serving or time.monotonic() < self._failed.get(wanted, 0.0):
            return False
        try:
            self._rebuild(Learned.of(load_bundle(self._registry.path(wanted))))
        except Exception as error:
            # whatever a damaged bundle raises: it is refused, and requests go on with what there is
            metrics.LOAD_FAILURES.inc()
            self._failed[wanted] = time.monotonic() + self._settings.load_retry_s
            logger.exception("model %s is not taken into service (%s stays): %s", wanted, serving, error)
            return False
        self._failed.clear()
        logger.info("model %s follows %s", wanted, serving)
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
            except Exception:
                # a catalogue or window that cannot be read now: counted, and looked at again next time
                metrics.REFRESH_FAILURES.inc()
                logger.exception("refresh failed; the snapshot in service stays")
            # a catalogue that changes all the time must not take the core from the requests
            spent_s = time.thread_time() - started
            pause_s = max(self._settings.refresh_s, spent_s / self._settings.refresh_share)
