"""How far each user is trusted, window by window, and what people decided about it.

When a window closes, a detector scores the users who were active in it; `write_trust` keeps its verdicts in one file
per window. A file names only users below full trust, but exists for every window that was screened. People release
or purge whom it holds; their decisions go into a journal, and the newest about a user wins over every detector's
verdict, past and future.

Both are read anew by whoever needs them: `weights` costs one small Parquet file and the journal.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.errors import TrustError
from streaming.hashing import UInt64
from streaming.journal import append_line, read_lines
from streaming.rows import Bools
from streaming.windows import folder_of, replace_file, start_of

Float32 = npt.NDArray[np.float32]
Verdict = Literal["released", "purged", "held"]

SCHEMA = pa.schema(
    [("user", pa.uint64()), ("trust", pa.float32()), ("quarantined", pa.bool_()), ("reason", pa.string())]
)
DETECTOR = b"detector"  # key in the files' metadata
_SUFFIX = ".parquet"


def trust_folder(data_dir: Path) -> Path:
    """Where the files of trust and the decisions are."""
    return data_dir / "trust"


def trust_file(data_dir: Path, start_ms: int) -> Path:
    """Where a window's trust is."""
    return trust_folder(data_dir) / f"{folder_of(start_ms)}{_SUFFIX}"


def write_trust(
    data_dir: Path,
    start_ms: int,
    users: UInt64,
    trust: Float32,
    quarantined: Bools,
    reasons: Sequence[str],
    *,
    detector: str = "",
) -> Path:
    """Write a window's verdicts; whole or not at all. Writing them again replaces them.

    Args:
        data_dir: holds `windows/` and `trust/`.
        start_ms: start of the window, epoch ms.
        users: (U,) user hashes, distinct, in any order; who is not among them is trusted fully.
        trust: (U,) from 0 to 1.
        quarantined: (U,) who is held: weighs nothing until released.
        reasons: U fragments of a sentence, such as "5 of 21 items are new favourites of 60 like-minded newcomers".
        detector: fingerprint of what judged, kept in the file's metadata.

    Raises:
        ValueError: lengths differ, a user stands twice, or a trust is no number from 0 to 1.
    """
    lengths = {
        "users": len(users),
        "trust": len(trust),
        "quarantined": len(quarantined),
        "reasons": len(reasons),
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected one trust, quarantined and reason per user, got {lengths}")
    wrong = np.flatnonzero(~((trust >= 0) & (trust <= 1)))  # NaN too
    if len(wrong):
        raise ValueError(
            f"expected trust from 0 to 1, got {trust[wrong[0]]} for user {name_of(int(users[wrong[0]]))}"
        )
    order = np.argsort(users, kind="stable")
    users = users[order].astype(np.uint64)
    if len(twice := users[1:][users[1:] == users[:-1]]):
        raise ValueError(f"expected distinct users, got {name_of(int(twice[0]))} more than once")
    table = pa.table(
        {
            "user": pa.array(users, pa.uint64()),
            "trust": pa.array(trust[order].astype(np.float32), pa.float32()),
            "quarantined": pa.array(np.asarray(quarantined, bool)[order]),
            "reason": pa.array([str(reasons[place]) for place in order.tolist()], pa.string()),
        },
        schema=SCHEMA.with_metadata({DETECTOR: detector.encode()}),
    )
    target = trust_file(data_dir, start_ms)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, table)
    return target


def read_trust(data_dir: Path, start_ms: int) -> pa.Table | None:
    """A window's verdicts, `SCHEMA`, sorted by user; None where it has not been screened.

    Raises:
        TrustError: the file is damaged, or not of this kind.
    """
    path = trust_file(data_dir, start_ms)
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise TrustError(
            f"{path} cannot be read ({error}); remove it, and the window counts as not screened"
        ) from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise TrustError(
            f"{path}: expected columns {SCHEMA.names}, {missing} missing; remove it, and the window counts as "
            "not screened"
        )
    return table.select(SCHEMA.names)


