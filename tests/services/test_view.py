"""The live view: what it says, that it fits, and that it is quiet without a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from services.view import DemoSnapshot, GateVerdict, LiveView, Phase, plain_line, render

BUSY = DemoSnapshot(
    title="MovieLens-100K",
    elapsed_s=98,
    remaining_s=117,
    phases=(
        Phase("replaying live events", 10_000, 40_000),
        Phase("training the first model", 0.5, 1.0, "step 340, loss 6.21"),
        Phase("encoding the catalogue", None, 1),
    ),
    events_per_s=101.4,
    events_per_s_history=(10.0, 50.0, 100.0),
    produced=60_291,
    total=100_000,
    applied=60_288,
    dead_lettered=3,
    lag=12,
    users=843,
    items=1682,
    windows=37,
    model_version="20261122T072018-4f2a",
    model_age_s=75,
    promoted=3,
    rejected=1,
    verdicts=(
        GateVerdict(
            "v2", False, "NDCG@10 under attack fell by 0.031 [more than 0.010]", 0.070, 0.069, 0.024, 0.055
        ),
        GateVerdict("v1", True, "first model", 0.069, None, 0.055, None),
    ),
    request_p50_ms=6.2,
    request_p99_ms=41.8,
    requests=1294,
    request_errors=2,
    freshness_p50_ms=31.2,
    freshness_p99_ms=1212.0,
    hit_rate=0.184,
    recent_hit_rate=0.201,
    popularity_hit_rate=0.0764,
    scored=860,
    urls=(("API", "http://127.0.0.1:8000"), ("docs", "http://127.0.0.1:8000/docs")),
)


def drawn(snapshot: DemoSnapshot, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, color_system=None)
    console.print(render(snapshot))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_that_matters_is_there_and_fits(width: int) -> None:
    text = drawn(BUSY, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= 23  # a terminal of 24 lines shows all of it
    for expected in (
        "replaying live events",
        "10,000 / 40,000",
        "step 340, loss 6.21",
        "101/s",
        "▁▅█",
        "60,291 / 100,000",
        "lag 12",
        "843 users",
        "37 windows",
        "3 dead letters",
        "20261122T072018-4f2a",
        "1:15 min old",
        "✘ rejected",
        "✔ promoted",
        ".069→.070",
        ".055→.024",
        "NDCG@10 under attack fell by 0.031 [more than 0.010]",
        "p50 6.2 · p99 41.8 ms",
        "2 failed",
        "p50 31.2 · p99 1,212 ms",
        "18.4%",
        "7.6%",
        "2.4×",
        "http://127.0.0.1:8000/docs",
        "ends in 1:57 min",
    ):
        assert expected in text, expected


@pytest.mark.parametrize("width", [80, 120])
def test_a_start_with_nothing_known_draws(width: int) -> None:
    text = drawn(DemoSnapshot(phases=(Phase("starting services", None, 1),)), width)
    assert "starting services" in text
    assert "none yet" in text
    assert "None" not in text


def test_a_new_verdict_does_not_change_the_height() -> None:
    heights = {
        len(drawn(DemoSnapshot(verdicts=BUSY.verdicts[:1] * count), 80).splitlines()) for count in range(6)
    }
    assert len(heights) == 1


def test_phases_under_way_stay_and_the_picture_fits_24_lines() -> None:
    ended = tuple(Phase(f"step {n}", 1.0, 1.0, "0.1 s") for n in range(8))
    text = drawn(replace(BUSY, phases=(ended[0], Phase("history", 5, 10), *ended[1:])), 80)
    assert len(text.splitlines()) <= 23
    assert "history" in text
    assert "step 7" in text
    assert "step 3" not in text


def test_without_a_terminal_a_line_per_phase_and_every_few_seconds() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=80, force_terminal=False), plain_every_s=3600) as view:
        for _ in range(50):
            view.update(BUSY)
        view.update(DemoSnapshot(phases=(Phase("stopping"),)))
    lines = out.getvalue().splitlines()
    assert lines == [plain_line(BUSY), "[0 s] | stopping"]
    assert "\x1b" not in out.getvalue()
    assert "hit rate 18.4% vs popularity 7.6%" in lines[0]
    assert "applied 60,288, lag 12" in lines[0]


def test_on_a_terminal_it_is_drawn_in_place_and_the_cursor_comes_back() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=40, force_terminal=True, legacy_windows=False)
    with LiveView(console) as view:
        view.update(BUSY)
        view.say("a line that stays [not markup]")
    text = out.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # hidden once, shown once
    assert "a line that stays [not markup]" in text
    assert "843 users" in text.replace("\x1b[2m", "").replace("\x1b[0m", "")
