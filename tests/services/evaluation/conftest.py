"""A stream in which the next item follows from the last: item n is followed by n + 1, round a circle of ten."""

import numpy as np
import pyarrow as pa
import pytest

from services.datasets import INTERACTIONS, ITEMS, Dataset

CIRCLE = 10


def make_dataset(users=40, length=12, seed=0, types=("view",)):
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start, begin = rng.integers(CIRCLE), rng.integers(1000)
        for step in range(length):
            item = f"i{(start + step) % CIRCLE}"
            rows.append(
                (
                    f"u{user}",
                    item,
                    1_700_000_000_000 + int(begin + 1000 * step),
                    types[step % len(types)],
                    1.0,
                )
            )
    rows.sort(key=lambda row: row[2])
    interactions = pa.table([list(column) for column in zip(*rows, strict=True)], schema=INTERACTIONS)
    ids = [f"i{n}" for n in range(CIRCLE)] + ["untouched"]
    titles = [f"station {n}" for n in range(CIRCLE)] + [None]
    kinds = [["even" if n % 2 == 0 else "odd"] for n in range(CIRCLE)] + [None]
    items = pa.table([ids, titles, [""] * len(ids), kinds], schema=ITEMS)
    return Dataset("circle", interactions, items)


@pytest.fixture
def circle():
    return make_dataset()
