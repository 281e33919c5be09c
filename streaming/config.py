"""Settings of the streaming side. Every number has its unit in its name or its description."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class Section(BaseModel):
    """Base of every settings section: immutable, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Section):
    """How to reach the broker, and what the topics are called."""

    bootstrap_servers: str = Field("localhost:9092", description="host:port, several separated by commas")
    client_id: str = Field("headrace", description="name shown in the broker's logs")
    group_id: str = Field("headrace", description="offsets are committed under it, for lag tools only")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: str | None = Field(None, description="PEM file of the authority that signed the broker")
    events_topic: str = Field("events", min_length=1, description="user events")
    items_topic: str = Field("items", min_length=1, description="item catalogue, compacted")
    dead_letter_topic: str = Field(
        "events.dead-letter", min_length=1, description="records that do not validate"
    )
    partitions: int = Field(
        4, ge=1, le=4096, description="partitions of a topic that Headrace itself creates"
    )
    replication_factor: int = Field(
        1, ge=1, le=9, description="replicas of a topic that Headrace itself creates"
    )
    fetch_wait_ms: int = Field(
        20, ge=1, le=60_000, description="longest a broker may hold back a fetch with nothing in it, ms"
    )
    request_timeout_s: float = Field(30.0, gt=0, le=600, description="longest wait for one broker request, s")

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_mechanism and self.sasl_username and self.sasl_password
        ):
            raise ValueError(
                f"security_protocol={self.security_protocol} needs sasl_mechanism, sasl_username "
                "and sasl_password"
            )
        return self


DottedPath = Annotated[str, Field(min_length=1, pattern=r"^[^.]+(\.[^.]+)*$")]


class FieldPaths(Section):
    """Where each field of the Event contract stands in a record: a dotted path into the JSON object."""

    event_id: DottedPath | None = Field(
        "event_id", description="none: records are told apart by their offset only"
    )
    user_id: DottedPath = "user_id"
    item_id: DottedPath = "item_id"
    type: DottedPath = "type"
    timestamp: DottedPath = "timestamp"


class WindowSettings(Section):
    """Event-time windows: the portions in which the model learns."""

    length_s: float = Field(3600.0, ge=1, description="length of a window in event time, s")
    lateness_s: float = Field(
        60.0, ge=0, description="how far behind its partition's newest event one may come, s"
    )
    idle_timeout_s: float = Field(
        5.0, gt=0, description="a drained partition stops holding windows open after this, s"
    )


class StreamingSettings(Section):
    """Ingestors, shards and windows."""

    event_types: tuple[str, ...] = Field(
        ("view", "click", "like", "rating", "cart", "purchase"),
        min_length=1,
        max_length=32,
        description="known event types; a record's must be one of them (their order is part of the state)",
    )
    fields: FieldPaths = FieldPaths()
    sequence_length: int = Field(50, ge=2, le=1000, description="newest events kept per user")
    logical_shards: int = Field(16, ge=1, le=4096, description="fixed for the life of a state directory")
    shard_actors: int = Field(1, ge=1, description="actors that host the logical shards")
    ingestors: int = Field(1, ge=1, description="actors that read the events topic")
    half_life_s: float = Field(
        7 * 86400.0, gt=0, description="half-life of the decayed counts per event type, s"
    )
    max_future_s: float = Field(
        86400.0, ge=0, description="an event further ahead of the clock is a dead letter, s"
    )
    max_id_length: int = Field(512, ge=8, le=65536, description="longest user, item or event id, characters")
    batch_records: int = Field(5000, ge=1, description="most records in one micro-batch")
    pipeline_depth: int = Field(3, ge=1, le=64, description="micro-batches in flight per ingestor")
    tick_s: float = Field(0.5, gt=0, description="an idle ingestor tells its shards the time this often, s")
    apply_timeout_s: float = Field(
        30.0, gt=0, description="a shard that takes longer for a batch counts as failed, s"
    )
    durability: Literal["process", "machine"] = Field(
        "process",
        description="process: survives kill -9, not a power loss; machine: flushes every commit",
    )
    map_size_gib: float = Field(
        16.0, gt=0, description="address space reserved per logical shard, GiB (sparse)"
    )
    windows: WindowSettings = WindowSettings()

    @model_validator(mode="after")
    def _types_are_distinct(self) -> Self:
        if len(set(self.event_types)) != len(self.event_types):
            raise ValueError(f"event_types must be distinct, got {list(self.event_types)}")
        return self
