"""Finds ids of users: state, windows and trust hold only hashes, the events topics hold the ids."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from services.settings import Settings
from services.topic_reader import TopicReader, UnknownTopicError
from streaming.config import Source
from streaming.events import EventDecoder
from streaming.hashing import UInt64

_PORTION = 5000  # records decoded together


def newest_ids(settings: Settings, source: Source, records: int) -> list[str]:
    """Ids of the users whom a topic's newest records are of, newest first; none where retention has taken all.

    Raises:
        BrokerError: the broker cannot be reached, or has no such topic.
    """
    decoder = EventDecoder(settings.streaming, source)
    found: list[tuple[int, int, str]] = []
    with TopicReader(settings.kafka, source.topic) as reader:
        for record in reader.read(reader.newest(records)):
            try:
                user = decoder.user_id(record.value, record.key, record.timestamp)
            except ValueError:  # a dead letter
                continue
            found.append((record.timestamp, record.offset, user))
    return list(dict.fromkeys(user for _, _, user in sorted(found, reverse=True)))


def find_ids(settings: Settings, users: UInt64) -> dict[int, str]:
    """Read the events topics until every user is found, or to their present end.

    Some 40,000 records per second. Who is missing from the result has no record left: retention has taken them.

    Args:
        users: (U,) hashes.

    Returns:
        Ids by hash.

    Raises:
        BrokerError: the broker cannot be reached.
    """
    found: dict[int, str] = {}
    for source in settings.streaming.sources:
        decoder = EventDecoder(settings.streaming, source)
        try:
            with TopicReader(settings.kafka, source.topic) as reader:
                for records in _portions(reader.read(reader.everything())):
                    missing = np.setdiff1d(users, np.array(list(found), np.uint64))
                    if not len(missing):
                        return found
                    found |= _ids_in(decoder, records, missing)
        except UnknownTopicError:
            continue
    return found


def _ids_in(decoder: EventDecoder, records: list[Any], users: UInt64) -> dict[int, str]:
    times = np.array([record.timestamp for record in records], np.int64)
    events, _ = decoder.decode([r.value for r in records], [r.key for r in records], times)
    wanted = np.isin(events.user, users)
    hashes, first = np.unique(events.user[wanted], return_index=True)
    places = events.record[wanted][first].tolist()
    chosen = [records[place] for place in places]
    ids = [decoder.user_id(record.value, record.key, record.timestamp) for record in chosen]
    return dict(zip(hashes.tolist(), ids, strict=True))


def _portions(records: Iterable[Any]) -> Iterator[list[Any]]:
    stream = iter(records)
    while portion := list(islice(stream, _PORTION)):
        yield portion
