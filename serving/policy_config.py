"""Settings of what is done between the scores and the list: rules, diversity, exploration. All are off by default."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from serving.filters import parse
from streaming.config import Section


def _readable(text: str) -> str:
    parse(text)
    return text


FilterText = Annotated[str, AfterValidator(_readable)]


class Rule(Section):
    """Base of the rules: each may have a beginning and an end."""

    starts: AwareDatetime | None = Field(None, description="not before this, with time zone")
    ends: AwareDatetime | None = Field(None, description="no longer from this on, with time zone")

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        if self.starts and self.ends and self.starts >= self.ends:
            raise ValueError(f"starts={self.starts} is not before ends={self.ends}; swap or remove one")
        return self

    def active(self, now_s: float) -> bool:
        """Whether the rule holds at a time, epoch s."""
        started = self.starts is None or self.starts.timestamp() <= now_s
        return started and (self.ends is None or now_s < self.ends.timestamp())


class Boost(Rule):
    """Items that are shown more, or less."""

    filter: FilterText = Field(description="which items")
    factor: float = Field(
        ge=0.001,
        le=1000,
        description="multiplies the odds of being chosen: 2 = twice, 0.5 = half; ln of it is added",
    )


class Pin(Rule):
    """An item with a fixed place."""

    item_id: str = Field(min_length=1)
    position: int = Field(
        ge=1, le=1000, description="1 = first; where it is taken by an earlier rule, the next"
    )
    filter: FilterText | None = Field(None, description="only while the item meets it: 'stock > 0'")


class Cap(Rule):
    """How many items of a kind an answer may hold."""

    most: int = Field(ge=0, le=1000, description="items of the kind in one answer")
    each: str | None = Field(None, description="field of texts, each of which is a kind: 'category', 'brand'")
    filter: FilterText | None = Field(None, description="or: the one kind is what meets this")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.each is None) == (self.filter is None):
            raise ValueError("expected either each (a field) or filter (one kind of item)")
        return self


class Block(Rule):
    """Items that are not recommended."""

    filter: FilterText = Field(description="which items")


class RuleSettings(Section):
    """Business rules; filters are written as in requests."""

    boost: tuple[Boost, ...] = ()
    pin: tuple[Pin, ...] = ()
    cap: tuple[Cap, ...] = ()
    block: tuple[Block, ...] = ()
    cap_reach: int = Field(
        10, ge=1, le=100, description="candidates looked at per item of an answer while there are caps"
    )

    def all(self) -> tuple[Rule, ...]:
        """Every rule."""
        return *self.boost, *self.pin, *self.cap, *self.block

    def since_s(self, now_s: float) -> float:
        """When the set of active rules last changed, epoch s; -inf: it has not. The same in every replica."""
        times = [time.timestamp() for rule in self.all() for time in (rule.starts, rule.ends) if time]
        return max((time for time in times if time <= now_s), default=float("-inf"))


class DiversitySettings(Section):
    """How unlike each other the items of a list are."""

    default: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0 = by score alone, 1 = as unlike as can be; a request may say otherwise",
    )
    candidates: int = Field(
        100, ge=2, le=500, description="best items that are put in order by it; those behind follow by score"
    )


class ExplorationSettings(Section):
    """Whether lists are drawn, and how."""

    kind: Literal["off", "epsilon", "plackett-luce"] = "off"
    epsilon: float = Field(0.05, ge=0, le=1, description="epsilon: share of places that are drawn evenly")
    temperature: float = Field(
        0.1, gt=0, le=1000, description="plackett-luce: in units of the score; 1 = the model's own softmax"
    )
    candidates: int = Field(
        100, ge=2, le=500, description="best items among which lists are drawn; those behind follow by score"
    )
