"""Settings of the streaming side. Every number has its unit in its name or its description."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class Section(BaseModel):
    """Base of every settings section: immutable, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Section):
    """How to reach the broker, and what the topics are called."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a wrong section must not print its secrets

    bootstrap_servers: str = Field("localhost:9092", description="host:port, several separated by commas")
    client: Literal["kafka-python", "confluent"] = Field(
        "kafka-python", description="what reads events: confluent is faster (pip install 'headrace[fast]')"
    )
    client_id: str = Field("headrace", description="name shown in the broker's logs")
    group_id: str = Field("headrace", description="offsets are committed under it, for lag tools only")

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = Field(None, description="for PLAIN and SCRAM")
    sasl_password: SecretStr | None = Field(None, description="better in the environment or in a file")
    sasl_password_file: Path | None = Field(None, description="file that holds the password instead")
    oauth_token_url: str | None = Field(
        None, pattern="^https?://", description="token endpoint, client-credentials flow"
    )
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_client_secret_file: Path | None = Field(
        None, description="file that holds the client secret instead"
    )
    oauth_scope: str | None = None
    oauth_cafile: Path | None = Field(
        None, description="PEM file of the authority that signed the token endpoint; none: the system's"
    )
    oauth_token_file: Path | None = Field(
        None, description="file with a token that something else refreshes, instead of a token endpoint"
    )
    ssl_cafile: Path | None = Field(
        None, description="PEM file of the authority that signed the broker; none: the system's"
    )
    ssl_certfile: Path | None = Field(None, description="PEM file of the client's own certificate, for mTLS")
    ssl_keyfile: Path | None = Field(None, description="PEM file of its private key")
    ssl_key_password: SecretStr | None = Field(None, description="where the private key is encrypted")
    ssl_key_password_file: Path | None = Field(None, description="file that holds the key's password instead")
    ssl_check_hostname: bool = Field(True, description="the broker's certificate must name its host")

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
    request_timeout_s: float = Field(
        30.0, gt=0, le=500, description="longest wait for one broker request, and for the broker at start, s"
    )

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        """Whether the client authenticates itself by SASL."""
        return self.security_protocol.startswith("SASL")

    @model_validator(mode="after")
    def _security_is_complete(self) -> Self:
        if self.uses_sasl:
            self._require_sasl()
        else:
            self._refuse("sasl_mechanism", "sasl_username", "oauth_", needs="SASL_SSL or SASL_PLAINTEXT")
        if not self.uses_tls:
            self._refuse("ssl_", needs="SSL or SASL_SSL")
        if self.ssl_certfile or self.ssl_keyfile:
            self._require("ssl_certfile")
            self._require("ssl_keyfile")
        if self.ssl_key_password or self.ssl_key_password_file:
            self._require("ssl_key_password", "ssl_key_password_file")
            self._require("ssl_keyfile")
        return self

    def _require_sasl(self) -> None:
        if self.sasl_mechanism is None:
            raise ValueError(
                f"security_protocol={self.security_protocol} needs sasl_mechanism, sasl_username and "
                "sasl_password (or sasl_mechanism=OAUTHBEARER and oauth_token_url or oauth_token_file)"
            )
        if self.sasl_mechanism != "OAUTHBEARER":
            self._require("sasl_username")
            self._require("sasl_password", "sasl_password_file")
            return
        self._require("oauth_token_url", "oauth_token_file")
        if self.oauth_token_url:
            self._require("oauth_client_id")
            self._require("oauth_client_secret", "oauth_client_secret_file")

    def _require(self, *names: str) -> None:
        """Exactly one of these settings."""
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            what = names[0] if len(names) == 1 else f"exactly one of {' and '.join(names)}"
            seen = f", got {' and '.join(given)}" if given else ""
            mechanism = f" with sasl_mechanism={self.sasl_mechanism}" if self.sasl_mechanism else ""
            raise ValueError(f"security_protocol={self.security_protocol}{mechanism} needs {what}{seen}")

    def _refuse(self, *prefixes: str, needs: str) -> None:
        """No setting of these, as it would be ignored: somebody believes to be protected."""
        for name, field in type(self).model_fields.items():
            if name.startswith(prefixes) and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is set, but security_protocol={self.security_protocol} makes no use of it; "
                    f"set security_protocol to {needs}, or remove {name}"
                )


DottedPath = Annotated[str, Field(min_length=1, pattern=r"^[^.]+(\.[^.]+)*$")]


FieldName = Literal["event_id", "user_id", "item_id", "type", "timestamp", "value", "category"]


class FieldPaths(Section):
    """Where each field of the Event contract stands in a record: a dotted path into the document."""

    event_id: DottedPath | None = Field(
        "event_id", description="none: records are told apart by their offset only"
    )
    user_id: DottedPath = "user_id"
    item_id: DottedPath = "item_id"
    type: DottedPath = "type"
    timestamp: DottedPath = "timestamp"
    value: DottedPath | None = Field("value", description="an amount: price, rating, seconds; may be absent")
    category: DottedPath | None = Field(None, description="counted per user, see streaming.state.categories")


class AvroSettings(Section):
    """Where the schema of an Avro topic comes from: a file, or a Confluent-compatible registry."""

    schema_file: Path | None = Field(None, description="writer's schema (.avsc); records carry no schema id")
    registry_url: str | None = Field(None, description="http(s)://host:port; records carry a schema id")
    registry_username: str | None = None
    registry_password: SecretStr | None = None
    timeout_s: float = Field(10.0, gt=0, le=300, description="longest wait for the registry, s")


class Source(Section):
    """A topic of user events, and how a record of it becomes an event."""

    topic: str = Field("events", min_length=1, description="name of the Kafka topic")
    format: Literal["json", "avro"] = "json"
    fields: FieldPaths = FieldPaths()
    types: dict[str, str] = Field(
        default_factory=dict,
        description='your type → one of streaming.event_types, or "$forget" (erases the user)',
    )
    constants: dict[FieldName, str] = Field(
        default_factory=dict, description="field → value of every record, whatever it holds"
    )
    defaults: dict[FieldName, str] = Field(
        default_factory=dict, description="field → value where the record has none"
    )
    avro: AvroSettings = AvroSettings()


class WindowSettings(Section):
    """Event-time windows: the portions in which the model learns."""

    length_s: float = Field(3600.0, ge=1, description="length of a window in event time, s")
    lateness_s: float = Field(
        60.0, ge=0, description="how far behind its partition's newest event one may come, s"
    )
    idle_timeout_s: float = Field(
        5.0, gt=0, description="a drained partition stops holding windows open after this, s"
    )


class StateSettings(Section):
    """What is kept per user beside the newest events."""

    half_lives_s: tuple[float, ...] = Field(
        (86400.0, 7 * 86400.0),
        min_length=1,
        max_length=8,
        description="half-lives of the decayed counts per event type, s",
    )
    categories: tuple[str, ...] = Field(
        (),
        max_length=128,
        description="values of the category field that are counted per user; others are not",
    )
    session_gap_s: float = Field(
        1800.0, gt=0, description="an event later than this after the newest opens a session, s"
    )
    ttl_s: float | None = Field(
        None, gt=0, description="a user without events for this long (event time) is dropped, s; none: kept"
    )
    ttl_scan_rows: int = Field(
        2000, ge=1, le=1_000_000, description="rows looked at per second and shard for the time to live"
    )


class SnapshotSettings(Section):
    """Copies of the state with its offsets, from which a node without state starts."""

    url: str | None = Field(
        None, description="any fsspec URL: file:///backup, s3://bucket/headrace; none: off"
    )
    every_s: float = Field(300.0, ge=1, description="time from one snapshot of a shard to its next, s")
    keep: int = Field(3, ge=1, le=1000, description="complete snapshots kept per shard")
    options: dict[str, str] = Field(
        default_factory=dict,
        description="options of the fsspec file system, such as endpoint_url; no secrets",
    )


class AutoscaleSettings(Section):
    """Number of shard actors and ingestors, by lag."""

    enabled: bool = False
    target_lag: int = Field(50_000, ge=1, description="records behind above which actors are added")
    min_actors: int = Field(1, ge=1, description="fewest shard actors, and fewest ingestors")
    max_actors: int = Field(4, ge=1, description="most shard actors, and most ingestors")
    cooldown_s: float = Field(60.0, gt=0, description="time between two changes, s")

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is above max_actors={self.max_actors}")
        return self


class TraceSettings(Section):
    """OpenTelemetry traces of requests and events (needs the extra `otel`)."""

    endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="collector, OTLP over HTTP, such as http://localhost:4318/v1/traces; none: no traces",
    )
    share: float = Field(
        0.01, ge=0, le=1, description="share of requests traced, of those that come without a trace"
    )


class StreamingSettings(Section):
    """Ingestors, shards and windows."""

    sources: tuple[Source, ...] = Field(
        (Source(),),
        min_length=1,
        max_length=64,
        description="topics of user events; the API publishes to the first",
    )

    event_types: tuple[str, ...] = Field(
        ("view", "click", "like", "rating", "cart", "purchase"),
        min_length=1,
        max_length=32,
        description="known event types; a record's must be one of them (their order is part of the state)",
    )
    sequence_length: int = Field(50, ge=2, le=1000, description="newest events kept per user")
    logical_shards: int = Field(16, ge=1, le=4096, description="fixed for the life of a state directory")
    shard_actors: int = Field(1, ge=1, description="actors that host the logical shards")
    ingestors: int = Field(1, ge=1, description="actors that read the events topic")
    max_future_s: float = Field(
        86400.0, ge=0, description="an event further ahead of the clock is a dead letter, s"
    )
    max_past_s: float = Field(
        50 * 365.25 * 86400, gt=0, description="an event further behind the clock is a dead letter, s"
    )
    max_id_length: int = Field(512, ge=8, le=65536, description="longest user, item or event id, characters")
    max_record_bytes: int = Field(
        1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="a larger record is a dead letter, bytes"
    )
    batch_records: int = Field(
        200_000,
        ge=1,
        le=1_000_000,
        description="records that an ingestor gathers under backlog before it sends them as one micro-batch",
    )
    linger_s: float = Field(
        0.04,
        ge=0,
        le=10,
        description="under load, micro-batches leave at most this often; after quiet, at once, s",
    )
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
    state: StateSettings = StateSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    autoscale: AutoscaleSettings = AutoscaleSettings()
    traces: TraceSettings = TraceSettings()

    @property
    def events_topic(self) -> str:
        """The topic that the API publishes to: the first source's."""
        return self.sources[0].topic

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        topics = [source.topic for source in self.sources]
        for name, values in (("event_types", self.event_types), ("sources: topics", topics)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be distinct, got {list(values)}")
        return self
