"""The metrics of the streaming side, each defined once.

Everything is filled in once a batch or more rarely. Labels are topics, partitions and outcomes: never a user, an item
or an event.
"""

from streaming.meters import MOMENT, Counter, Gauge, Histogram

# From what a warm pipeline on one machine takes (10 ms) to where an hour of backlog stands.
_FRESHNESS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
# A trickle comes one by one; under backlog a batch is complete at `streaming.batch_records`, 200,000.
_RECORDS = (1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
# A handful of records decodes in a fraction of a millisecond, a full batch in some ten; applying takes longer.
_DECODE = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_APPLY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# Users of one shard in one window: empty ones are common, and memory becomes a matter at a million.
_ROWS = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
# A copy of a small shard takes tens of milliseconds, an upload of gigabytes minutes.
_SNAPSHOT = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

EVENTS = Counter(
    "headrace_events",
    "What became of events since the processes started; late ones changed state too and are among the applied",
    ("outcome",),
)
FRESHNESS_SECONDS = Histogram(
    "headrace_freshness_seconds",
    "From an event's own time until it had changed state, wall clock; without those dated after that",
    buckets=_FRESHNESS,
)
NEGATIVE_SKEW = Counter(
    "headrace_negative_skew_events", "Events dated after they were applied: a producer's clock is ahead"
)

INGEST_RECORDS = Counter("headrace_ingest_records", "Records read and handed to the shards", ("topic",))
INGEST_LAG = Gauge(
    "headrace_ingest_lag_records",
    "Records in the partition that are not handed to the shards yet",
    ("topic", "partition"),
    multiprocess_mode="livesum",
)
INGEST_REWINDS = Counter(
    "headrace_ingest_rewinds", "Times an ingestor went back to what the shards have, after a failure"
)
INGEST_LOST = Counter("headrace_ingest_lost_records", "Records that retention deleted before they were read")
BATCH_RECORDS = Histogram("headrace_ingest_batch_records", "Records of one micro-batch", buckets=_RECORDS)
BATCH_SECONDS = Histogram(
    "headrace_ingest_batch_duration_seconds",
    "From when a micro-batch was sent until all shards had answered",
    buckets=_APPLY,
)
DECODE_SECONDS = Histogram(
    "headrace_decode_duration_seconds",
    "Duration of decoding what was read of one partition",
    buckets=_DECODE,
)

APPLY_SECONDS = Histogram(
    "headrace_apply_duration_seconds",
    "Duration of applying one micro-batch, with events in it, to all shards of one actor",
    buckets=_APPLY,
)
STATE_ROWS = Gauge("headrace_state_rows", "Users with a state row", multiprocess_mode="livesum")
STATE_BYTES = Gauge(
    "headrace_state_bytes", "Bytes that the stores of state use on disk", multiprocess_mode="livesum"
)
WATERMARK_DELAY_SECONDS = Gauge(
    "headrace_watermark_delay_seconds",
    "How far the watermark of the slowest shard, an event time, is behind the clock",
    multiprocess_mode=MOMENT,
)
WINDOWS_CLOSED = Counter("headrace_windows_closed", "Windows closed, counted once per logical shard")
WINDOW_ROWS = Histogram(
    "headrace_window_rows", "Users active in one shard's part of a closed window", buckets=_ROWS
)

SNAPSHOT_AGE_SECONDS = Gauge(
    "headrace_snapshot_age_seconds",
    "Since the newest snapshot of the shard whose newest is the oldest; what a lost node reads again",
    multiprocess_mode=MOMENT,
)
SNAPSHOTS = Counter("headrace_snapshots", "Snapshots of logical shards", ("outcome",))
SNAPSHOT_SECONDS = Histogram(
    "headrace_snapshot_duration_seconds",
    "Duration of copying and storing one shard's snapshot",
    buckets=_SNAPSHOT,
)

CATALOG_ITEMS = Gauge("headrace_catalog_items", "Items in the catalogue", multiprocess_mode="livemostrecent")
CATALOG_ENCODED = Gauge(
    "headrace_catalog_items_encoded",
    "Items whose text has a vector of the encoder that is due",
    multiprocess_mode="livemostrecent",
)

CACHE_REQUESTS = Counter(
    "headrace_cache_requests",
    "What was asked of caches; answers: a caller's copy is still right (304), text_vectors: a text is known",
    ("cache", "outcome"),
)

EVENT_OUTCOMES = ("applied", "duplicate", "late", "dead_lettered", "erased")
SNAPSHOT_OUTCOMES = ("taken", "failed", "restored")
