"""Keeps one exporter of metrics on each node that runs actors; never waits for one, and never fails.

An exporter that is gone is made anew, one that does not answer is started anew, and one that cannot listen says why:
all of that is told, none of it touches the pipeline.
"""

import hashlib
import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.exporter import Exporter, ExporterStatus
from services.metrics_config import MetricsSettings
from services.named import NAMESPACE, kill, logged, named_actors
from streaming.logs import LogSettings

log = logging.getLogger(__name__)

_NODES_EVERY_S = 5.0
_ASK_EVERY_S = 2.0
_ANSWER_TIMEOUT_S = 20.0  # the first answer includes the start of its process


@dataclass
class _Asked:
    """An exporter, and what it was asked last."""

    actor: Any
    answer: Any
    at: float
    status: ExporterStatus | None = None
    up: bool = True


class Exporters:
    """The exporters of all nodes, seen from the supervisor.

    Args:
        settings: of metrics. logs: of their processes. prefix: of the names of actors.
    """

    def __init__(self, settings: MetricsSettings, logs: LogSettings, prefix: str) -> None:
        self._settings, self._logs, self._prefix = settings, logs, f"{prefix}-exporter-"
        self._digest = hashlib.blake2b(repr((settings, logs)).encode(), digest_size=2).hexdigest()
        self._by_node: dict[str, _Asked] = {}
        self._nodes_at = 0.0
        self._problem: str | None = None

    def look(self) -> None:
        """One round: a few calls that do not wait."""
        now = time.monotonic()
        try:
            if now - self._nodes_at > _NODES_EVERY_S:
                self._nodes_at = now
                self._end_others()
                self._follow(_nodes() if self._settings.enabled else set())
            for node, asked in self._by_node.items():
                self._hear(node, asked, now)
            self._problem = None
        except Exception as error:  # whatever is wrong with metrics is not to touch the rest of the round
            said, self._problem = self._problem, f"exporters are not watched: {type(error).__name__}: {error}"
            if said != self._problem:
                log.exception("exporters are not watched")

    def status(self) -> dict[str, Any]:
        """For `GET /v1/stats`."""
        told = {node: asked.status for node, asked in self._by_node.items() if asked.status}
        exporters = [{"node": node[:8], **asdict(status)} for node, status in told.items()]
        return {"enabled": self._settings.enabled, "exporters": exporters}

    def states(self) -> dict[str, str]:
        """up or down, by name."""
        return {_name(node): "up" if asked.up else "down" for node, asked in self._by_node.items()}

    def problems(self) -> dict[str, str]:
        """Why metrics are not served, by name."""
        found = {"metrics": self._problem} if self._problem else {}
        for node, asked in self._by_node.items():
            if not asked.up:
                found[_name(node)] = "the exporter of metrics does not answer; it is started anew"
            elif asked.status and asked.status.error:
                found[_name(node)] = asked.status.error
        return found

    def _end_others(self) -> None:
        """Exporters of other settings hold the port."""
        for name in named_actors():
            if name.startswith(self._prefix) and not (
                self._settings.enabled and name.startswith(self._prefix + self._digest)
            ):
                kill(name)

    def _follow(self, nodes: set[str]) -> None:
        for node in self._by_node.keys() - nodes:
            del self._by_node[node]
        for node in nodes - self._by_node.keys():
            actor = self._make(node)
            self._by_node[node] = _Asked(actor, actor.status.remote(), time.monotonic())

    def _make(self, node: str) -> Any:
        """Create or find the exporter of a node."""
        remote = ray.remote(logged(Exporter, self._logs, _name(node))).options(
            name=f"{self._prefix}{self._digest}-{node[:12]}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        return remote.remote(self._settings)

    def _hear(self, node: str, asked: _Asked, now: float) -> None:
        """Take the answer if it is there, and ask again; see to an exporter that gives none."""
        done, _ = ray.wait([asked.answer], timeout=0)
        if done:
            self._take(node, asked, done[0])
            if asked.up and now - asked.at < _ASK_EVERY_S:
                return
        elif now - asked.at > _ANSWER_TIMEOUT_S:
            log.warning("%s does not answer and is started anew", _name(node))
            asked.status, asked.up = None, False
            ray.kill(asked.actor, no_restart=False)
        else:
            return
        asked.answer, asked.at = asked.actor.status.remote(), now

    def _take(self, node: str, asked: _Asked, answer: Any) -> None:
        try:
            asked.status, asked.up = ray.get(answer, timeout=1), True
        except RayError as error:
            log.warning("%s is gone and made anew: %s", _name(node), error)
            asked.status, asked.up = None, False
            ray.kill(asked.actor)  # else its name may stand for one that never comes back
            asked.actor = self._make(node)


def _name(node: str) -> str:
    return f"exporter-{node[:8]}"


def _nodes() -> set[str]:
    """Ids of the living nodes that run actors; a head without CPUs runs none."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
