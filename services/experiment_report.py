"""What came of an experiment: per arm, and the difference with an interval that holds however often one looks.

A user counts once: with 1 where a success on an item shown to him follows within the window after his first
impression, else with 0. So an outcome stands once its window is over and never changes, users come in the order of
their first impressions, and the confidence sequence of `services.sequential` applies to them. Users whose window is
not over yet, and users seen in more than one arm, are counted and left out. Totals of impressions and successes are
told beside, over all impressions: a success belongs to the newest impression of its item to its user before it.

Everything is columns: a million impressions of ten items take a few seconds and about a gigabyte.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.attribution import Slots, attributed, slots_of, without_exploration
from services.experiment_data import ReportError, Successes
from services.sequential import BURN_IN, confidence_sequence, effects, ratio_mismatch
from serving.experiments.plan import CONTROL
from streaming.hashing import UInt64, stable_hash
from streaming.rows import Int64

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_MISMATCH = 0.001  # a split this improbable is a broken one


def chosen(impressions: pa.Table, experiment: str | None) -> tuple[str, pa.Table]:
    """The impressions of one experiment, and its name.

    Raises:
        ReportError: there are none, or none is named and there are several.
    """
    names = sorted(name for name in pc.unique(impressions["experiment"]).to_pylist() if name)
    if experiment is None and len(names) == 1:
        experiment = names[0]
    if experiment is None or experiment not in names:
        seen = f"impressions of {', '.join(names)}" if names else "no impressions of any experiment"
        raise ReportError(f"expected impressions of {experiment or 'one experiment'}; there are {seen}")
    mine = pc.and_(pc.equal(impressions["experiment"], experiment), pc.is_valid(impressions["arm"]))
    return experiment, impressions.filter(pc.fill_null(mine, False))


def report(
    impressions: pa.Table,
    successes: Successes,
    *,
    name: str,
    window_ms: int,
    shares: dict[str, float] | None = None,
    alpha: float = 0.05,
) -> dict[str, Any]:
    """Evaluate an experiment.

    Args:
        impressions: of it, see `chosen`. successes: of all users. name: for the record.
        window_ms: how long after an impression a success counts.
        shares: of the arms as planned, the control first; None: as they are seen, and no test of the split.
        alpha: 1 - confidence, shared among the arms that are compared with the control.

    Raises:
        ReportError: fewer than two arms were shown.
    """
    users = stable_hash(impressions["user_id"])
    times = impressions["time"].to_numpy()
    arms = _arms(impressions, shares)
    arm = np.array([arms.index(a) if a in arms else -1 for a in impressions["arm"].to_pylist()], np.int64)
    if len(arms) < 2:
        raise ReportError(
            f"experiment {name}: expected impressions of two arms, got {', '.join(arms) or 'none'}"
        )
    slots = slots_of(impressions)
    at = attributed(slots, users, times, successes, window_ms)
    ids, first_at, row_user = _by_user(users, times)
    user_arm, crossed = _arm_of(row_user, arm, len(ids))
    began = times[first_at]
    until = int(max(times.max(), successes.time_ms.max(initial=0)))
    success_user = row_user[slots.impression[at.slot]]
    early = at.time_ms <= began[success_user] + window_ms
    outcome = np.zeros(len(ids))
    outcome[success_user[early]] = 1.0
    ripe = (began + window_ms <= until) & ~crossed & (user_arm >= 0)
    clicked = np.zeros(len(slots.item), bool)
    clicked[at.slot] = True
    told = [
        _arm_figures(arms[k], arm, user_arm, ripe, crossed, outcome, slots, clicked, k)
        for k in range(len(arms))
    ]
    order = np.argsort(began, kind="stable")
    order = order[ripe[order]]
    compared = alpha / (len(arms) - 1)
    planned = np.array([(shares or {}).get(a, np.nan) for a in arms])
    counts = np.bincount(user_arm[(user_arm >= 0) & ~crossed], minlength=len(arms))
    share = counts / max(counts.sum(), 1) if np.isnan(planned).any() else planned
    result: dict[str, Any] = {
        "experiment": name,
        "window_s": window_ms / 1000,
        "confidence": 1 - alpha,
        "arms": told,
        "crossed_users": int(crossed.sum()),
        "unripe_users": int((~crossed & (user_arm >= 0) & ~ripe).sum()),
        "rejected_events": successes.rejected,
        "split_p": None if np.isnan(planned).any() else ratio_mismatch(counts, planned),
        "differences": [
            _difference(k, arms, user_arm, outcome, order, share, compared) for k in range(1, len(arms))
        ],
    }
    return result | {"verdict": verdict(result)}


def _arms(impressions: pa.Table, shares: dict[str, float] | None) -> list[str]:
    """Names of the arms, the control first."""
    if shares is not None:
        return list(shares)
    seen = sorted(name for name in pc.unique(impressions["arm"]).to_pylist() if name)
    return sorted(seen, key=lambda name: name != CONTROL)


def _by_user(users: UInt64, times: Int64) -> tuple[UInt64, Int64, Int64]:
    """Users, the impression at which each was seen first, and each impression's user as a place in them."""
    order = np.argsort(times, kind="stable")
    ids, first, inverse = np.unique(users[order], return_index=True, return_inverse=True)
    row_user = np.empty(len(users), np.int64)
    row_user[order] = inverse
    return ids, order[first], row_user


