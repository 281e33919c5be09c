"""The exporter of a node: one HTTP server whose `/metrics` shows all processes of Headrace there.

It reads the files that the processes keep (`streaming.meters`) at each scrape, and folds those of processes that
ended (`services.metric_archive`). Meant to be a Ray actor; nothing else depends on it. Importing this loads neither
Ray nor torch, so its process stays small.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Metric, start_http_server

from services.metric_archive import MetricArchive
from services.metrics import EXPORTER_FOLDED, EXPORTER_PROCESSES
from services.metrics_config import MetricsSettings
from streaming import exposition
from streaming.meters import FOLDER, folder

log = logging.getLogger(__name__)

_FOLD_EVERY_S = 5.0  # also where nobody scrapes


@dataclass(frozen=True)
class ExporterStatus:
    """Where it listens; `port` is None and `error` says why where it does not."""

    host: str
    port: int | None
    error: str | None


class Exporter:
    """Listens from construction on, or as soon as `status` finds that it can.

    Args:
        settings: where to listen. files: folder of the files of metrics; by default this process's own.
    """

    def __init__(self, settings: MetricsSettings, files: Path | None = None) -> None:
        self._settings = settings
        self._collector = _Collector(files or folder())
        self._server: WSGIServer | None = None
        self._error: str | None = None
        self._listen()

    def status(self) -> ExporterStatus:
        """Where it listens; where it could not, it tries again. Asked now and then, it also keeps the files few."""
        if self._server is None:
            self._listen()
        self._collector.tidy()
        port = None if self._server is None else self._server.server_port
        return ExporterStatus(self._settings.host, port, self._error)

    def pid(self) -> int:
        """Process id of this actor."""
        return os.getpid()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _listen(self) -> None:
        settings = self._settings
        if self._collector.files is None:
            self._error = f"no metrics are shared on this node: set {FOLDER} before Ray starts"
            return
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._collector)
        try:
            self._server, _ = start_http_server(settings.port, settings.host, registry)
            self._error = None
        except OSError as error:
            self._error = (
                f"no metrics at {settings.host}:{settings.port}: {error.strerror or error}; "
                "free it, or set metrics.port or metrics.host"
            )


class _Collector:
    """Collects for every scrape; one at a time, since scrapes fold."""

    def __init__(self, files: Path | None) -> None:
        self.files = files
        self._archive = MetricArchive(files) if files else None
        self._folded_at = 0.0
        self._lock = threading.Lock()

    def tidy(self) -> None:
        """Fold if that was not done lately."""
        with self._lock:
            if time.monotonic() - self._folded_at > _FOLD_EVERY_S:
                self._fold()

    def _fold(self) -> None:
        self._folded_at = time.monotonic()
        if self._archive is None:
            return
        try:
            EXPORTER_FOLDED.inc(self._archive.fold())
        except OSError as error:  # what was not folded counts all the same
            log.warning("files of metrics were not folded: %s", error)

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        assert self.files is not None
        with self._lock:
            self._fold()
            living = {file.process for file in exposition.counted(self.files) if file.kind == "gauge"}
            EXPORTER_PROCESSES.set(len(living))
            return exposition.collect(self.files)
