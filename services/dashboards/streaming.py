"""The stream: from the topics through the ingestors into the shards, windows and snapshots."""

from services.dashboards.panels import Dashboard, Line, Panel, Row
from services.dashboards.parts import freshness, one, spread
from services.dashboards.queries import buckets, rate, ratio, value

_EVENTS = "headrace_events_total"


def streaming() -> Dashboard:
    """Ingest, apply, windows, state, snapshots, catalogue."""
    return Dashboard(
        "streaming",
        "Streaming",
        "From Kafka to the state of every user: how much, how late, how safely.",
        (
            Row("Events", _events()),
            Row("Ingest", _ingest()),
            Row("Windows", _windows()),
            Row("State", _state()),
            Row("Processes", _processes()),
        ),
    )


def _events() -> tuple[Panel, ...]:
    refused = ratio(rate(_EVENTS, outcome="dead_lettered"), rate(_EVENTS, outcome="!late"))
    early = ratio(rate("headrace_negative_skew_events_total"), rate(_EVENTS, outcome="applied"))
    return (
        one("Outcomes", rate(_EVENTS, "outcome"), "{{outcome}}", "eps"),
        one(
            "Records that do not validate",
            refused,
            "share",
            "percentunit",
            warn=0.01,
            alert="HeadraceDeadLetters",
            about="`headrace dlq list` shows them with reasons.",
        ),
        one("Events dated in the future", early, "share", "percentunit", warn=0.1, alert="HeadraceClockSkew"),
        freshness(width=12),
        one(
            "Age of all events when they count",
            buckets("headrace_freshness_seconds"),
            "{{le}}",
            "s",
            shape="heatmap",
            width=12,
        ),
    )


def _ingest() -> tuple[Panel, ...]:
    rewinds, lost = rate("headrace_ingest_rewinds_total"), rate("headrace_ingest_lost_records_total")
    return (
        one("Records read", rate("headrace_ingest_records_total", "topic"), "{{topic}}", "recps"),
        one(
            "Lag",
            value("headrace_ingest_lag_records", "topic", "partition"),
            "{{topic}}/{{partition}}",
            warn=50_000,
            alert="HeadraceLagGrows",
            stacked=True,
        ),
        one("Rewinds", rewinds, "rewinds", "ops", alert="HeadraceIngestRewinds"),
        one("Records lost", lost, "records", "recps", alert="HeadraceLostRecords"),
        spread(
            "Records of a batch",
            "headrace_ingest_batch_records",
            "short",
            about="Batches grow with the load, which makes each record cheaper.",
        ),
        spread("Duration of a batch", "headrace_ingest_batch_duration_seconds"),
        spread("Decoding", "headrace_decode_duration_seconds"),
        spread("Applying", "headrace_apply_duration_seconds"),
    )


def _windows() -> tuple[Panel, ...]:
    delay = value("headrace_watermark_delay_seconds", how="max")
    closed = rate("headrace_windows_closed_total")
    return (
        one(
            "Watermark behind the clock",
            delay,
            "slowest shard",
            "s",
            warn=900,
            alert="HeadraceWatermarkStuck",
        ),
        one("Windows closed", closed, "closed", "ops", alert="HeadraceWindowsDoNotClose"),
        spread("Rows of a shard's window", "headrace_window_rows", "short"),
    )


def _state() -> tuple[Panel, ...]:
    age = value("headrace_snapshot_age_seconds", how="max")
    snapshots = rate("headrace_snapshots_total", "outcome")
    catalogue = (
        Line(value("headrace_catalog_items", how="max"), "items"),
        Line(value("headrace_catalog_items_encoded", how="max"), "with a text vector"),
    )
    return (
        one("Users", value("headrace_state_rows"), "rows"),
        one("Size on disk", value("headrace_state_bytes"), "bytes", "bytes"),
        one("Age of the oldest snapshot", age, "oldest shard", "s", warn=1800, alert="HeadraceSnapshotsOld"),
        one("Snapshots", snapshots, "{{outcome}}", "ops", alert="HeadraceSnapshotsFail"),
        spread("Writing a snapshot", "headrace_snapshot_duration_seconds"),
        Panel("Catalogue", catalogue),
    )


def _processes() -> tuple[Panel, ...]:
    actors, alive = value("headrace_actors", "kind", "state"), value("headrace_exporter_processes")
    return (
        one("Actors", actors, "{{kind}} {{state}}", alert="HeadraceActorsDown"),
        one("Processes that tell metrics", alive, "alive", alert="HeadraceExporterGone"),
        one(
            "Files of ended processes",
            rate("headrace_exporter_folded_total"),
            "files",
            "ops",
            about="A few with every process that ends; many all the time are one that cannot stay up.",
        ),
    )