def _arm_of(row_user: Int64, arm: Int64, count: int) -> tuple[Int64, Bools]:
    """The arm of each user, and who was seen in more than one."""
    lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1, np.int64)
    np.minimum.at(lowest, row_user, arm)
    np.maximum.at(highest, row_user, arm)
    return highest, lowest != highest


def _arm_figures(
    name: str,
    arm: Int64,
    user_arm: Int64,
    ripe: Bools,
    crossed: Bools,
    outcome: Floats,
    slots: Slots,
    clicked: Bools,
    number: int,
) -> dict[str, Any]:
    mine = arm[slots.impression] == number
    users = ripe & (user_arm == number)
    return {
        "arm": name,
        "users": int(((user_arm == number) & ~crossed).sum()),
        "ripe_users": int(users.sum()),
        "converted_users": int(outcome[users].sum()),
        "rate": float(outcome[users].mean()) if users.any() else None,
        "impressions": int((arm == number).sum()),
        "items_shown": int(mine.sum()),
        "successes": int(clicked[mine].sum()),
        "success_per_item": float(clicked[mine].mean()) if mine.any() else None,
        "without_exploration": without_exploration(slots, clicked, mine),
    }


def _difference(
    number: int, arms: list[str], user_arm: Int64, outcome: Floats, order: Int64, share: Floats, alpha: float
) -> dict[str, Any]:
    """One arm against the control, over the users of both in the order in which they came."""
    pair = order[(user_arm[order] == number) | (user_arm[order] == 0)]
    treated = user_arm[pair] == number
    told: dict[str, Any] = {"arm": arms[number], "against": arms[0], "users": len(pair)}
    both = min(int(treated.sum()), int((~treated).sum()))
    if len(pair) < BURN_IN or both < BURN_IN // 10 or outcome[pair].min() == outcome[pair].max():
        return told | {"difference": None, "low": None, "high": None, "shown": None}
    chance = float(share[number] / (share[number] + share[0]))
    mean, width = confidence_sequence(effects(outcome[pair], treated, chance), alpha)
    low, high = float(mean[-1] - width[-1]), float(mean[-1] + width[-1])
    shown = "better" if low > 0 else "worse" if high < 0 else "none yet"
    return told | {"difference": float(mean[-1]), "low": low, "high": high, "shown": shown}


def verdict(result: dict[str, Any]) -> str:
    """The outcome in a sentence or two."""
    if result["split_p"] is not None and result["split_p"] < _MISMATCH:
        return (
            f"Do not trust this experiment: its users are not split as planned (p = {result['split_p']:.1g}). "
            "Look for lost impressions, failing arms or several services with different plans."
        )
    rates = {arm["arm"]: arm["rate"] for arm in result["arms"]}
    said = []
    for one in result["differences"]:
        if one["difference"] is None:
            said.append(
                f"Too few users or successes to compare {one['arm']} with {one['against']}: "
                f"{one['users']:,} users so far."
            )
            continue
        span = f"{100 * one['low']:+.2f} to {100 * one['high']:+.2f} points"
        if one["shown"] == "none yet":
            said.append(
                f"No difference between {one['arm']} and {one['against']} is shown yet: it lies in {span}, with "
                f"{result['confidence']:.0%} confidence however often you look."
            )
        else:
            mine, theirs = rates[one["arm"]] or math.nan, rates[one["against"]] or 0.0
            said.append(
                f"{one['arm']} is {one['shown']} than {one['against']}: {mine:.2%} of its users succeeded, "
                f"{theirs:.2%} of the others' ({span}, with {result['confidence']:.0%} confidence however often you "
                "look)."
            )
    return " ".join(said)
