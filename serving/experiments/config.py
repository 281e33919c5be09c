"""Settings of experiments, canaries and impressions. Every number has its unit in its name or its description."""

from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from streaming.config import Section


class CanarySettings(Section):
    """A promoted version is shown to few users first, and taken back where it fails them."""

    enabled: bool = Field(
        False, description="try a promoted version on some users first; false: all get it at once"
    )
    shares: tuple[float, ...] = Field(
        (0.01, 0.1),
        min_length=1,
        max_length=10,
        description="share of users at each stage; after the last: all",
    )
    stage_s: float = Field(300.0, ge=0, le=7 * 86400, description="a stage lasts at least this long, s")
    min_requests: int = Field(
        500, ge=1, le=10_000_000, description="rankings with the new version before a stage ends"
    )
    patience_s: float = Field(
        3600.0,
        gt=0,
        le=30 * 86400,
        description="a stage with fewer rankings than that ends after this, if nothing speaks against the version, s",
    )
    error_tolerance: float = Field(
        0.001, ge=0, lt=1, description="share of failed rankings allowed beyond that of the version before"
    )
    latency_tolerance: float = Field(
        0.25,
        ge=0,
        le=100,
        description="share by which the 99th percentile may exceed that of the version before",
    )
    latency_slack_ms: float = Field(
        2.0, ge=0, le=60_000, description="and by this much in any case, ms: tiny times differ by chance"
    )
    false_alarms: float = Field(
        0.001, gt=0, le=0.5, description="highest probability that a version no worse than this is taken back"
    )

    @model_validator(mode="after")
    def _stages_grow(self) -> Self:
        bounds = (0.0, *self.shares, 1.0)
        if any(later <= earlier for earlier, later in pairwise(bounds)):
            raise ValueError(f"shares must grow and lie between 0 and 1, got {list(self.shares)}")
        if self.patience_s < self.stage_s:
            raise ValueError(
                f"patience_s={self.patience_s:g} is below stage_s={self.stage_s:g}; raise patience_s"
            )
        return self


class ShadowSettings(Section):
    """A version that ranks beside the one that answers, and is shown to nobody."""

    queue: int = Field(
        256, ge=1, le=100_000, description="rankings that may wait for it; more are left out and counted"
    )


class ImpressionSettings(Section):
    """What was shown to whom, written to a topic for evaluation and training."""

    enabled: bool = Field(
        False, description="write impressions; the topic is created where it does not exist"
    )
    topic: str = Field("impressions", min_length=1, description="name of the Kafka topic")
    share: float = Field(
        1.0, gt=0, le=1, description="share of users whose impressions are written, always the same ones"
    )
    queue: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="answers that may wait to be written; more are left out and counted",
    )
