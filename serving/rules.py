"""Business rules: what is boosted, pinned, capped and blocked, from the settings.

*Boost.* A score is scale · cosine and may be negative, so to multiply it would sink some items and raise others. It
is the logit of the model's softmax; a factor f adds ln f to it, which multiplies the odds of the item against any
other by f. Factors of several rules multiply, and a factor below 1 buries.

*Pin.* An item stands at its place in every list that may show it: filters, exclusions and availability hold for it
as for any other. *Cap.* At most so many items of a kind stand in an answer; a short answer is preferred to a capped
item. *Block.* An item that is not recommended.

Rules are compiled once per snapshot into arrays of N items (`RuleBook`). Per request, `CompiledRules.apply` takes
candidates best first and returns the list. Where more is done between, its parts are called: `lift`, `cap`, `place`.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from serving.columns import ItemColumns
from serving.conditions import FilterError
from serving.filters import parse
from serving.items import Bools
from serving.policy_config import RuleSettings
from serving.user_encoder import Floats
from streaming.rows import Int64

logger = logging.getLogger(__name__)

# added to the scores of pinned items: above any other (a scale is at most 200), and exact to 4 decimals
PIN = np.float32(512.0)
_MOST_BOOST = 50.0  # so that no boost reaches a pin


@dataclass(frozen=True)
class Pins:
    """Pinned items that may be shown in a list: p of them, ascending by slot.

    Attributes:
        slots: (p,) int64 place in the list, from 0. rows: (p,). scores: (p,) their own, without what the pin added.
    """

    slots: Int64
    rows: Int64
    scores: Floats

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class CompiledRules:
    """The rules that are active at one time, over the N items of one snapshot.

    Attributes:
        offsets: (N,) float32 to be added to scores before candidates are chosen: boosts and pins; None: nothing.
        blocked: (N,) may not be recommended; None: none.
        pins: row → slot, from 0.
        limits: most items of each of G kinds.
        starts, kinds: (N + 1,) and (T,); row r is of ``kinds[starts[r]:starts[r + 1]]``.
        reach: candidates wanted per item of an answer.
    """

    offsets: Floats | None = None
    blocked: Bools | None = None
    pins: dict[int, int] = field(default_factory=dict)
    limits: list[int] = field(default_factory=list)
    starts: Int64 | None = None
    kinds: Int64 | None = None
    reach: int = 1

    @cached_property
    def allowed(self) -> Bools | None:
        """(N,) what is not blocked; None: everything."""
        return None if self.blocked is None else ~self.blocked

    def candidates(self, k: int) -> int:
        """How many of the best rows `apply` should be given for k items."""
        return k * self.reach + len(self.pins)

    def apply(self, rows: Int64, scores: Floats, k: int, per: int | None = None) -> tuple[Int64, Floats]:
        """Arrange a list of k from n candidates.

        Args:
            rows, scores: (n,) best first, offsets included, without what is blocked.
            k: wanted. per: places of one answer, within which caps hold; k if not given.

        Returns:
            rows and scores (m,) of the list, m ≤ k; a pin's offset is taken off its score again.
        """
        if not self.pins and not self.limits:
            return rows[:k], scores[:k]
        pins, rows, scores = self.lift(rows, scores, k)
        kept = self.cap(rows, k, pins, per)
        order = self.place(pins, len(kept), k, per)
        return (
            np.concatenate([rows[kept], pins.rows])[order],
            np.concatenate([scores[kept], pins.scores])[order],
        )

    def lift(self, rows: Int64, scores: Floats, k: int) -> tuple[Pins, Int64, Floats]:
        """Take the pinned items out of n candidates for a list of k.

        Returns:
            the pins within the list, and rows and scores of all that is not pinned.
        """
        if not self.pins:
            return Pins(rows[:0], rows[:0], scores[:0]), rows, scores
        length = min(k, len(rows))
        all_slots = np.array([self.pins.get(row, -1) for row in rows.tolist()], np.int64)
        free = all_slots < 0
        pinned = np.flatnonzero(~free)
        if length == len(rows):  # all there is stands in this list, so a place behind its end is its last
            all_slots = np.minimum(all_slots, length - 1)
        else:
            pinned = pinned[all_slots[pinned] < length]
        pinned = pinned[np.argsort(all_slots[pinned], kind="stable")]
        own = np.round(scores[pinned].astype(np.float64) - float(PIN), 4).astype(np.float32)
        return Pins(all_slots[pinned], rows[pinned], own), rows[free], scores[free]

    def cap(self, rows: Int64, k: int, pins: Pins, per: int | None = None) -> Int64:
        """Choose from n candidates that are not pinned, so that every ``per`` places keep to the caps.

        What a cap holds back stands in the next answer that has room for it; where too little is left to fill an
        answer, the list ends.

        Returns:
            positions of those that stand in the list of k beside the pins, in their order.
        """
        if not self.limits or self.starts is None or self.kinds is None:
            return np.arange(min(len(rows), k - len(pins)))
        per, chosen, waiting = per or k, list[int](), list(range(len(rows)))
        for begin in range(0, k, per):
            end = min(begin + per, k)
            counts = [0] * len(self.limits)
            inside = pins.rows[(pins.slots >= begin) & (pins.slots < end)].tolist()
            for row in inside:
                for kind in self.kinds_of(row):
                    counts[kind] += 1
            room, held = end - begin - len(inside), []
            for number, position in enumerate(waiting):
                if room == 0:
                    held += waiting[number:]
                    break
                kinds = self.kinds_of(int(rows[position]))
                if all(counts[kind] < self.limits[kind] for kind in kinds):
                    chosen.append(position)
                    room -= 1
                    for kind in kinds:
                        counts[kind] += 1
                else:
                    held.append(position)
            waiting = held
            if room:
                break
        return np.array(chosen, np.int64)

    def place(self, pins: Pins, count: int, k: int, per: int | None = None) -> Int64:
        """Put pins between ``count`` items of a list of k, of which ``per`` make an answer; all of them if not given.

        Returns:
            (m,) positions among the items followed by the pins: ``count + i`` is the pin i. Where an answer has too
            few items for a pin's slot, the pin stands behind the last; pins of answers that are not reached are left
            out.
        """
        order = list(range(count))
        for number, slot in enumerate(pins.slots.tolist()):
            if len(order) >= slot - slot % (per or k):
                order.insert(slot, count + number)
        return np.array(order[:k], np.int64)

    def kinds_of(self, row: int) -> list[int]:
        """The capped kinds that an item is of."""
        assert self.starts is not None, "there are caps"
        assert self.kinds is not None, "there are caps"
        kinds: list[int] = self.kinds[self.starts[row] : self.starts[row + 1]].tolist()
        return kinds


class RuleBook:
    """Compiles the rules when the snapshot or the time asks for it; what is wrong with a rule is logged once.

    A rule that the present catalogue gives nothing to (an attribute that no item has, an unknown item) does nothing.
    """

    def __init__(self, settings: RuleSettings) -> None:
        self._settings = settings
        # one per model that is live; gone with its snapshot
        self._compiled: WeakKeyDictionary[ItemColumns, tuple[float, CompiledRules]] = WeakKeyDictionary()
        self._told: set[str] = set()

    def compiled(self, columns: ItemColumns, now_s: float) -> CompiledRules:
        """The rules of now, epoch s: compiled again for new columns, and when a rule starts or ends."""
        since_s, held = self._settings.since_s(now_s), self._compiled.get(columns)
        if held is not None and held[0] == since_s:
            return held[1]
        compiled = self._compile(columns, now_s)
        self._compiled[columns] = since_s, compiled
        return compiled

    def _compile(self, columns: ItemColumns, now_s: float) -> CompiledRules:
        settings = self._settings
        pins = self._pins(columns, now_s)
        logs = np.zeros(len(columns))
        for boost in settings.boost:
            if boost.active(now_s):
                logs[self._rows(boost.filter, columns)] += np.log(boost.factor)
        offsets = np.clip(logs, -_MOST_BOOST, _MOST_BOOST).astype(np.float32)
        offsets[list(pins)] += PIN
        blocked = np.zeros(len(columns), bool)
        for block in settings.block:
            if block.active(now_s):
                blocked |= self._rows(block.filter, columns)
        limits, starts, kinds = self._caps(columns, now_s)
        return CompiledRules(
            offsets=offsets if offsets.any() else None,
            blocked=blocked if blocked.any() else None,
            pins=pins,
            limits=limits,
            starts=starts,
            kinds=kinds,
            reach=settings.cap_reach if limits else 1,
        )

    def _pins(self, columns: ItemColumns, now_s: float) -> dict[int, int]:
        pins: dict[int, int] = {}
        taken: set[int] = set()
        for pin in self._settings.pin:
            if not pin.active(now_s):
                continue
            row = columns.row_of(pin.item_id)
            if row is None:
                self._tell(f"pins {pin.item_id!r}, which neither catalogue nor model knows")
                continue
            if row in pins or (pin.filter is not None and not self._rows(pin.filter, columns)[row]):
                continue
            slot = pin.position - 1
            while slot in taken:
                slot += 1
            taken.add(slot)
            pins[row] = slot
        return pins

    def _caps(self, columns: ItemColumns, now_s: float) -> tuple[list[int], Int64 | None, Int64 | None]:
        """The limits of G kinds, and which kinds each item is of: see `CompiledRules`."""
        limits: list[int] = []
        rows: list[Int64] = []
        kinds: list[Int64] = []
        for cap in self._settings.cap:
            if not cap.active(now_s):
                continue
            if cap.filter is not None:
                inside = np.flatnonzero(self._rows(cap.filter, columns))
                rows.append(inside)
                kinds.append(np.full(len(inside), len(limits)))
                limits.append(cap.most)
            elif cap.each is not None:
                column = columns.field(cap.each)
                if column is None or not column.words:
                    self._tell(f"caps each {cap.each!r}, a text that no item has")
                    continue
                owners, words = column.pairs()
                rows.append(owners)
                kinds.append(words + len(limits))
                limits += [cap.most] * len(column.words)
        if not limits:
            return [], None, None
        every_row, every_kind = np.concatenate(rows), np.concatenate(kinds)
        order = np.argsort(every_row, kind="stable")
        starts = np.searchsorted(every_row[order], np.arange(len(columns) + 1))
        return limits, starts, every_kind[order]

    def _rows(self, text: str, columns: ItemColumns) -> Bools:
        try:
            return parse(text).rows(columns)
        except FilterError as error:
            self._tell(f"filter {text!r}, {error}")
            return np.zeros(len(columns), bool)

    def _tell(self, detail: str) -> None:
        if detail not in self._told:
            self._told.add(detail)
            logger.warning("a rule of serving.rules does nothing: %s", detail)
