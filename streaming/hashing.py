"""Stable 64-bit names for users, items and events.

Every process that sees the same string must give it the same number without asking anybody, on any
machine and in any release. xxh3 (https://xxhash.com) is fixed by its specification; Python's `hash` is
salted per process and would not do. Zero is kept free: it means "nothing here" in padded sequences.

Cost: about 0.2 µs per distinct string. Columns repeat their values, so a batch is dictionary-encoded
first and each distinct string is hashed once.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

UInt64 = npt.NDArray[np.uint64]


def hash_one(value: str) -> int:
    """Hash one string to a non-zero unsigned 64-bit integer."""
    return xxh3_64_intdigest(value.encode()) or 1


def stable_hash(values: Sequence[str] | pa.Array | pa.ChunkedArray) -> UInt64:
    """Hash a column of strings without nulls.

    Args:
        values: N strings.

    Returns:
        (N,) uint64, never zero.
    """
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if len(column) == 0:
        return np.empty(0, np.uint64)
    encoded = pc.dictionary_encode(column)
    names = encoded.dictionary.cast(pa.binary()).to_pylist()
    distinct = np.array([xxh3_64_intdigest(name) for name in names], np.uint64)
    distinct[distinct == 0] = 1
    hashes: UInt64 = distinct[encoded.indices.to_numpy(zero_copy_only=False)]
    return hashes
