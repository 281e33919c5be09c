"""Who gets which arm: sticky by hash, the same in every replica and in every evaluation.

A user's place in [0, 1) is xxh3 of the id, seeded with the experiment's salt, so two experiments split their users
independently. Arms lie side by side in [0, 1): the first begins at 0, the last ends at 1 where the shares sum to
one. So where one of two arms grows at the other's cost, who was in it stays in it.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

Floats64 = npt.NDArray[np.float64]

OUTSIDE = -1  # of every arm


def unit(key: str, salt: int) -> float:
    """The place of one user in [0, 1): the upper 53 bits, which a float holds exactly."""
    return (xxh3_64_intdigest(key.encode(), seed=salt) >> 11) * 2.0**-53


def units(keys: Sequence[str] | pa.Array | pa.ChunkedArray, salt: int) -> Floats64:
    """The places of a column of users.

    Args:
        keys: N strings without nulls. salt: of the experiment.

    Returns:
        (N,) float64 in [0, 1).
    """
    column = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys, pa.string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = pc.dictionary_encode(column)
    distinct = np.array([unit(key, salt) for key in encoded.dictionary.to_pylist()], np.float64)
    places: npt.NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return distinct[places] if len(distinct) else np.empty(0, np.float64)


def bounds_of(shares: Sequence[float]) -> tuple[float, ...]:
    """Where each arm ends in [0, 1]; the last of shares that sum to one ends at one exactly."""
    ends = np.cumsum(np.asarray(shares, np.float64))
    if abs(ends[-1] - 1.0) < 1e-9:
        ends[-1] = 1.0
    return tuple(ends.tolist())


def arm_at(bounds: Sequence[float], place: float) -> int:
    """The arm at a place, `OUTSIDE` behind the last."""
    arm = bisect_right(bounds, place)
    return arm if arm < len(bounds) else OUTSIDE


def arms_at(bounds: Sequence[float], places: Floats64) -> npt.NDArray[np.int64]:
    """The arms at (N,) places."""
    arms = np.searchsorted(np.asarray(bounds), places, side="right").astype(np.int64)
    arms[arms == len(bounds)] = OUTSIDE
    return arms
