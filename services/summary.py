"""What a demo run measured, as a table a person can read."""

from typing import Any

from rich.table import Table


def summary_table(report: dict[str, Any]) -> Table:
    """The figures of a demo report, one line each."""
    events, models, score = report["events"], report["models"], report["prequential"]
    requests, freshness = report["request_ms"], report["freshness_ms"]
    table = Table(
        title=f"headrace demo · {report['dataset']['name']}", title_justify="left", show_header=False
    )
    table.add_column(style="bold")
    table.add_column()
    table.add_row(
        "events",
        f"{events['produced']:,} sent, {events['applied']:,} applied, {events['duplicates']:,} duplicates, "
        f"{events['dead_lettered']:,} dead letters",
    )
    table.add_row("windows closed", f"{report['windows']}")
    if attack := report.get("attack"):
        table.add_row(
            f"{attack['kind']} attack",
            f"{attack['fake_users']} fake users, {attack['held']} held, and {attack['honest_held']} honest ones"
            + ("" if attack["window_screened"] else " (their window has not closed yet)")
            + f"; targets' exposure {_share(attack['exposure_before'])} → {_share(attack['exposure_after'])}",
        )
    table.add_row(
        "models", f"{models['trained']} trained, {models['promoted']} promoted, {models['rejected']} rejected"
    )
    table.add_row(
        "hit rate@10, asked before each sampled event",
        f"{_share(score['hit_rate@10'])} against popularity's {_share(score['popularity_hit_rate@10'])} "
        f"({score['requests']:,} requests)",
    )
    table.add_row(
        "requests",
        f"p50 {_ms(requests['p50'])}, p99 {_ms(requests['p99'])}, {requests['count']:,} made, "
        f"{requests['errors']} errors",
    )
    table.add_row("event → visible in an answer", f"p50 {_ms(freshness['p50'])}, p99 {_ms(freshness['p99'])}")
    table.add_row("first answer by a trained model", f"after {report['seconds_to_first_recommendation']} s")
    return table


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
