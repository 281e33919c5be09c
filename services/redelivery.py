"""Sends dead letters again: to the topic and the partition they came from, with their own key, bytes and headers.

**The partition stays.** The producer chose it, perhaps with a partitioner of its own (librdkafka's default hashes
keys otherwise than Java's): a choice made here from the key could part a user's letter from the rest of the user's
events. Where the topic has grown since, the old partition still exists and is read; only where it is gone the key
decides.

The order for each portion: (1) the letters are sent and acknowledged; (2) a note of their places is written to the
dead-letter topic. A crash in between sends one portion again at the next run, which the event ids make harmless.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from services.dead_letters import (
    REPLAYED,
    REPLAYED_FROM,
    DeadLetter,
    DeadLetterError,
    Place,
    Replayed,
    kind_of,
)
from services.settings import Settings
from streaming.config import Source
from streaming.events import EventDecoder
from streaming.kafka import make_producer, partitions_of

PORTION = 500  # letters that are decoded, acknowledged and noted together


class Judge:
    """Says what today's settings make of a letter."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.streaming
        self._sources: dict[str, Source] = {source.topic: source for source in settings.streaming.sources}
        self._decoders: dict[str, EventDecoder] = {}

    def reasons(self, letters: Sequence[DeadLetter]) -> list[str | None]:
        """For each letter why it would be refused now; None where it would be accepted."""
        reasons: list[str | None] = [None] * len(letters)
        by_topic: dict[str | None, list[int]] = {}
        for position, letter in enumerate(letters):
            by_topic.setdefault(letter.topic, []).append(position)
        for topic, positions in by_topic.items():
            decoder = self._decoder(topic)
            if decoder is None:
                for position in positions:
                    reasons[position] = self._not_read(topic)
                continue
            chosen = [letters[position] for position in positions]
            times = np.array([letter.time_ms for letter in chosen], np.int64)
            _, rejected = decoder.decode(
                [letter.value for letter in chosen], [letter.key for letter in chosen], times
            )
            for reject in rejected:
                reasons[positions[reject.record]] = reject.reason
        return reasons

    def _decoder(self, topic: str | None) -> EventDecoder | None:
        if topic is None or topic not in self._sources:
            return None
        if topic not in self._decoders:
            self._decoders[topic] = EventDecoder(self._settings, self._sources[topic])
        return self._decoders[topic]

    def _not_read(self, topic: str | None) -> str:
        if topic is None:
            return "no header headrace.topic says where it came from"
        return f"topic {topic} is not among streaming.sources ({', '.join(self._sources)})"


@dataclass
class Outcome:
    """What became of the letters that were looked at."""

    sent: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # reason: letters
    examples: dict[str, Place] = field(default_factory=dict)  # of each reason to skip

    def skip(self, letter: DeadLetter, reason: str) -> None:
        """Count a letter that is not sent."""
        self.skipped[kind_of(reason)] += 1
        self.examples.setdefault(kind_of(reason), letter.place)


class Redelivery:
    """Sends letters again, or tells what it would do.

    Args:
        replayed: what was sent before.
        force: send also what would not validate.
        again: send also what was sent before.
        dry_run: send nothing, only count.
    """

    def __init__(
        self,
        settings: Settings,
        replayed: Replayed,
        *,
        force: bool = False,
        again: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._kafka, self._judge, self._replayed = settings.kafka, Judge(settings), replayed
        self._force, self._again, self._dry_run = force, again, dry_run
        self._partitions: dict[str, list[int]] = {}

    def run(self, letters: Iterable[DeadLetter]) -> Outcome:
        """Deal with a stream of letters, a portion at a time.

        Raises:
            DeadLetterError: the broker did not acknowledge a letter; those before it are sent and noted.
        """
        outcome = Outcome()
        producer = None if self._dry_run else make_producer(self._kafka)
        try:
            for portion in _portions(letters):
                chosen = self._choose(portion, outcome)
                if producer is None:
                    outcome.sent += len(chosen)
                else:
                    self._send(producer, chosen, outcome)
        finally:
            if producer is not None:
                producer.close(timeout=self._kafka.request_timeout_s)
        return outcome

    def _choose(self, portion: Sequence[DeadLetter], outcome: Outcome) -> list[DeadLetter]:
        chosen = []
        for letter, reason in zip(portion, self._judge.reasons(portion), strict=True):
            if letter.topic is None:
                outcome.skip(letter, "no header headrace.topic says where it came from")
            elif not self._again and letter.place in self._replayed:
                outcome.skip(letter, "already replayed (--again sends it once more)")
            elif not self._force and reason is not None:
                outcome.skip(letter, reason)
            elif not self._partitions_of(letter.topic):
                outcome.skip(letter, f"topic {letter.topic} does not exist")
            else:
                chosen.append(letter)
        return chosen

    def _send(self, producer: KafkaProducer, letters: Sequence[DeadLetter], outcome: Outcome) -> None:
        sent: list[tuple[DeadLetter, Any]] = []
        for letter in letters:
            try:
                sent.append((letter, self._send_one(producer, letter)))
            except KafkaError as error:  # of this record alone, such as one that is too large
                outcome.skip(letter, f"the producer refuses it: {error}")
        with contextlib.suppress(KafkaTimeoutError):  # what has no answer by then counts as failed
            producer.flush(timeout=self._kafka.request_timeout_s)
        done = [letter.place for letter, future in sent if future.succeeded()]
        failures = [future.exception for _, future in sent if not future.succeeded()]
        outcome.sent += len(done)
        if done:
            self._note(producer, done)
        if failures:
            why = failures[0] or f"no answer within {self._kafka.request_timeout_s:g} s"
            raise DeadLetterError(
                f"the broker did not acknowledge {len(failures)} letters ({why!r}); {outcome.sent} were sent "
                "and are noted, so the same command goes on from there"
            )

    def _send_one(self, producer: KafkaProducer, letter: DeadLetter) -> Any:
        assert letter.topic is not None
        kept = letter.partition in self._partitions_of(letter.topic)
        return producer.send(
            letter.topic,
            key=letter.key,
            value=letter.value,
            headers=[*letter.own_headers, (REPLAYED_FROM, str(letter.place).encode())],
            partition=letter.partition if kept else None,
            # An erasure counts from its record's time on, and must not reach what came since.
            timestamp_ms=letter.time_ms if letter.value is None else None,
        )

    def _note(self, producer: KafkaProducer, places: Sequence[Place]) -> None:
        try:
            producer.send(
                self._kafka.dead_letter_topic,
                value=Replayed(places).to_json(),
                headers=[(REPLAYED, str(len(places)).encode())],
                partition=places[0].partition,
            ).get(timeout=self._kafka.request_timeout_s)
        except KafkaError as error:
            raise DeadLetterError(
                f"{len(places)} letters were sent, but topic {self._kafka.dead_letter_topic!r} did not take the note "
                f"of it ({error!r}): the next replay would send {places[0]} to {places[-1]} again"
            ) from error

    def _partitions_of(self, topic: str) -> list[int]:
        if topic not in self._partitions:
            self._partitions[topic] = partitions_of(self._kafka, topic)
        return self._partitions[topic]


def _portions(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    stream = iter(letters)
    while portion := list(islice(stream, PORTION)):
        yield portion
