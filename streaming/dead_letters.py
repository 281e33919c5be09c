"""Records that do not validate: kept whole in a topic of their own, with headers that say why and from where."""

import time
from collections.abc import Sequence

from kafka import KafkaProducer

from streaming.config import KafkaSettings
from streaming.events import Rejected
from streaming.source import Records


def send_dead_letters(
    producer: KafkaProducer, kafka: KafkaSettings, batch: Records, rejected: Sequence[Rejected]
) -> None:
    """Publish rejected records and wait until the broker has them.

    Args:
        batch: the records they are among.
        rejected: which, and why.

    Raises:
        KafkaError: the broker did not take one in time.
    """
    now = str(int(time.time() * 1000)).encode()
    futures = []
    for reject in rejected:
        place = reject.record
        headers = [
            ("headrace.reason", reject.reason.encode(errors="replace")),
            ("headrace.topic", batch.topic.encode()),
            ("headrace.partition", str(batch.partition).encode()),
            ("headrace.offset", str(batch.offsets[place]).encode()),
            ("headrace.time", now),
        ]
        futures.append(
            producer.send(
                kafka.dead_letter_topic,
                key=batch.keys[place],
                value=batch.values[place],
                headers=[*batch.headers(place), *headers],
            )
        )
    producer.flush(timeout=kafka.request_timeout_s)
    for future in futures:
        future.get(timeout=kafka.request_timeout_s)
