"""What the supervisor tells in metrics: actors, problems, the learner, the current model, people's decisions."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from services import metrics
from serving.metrics import MODEL_AGE_SECONDS
from streaming.journal import read_lines
from streaming.meters import present, since
from streaming.trust import Verdict, decisions_file
from training.registry import Registry, VersionInfo

# measures by their names in `eval.json`, of the candidate
_QUALITY = {"ndcg@10": "ndcg_at_10", "hit_rate@10": "hit_rate_at_10"}
_ROBUSTNESS = {
    "attacked_ndcg@10": "ndcg_at_10_pgd",
    "attacked_hit_rate@10": "hit_rate_at_10_pgd",
    "exposure_lift": "exposure_lift",
}


class PipelineMeter:
    """Turns a status of the supervisor into metrics.

    Args:
        data_dir: holds `trust/`. registry: of the models.
    """

    def __init__(self, data_dir: Path, registry: Registry) -> None:
        self._registry = registry
        self._shown: str | None = None  # version
        self._journal = decisions_file(data_dir)
        self._journal_bytes, self._decided = self._read_journal()

    def tell(self, status: Mapping[str, Any], states: Mapping[str, str]) -> None:
        """One round.

        Args:
            status: as `GET /v1/stats` shows it. states: up or down, of every actor by its name, `KIND-NUMBER`.
        """
        counts = Counter((name.split("-")[0], state) for name, state in states.items())
        kinds = {kind for kind, _ in counts}
        present(
            metrics.ACTORS, {(kind, state): counts[kind, state] for kind in kinds for state in ("up", "down")}
        )
        metrics.PROBLEMS.set(len(status["problems"]))
        present(metrics.LEARNER_PHASE, {(status["learner"]["phase"],): 1})
        self._tell_model()
        self._tell_decisions()

    def _tell_model(self) -> None:
        current = self._registry.current()
        if current == self._shown:
            return
        info = next((info for info in self._registry.versions() if info.version == current), None)
        if info is not None:
            show_model(info)
            self._shown = current

    def _tell_decisions(self) -> None:
        if _size(self._journal) == self._journal_bytes:
            return
        before = self._decided
        self._journal_bytes, self._decided = self._read_journal()
        for decision, count in (self._decided - before).items():
            metrics.DECISIONS.labels(decision).inc(count)

    def _read_journal(self) -> tuple[int, Counter[str]]:
        size = _size(self._journal)
        made = [str(entry.get("decision")) for entry in read_lines(self._journal)]
        return size, Counter(decision for decision in made if decision in get_args(Verdict))


def show_model(info: VersionInfo) -> None:
    """Tell what the gate measured of a model, and when it was made."""
    measured = info.eval.get("candidate", {})
    present(metrics.QUALITY, _named(_QUALITY, measured))
    robustness = _named(_ROBUSTNESS, measured)
    if "stability" in info.eval:
        robustness["stability",] = info.eval["stability"]
    present(metrics.ROBUSTNESS, robustness)
    since(MODEL_AGE_SECONDS, info.created_at)


def _named(names: Mapping[str, str], measured: Mapping[str, float]) -> dict[tuple[str], float]:
    return {(label,): float(measured[name]) for name, label in names.items() if name in measured}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