def screened_windows(data_dir: Path) -> list[int]:
    """Starts (epoch ms) of the windows that were screened, oldest first."""
    files = trust_folder(data_dir).glob(f"start=*{_SUFFIX}")
    return sorted(start_of(file.name.removesuffix(_SUFFIX)) for file in files)


@dataclass(frozen=True)
class Decision:
    """What a person decided about a user.

    `released` lets everything of the user count again, `held` nothing, whatever a detector says; `purged` is `held`
    and a request to forget the user. Ids are not kept: a journal cannot forget them.
    """

    user: int
    decision: Verdict
    at: float  # epoch s
    by: str = ""
    note: str = ""

    @property
    def weight(self) -> float:
        """What the user's events count from then on."""
        return 1.0 if self.decision == "released" else 0.0


def decisions_file(data_dir: Path) -> Path:
    """The journal of decisions."""
    return trust_folder(data_dir) / "decisions.jsonl"


def decide(data_dir: Path, user: int, decision: Verdict, *, by: str = "", note: str = "") -> Decision:
    """Append a decision about a user (hash) to the journal; it is durable when this returns."""
    made = Decision(user, decision, time.time(), by, note)
    path = decisions_file(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, vars(made) | {"user": str(user)})  # as text: JSON readers elsewhere round large numbers
    return made


def read_decisions(data_dir: Path) -> dict[int, Decision]:
    """The newest decision about each user, by user hash.

    Raises:
        TrustError: a line is not what `decide` writes.
    """
    found = {}
    for entry in read_lines(decisions_file(data_dir)):
        try:
            made = Decision(**entry | {"user": int(entry["user"])})
        except (KeyError, TypeError, ValueError) as error:
            raise TrustError(
                f"{decisions_file(data_dir)}: {error!r} in {entry}; mend or remove that line"
            ) from error
        if made.decision not in get_args(Verdict):
            raise TrustError(
                f"{decisions_file(data_dir)}: expected a decision of {', '.join(get_args(Verdict))}, "
                f"got {made.decision!r} for user {name_of(made.user)}; mend or remove that line"
            )
        found[made.user] = made
    return found


def weights(
    data_dir: Path,
    start_ms: int,
    users: UInt64,
    carried: Float32 | None = None,
    decisions: Mapping[int, Decision] | None = None,
) -> Float32:
    """What the rows of a window count in the loss, (U,) float32 from 0 to 1.

    Who was released counts 1, who is held by a person or was purged 0. Of the others, the quarantined count 0, who
    has another row in the window's file counts the trust there, and who has none counts 1. Where the window has
    not been screened, `carried` counts.

    This takes the place of the window's own `trust` column (which holds what earlier windows said), so do not
    multiply the two: a user who was released would stay at 0.

    Args:
        users: (U,) user hashes, in any order.
        carried: (U,) the window's own `trust` column; default 1.
        decisions: what `read_decisions` gave; read here by default.

    Raises:
        TrustError: a file is damaged; the message says what to do.
    """
    table = read_trust(data_dir, start_ms)
    if table is None:
        counts = np.ones(len(users), np.float32) if carried is None else carried.astype(np.float32)
    else:
        counts = np.ones(len(users), np.float32)
        named, place = verdict_weights(table), np.searchsorted(table["user"].to_numpy(), users)
        inside = place < len(table)
        same = inside.copy()
        same[inside] = table["user"].to_numpy()[place[inside]] == users[inside]
        counts[same] = named[place[same]]
    decided = read_decisions(data_dir) if decisions is None else decisions
    if decided:
        known = np.array(sorted(decided), np.uint64)
        for row in np.flatnonzero(np.isin(users, known)).tolist():
            counts[row] = decided[int(users[row])].weight
    return counts


def verdict_weights(table: pa.Table) -> Float32:
    """(R,) what the users of a file of trust count by it alone: their trust, 0 where quarantined."""
    trust: Float32 = table["trust"].to_numpy()
    return np.where(table["quarantined"].to_numpy(), np.float32(0), trust)


def name_of(user: int) -> str:
    """A user hash as people see and type it: `#` and 16 hexadecimal digits."""
    return f"#{user:016x}"
