"""What the screens made of an attack: who of its fake users is held, and whom of the others they took for one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.streamed_attack import Planned
from streaming.hashing import stable_hash
from streaming.trust import read_trust, screened_windows


@dataclass(frozen=True)
class Outcome:
    """Verdicts so far.

    Attributes:
        screened: whether a window from the attack's first on has been screened.
        held: fake users in quarantine. honest_held: others there.
    """

    screened: bool
    held: int
    honest_held: int


def outcome(data_dir: Path, planned: Planned, since_ms: int | None = None) -> Outcome:
    """Read the screens.

    Args:
        since_ms: only those of windows that start then or later; None: all.

    Raises:
        TrustError: a file of trust is damaged.
    """
    held = np.zeros(0, np.uint64)
    windows = screened_windows(data_dir)
    for start in windows:
        table = read_trust(data_dir, start) if since_ms is None or start >= since_ms else None
        if table is not None:
            held = np.union1d(held, table.filter(table["quarantined"])["user"].to_numpy())
    fakes = stable_hash(planned.users)
    return Outcome(
        screened=any(start >= planned.start_ms for start in windows),
        held=int(np.isin(fakes, held).sum()),
        honest_held=int((~np.isin(held, fakes)).sum()),
    )
