"""Settings of the serving side. Every number has its unit in its name or its description."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from serving.experiments.config import CanarySettings, ImpressionSettings, ShadowSettings
from serving.policy_config import DiversitySettings, ExplorationSettings, RuleSettings
from serving.security.config import SecuritySettings
from streaming.config import Section


class ReplicaSettings(Section):
    """How many replicas answer, and what each may take."""

    minimum: int = Field(
        1,
        ge=0,
        le=1000,
        description="replicas that are always up; 0: none while nobody asks, the next one waits",
    )
    maximum: int = Field(1, ge=1, le=1000, description="most replicas the autoscaler may start")
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="the autoscaler aims at this many ongoing requests per replica"
    )
    max_ongoing_requests: int = Field(256, ge=1, description="a replica takes no more than this many at once")
    upscale_delay_s: float = Field(
        10.0, ge=0, description="load must last this long before replicas are added, s"
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, description="and be gone this long before they are removed, s"
    )
    cpus: float = Field(0.25, ge=0, description="cores that Ray reserves for one replica (it may use more)")

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.maximum < self.minimum:
            raise ValueError(f"maximum={self.maximum} is below minimum={self.minimum}; raise maximum")
        return self


class PopularitySettings(Section):
    """What stands in for a model until the first one is promoted."""

    windows: int = Field(24, ge=1, le=1000, description="newest windows that are counted")
    half_life_s: float = Field(
        7 * 86400.0, gt=0, description="an event this much older counts half, s of event time"
    )


class ServingSettings(Section):
    """The HTTP API and what stands behind it."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=1, le=65535, description="HTTP port")
    k_default: int = Field(10, ge=1, le=10_000, description="items in an answer when `k` is not given")
    k_max: int = Field(100, ge=1, le=10_000, description="most items one request may ask for")
    page_depth: int = Field(1000, ge=1, le=100_000, description="pages of a list end at this item")
    candidates_max: int = Field(1000, ge=1, le=100_000, description="most items in one POST /v1/rank")
    exclude_max: int = Field(1000, ge=1, le=100_000, description="most items in one `exclude`")
    batch_max: int = Field(256, ge=1, le=10_000, description="most requests in one POST /v1/recommendations")
    events_max: int = Field(1000, ge=1, le=100_000, description="most events in one POST /v1/events")
    inline_events_max: int = Field(200, ge=1, le=10_000, description="most inline events of one session")
    exclude_seen: bool = Field(
        True, description="leave out what the user has already touched, unless told otherwise"
    )
    max_id_length: int = Field(512, ge=8, le=65536, description="longest user or item id, characters")
    refresh_s: float = Field(
        0.5, gt=0, le=3600, description="look for a new model and new items this often, s"
    )
    refresh_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="most of a core the refresher may take while the catalogue keeps changing",
    )
    load_retry_s: float = Field(
        10.0, gt=0, description="a model that failed to load is tried again after this, s"
    )
    stream_clock: bool = Field(
        False,
        description="an event without a timestamp gets the stream's newest event time: for replayed pasts",
    )
    request_timeout_s: float = Field(
        10.0, gt=0, le=600, description="longest wait for the broker or supervisor, s"
    )
    stats_timeout_s: float = Field(2.0, gt=0, le=600, description="longest wait for the pipeline's status, s")
    threads: int = Field(
        1, ge=1, le=256, description="threads of one forward pass; more pay for large catalogues only"
    )
    stats_window: int = Field(
        4096, ge=16, le=1_000_000, description="newest requests behind /v1/stats p50 and p99"
    )
    admin_api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="a key with scope admin, sent as X-API-Key; security.keys holds others",
    )
    admin_open: bool = Field(False, description="with no admin_api_key: let everybody promote (laptop only)")
    micro_batch_max: int = Field(
        64, ge=1, le=1024, description="most requests that are ranked together because they arrive together"
    )
    page: bool = Field(True, description="show the running system to people at /")
    simulations: bool = Field(
        False,
        description="for demonstrations: callers with scope admin may send fake users, POST /v1/attacks",
    )
    popularity: PopularitySettings = PopularitySettings()
    micro_batch_wait_ms: float = Field(
        0.5,
        ge=0,
        le=100,
        description="longest wait for as many requests as came together before, ms; a lone one never waits",
    )
    rules: RuleSettings = RuleSettings()
    diversity: DiversitySettings = DiversitySettings()
    exploration: ExplorationSettings = ExplorationSettings()
    impressions: ImpressionSettings = ImpressionSettings()
    canary: CanarySettings = CanarySettings()
    shadow: ShadowSettings = ShadowSettings()
    security: SecuritySettings = SecuritySettings()
    replicas: ReplicaSettings = ReplicaSettings()

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if self.k_default > self.k_max:
            raise ValueError(
                f"k_default={self.k_default} is above k_max={self.k_max}; lower it or raise k_max"
            )
        self.security.anonymous_on(
            self.host
        )  # refuses a host that others reach while nothing says what they may
        return self
