"""Items in memory as columns: what filters and rules are tested on."""

from typing import Any

import numpy as np

from serving.columns import ItemColumns
from serving.items import ItemTable, find
from streaming.catalog import CatalogSnapshot, Item
from streaming.hashing import hash_one


def columns_of(*items: dict[str, Any], retired: tuple[str, ...] = ()) -> tuple[ItemColumns, ItemTable]:
    """The columns of items as they are published, and of some that only the model still knows."""
    parsed = [Item.model_validate(item) for item in items]
    parsed.sort(key=lambda item: hash_one(item.item_id))
    hashes = np.array([hash_one(item.item_id) for item in parsed], np.uint64)
    count = len(parsed)
    catalog = CatalogSnapshot(
        version=1,
        ids=[item.item_id for item in parsed],
        hashes=hashes,
        titles=[item.title for item in parsed],
        categories=[list(item.categories) for item in parsed],
        texts=[item.text() for item in parsed],
        available=np.array([item.available for item in parsed], bool),
        vectors=np.zeros((count, 0), np.float32),
        encoded=np.zeros(count, bool),
        stamps=np.zeros((count, 16), np.uint8),
        attributes=[item.attributes for item in parsed],
    )
    gone = sorted(retired, key=hash_one)
    learned = np.array([hash_one(name) for name in gone], np.uint64)
    every = np.union1d(hashes, learned).astype(np.uint64)
    rows, learned_rows = find(hashes, every), find(learned, every)
    ids = [parsed[c].item_id if c >= 0 else gone[m] for c, m in zip(rows, learned_rows, strict=True)]
    titles = [
        parsed[c].title or parsed[c].item_id if c >= 0 else gone[m]
        for c, m in zip(rows, learned_rows, strict=True)
    ]
    available = np.array([c >= 0 and parsed[c].available for c in rows], bool)
    table = ItemTable(every, ids, titles, available, learned_rows, rows)
    return ItemColumns(catalog, table), table
