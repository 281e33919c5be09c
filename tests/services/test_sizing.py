"""`headrace size`: its figures are those of the reports, its sums are right, and the page shows what it says now."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.sizing import Load, figures, request_us, size
from services.sizing_view import EXAMPLES
from tests.bench.sizing_table import BEGIN, END, FIGURES, PAGE, SOURCES, figures_toml, page_with_table

HINT = "run `python -m tests.bench.sizing_table`"
SHOP = EXAMPLES["a shop"]


def part(plan, name):
    [found] = [one for one in plan.parts if one.name == name]
    return found


def run(*arguments):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["size", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_figure_is_that_of_its_report():
    assert FIGURES.read_text() == figures_toml(), HINT
    for figure in figures().values():
        assert figure.value > 0
        assert Path(figure.report).is_file()


def test_the_commands_that_made_the_reports_exist():
    makefile = Path("Makefile").read_text()
    for figure in figures().values():
        program, *words = figure.command.split()
        if program == "make":
            assert f"\n{words[0]}:" in makefile
        else:
            assert Path(f"{words[1].replace('.', '/')}.py").is_file()


def test_the_page_has_the_table_of_now():
    page = PAGE.read_text()
    assert page.index(BEGIN) < page.index(END)
    assert page == page_with_table(page), HINT


def test_no_figure_is_unused():
    source = Path("services/sizing.py").read_text()
    assert [name for name in SOURCES if f'"{name}"' not in source] == []


def test_cores_are_events_times_cost_over_how_full_they_are():
    cost = {name: figure.value for name, figure in figures().items()}
    plan = size(replace(SHOP, events_per_s=50_000, busy=0.25))
    for name, process in (("ingestors", "ingestor"), ("state shards", "shard")):
        idle = part(plan, name).processes * cost[f"{process}_idle_cores"]
        busy = 50_000 * cost[f"{process}_cpu_us"] / 1e6 / 0.25
        assert part(plan, name).cores == pytest.approx(busy + idle)
    faster = size(replace(SHOP, events_per_s=50_000, busy=0.25, confluent=True))
    assert part(faster, "ingestors").cores < part(plan, "ingestors").cores


def test_a_ranking_costs_what_was_measured_at_both_sizes_of_the_catalogue():
    cost = {name: figure.value for name, figure in figures().items()}
    assert request_us(cost["small_items"], cost) == cost["request_cpu_us"]
    assert request_us(0, cost) == cost["request_cpu_us"]
    large = request_us(cost["large_items"], cost)
    assert large == pytest.approx(cost["request_cpu_us"] * cost["large_items_times"])


@pytest.mark.parametrize("more", ["events_per_s", "users", "items", "requests_per_s", "keep_days"])
def test_more_of_anything_never_needs_less(more):
    before, after = size(SHOP), size(replace(SHOP, **{more: 10 * getattr(SHOP, more)}))
    needs = [(one.cores, one.memory_gib, one.disk_gib, one.kafka_gib) for one in (before, after)]
    assert all(less <= greater for less, greater in zip(*needs, strict=True))
    assert needs[0] != needs[1]


def test_the_order_covers_its_parts():
    for load in EXAMPLES.values():
        plan = size(load)
        assert plan.cores >= sum(one.cores for one in plan.parts)
        assert plan.memory_gib >= sum(one.memory_gib for one in plan.parts)
        assert plan.disk_gib >= sum(one.disk_gib for one in plan.parts)
        assert plan.settings["streaming.logical_shards"] >= plan.settings["streaming.shard_actors"]
        assert plan.settings["kafka.partitions"] >= plan.settings["streaming.ingestors"]


def test_a_gpu_takes_the_learner_off_the_worker():
    assert part(size(replace(SHOP, gpu=True)), "learner").memory_gib == 0
    assert part(size(SHOP), "learner").memory_gib > 0


def test_what_goes_beyond_the_measured_is_said():
    assert not any("more than was measured" in note for note in size(Load(100, 50_000, 10_000, 20)).notes)
    beyond = size(Load(1e6, 1e9, 1e6, 1e5)).notes
    assert sum("more than was measured" in note for note in beyond) == 4
    assert any("one machine" in note for note in beyond)


def test_the_cost_is_the_sum_of_the_prices():
    told = json.loads(run("--events-per-s", "1000", "--price", "25,3,0.1", "--json"))
    assert told["cost_per_month"] == pytest.approx(
        25 * told["cores"] + 3 * told["memory_gib"] + 0.1 * told["disk_gib"]
    )
    assert "(--price CORE,MEMORY,DISK)" in run()
    refused = CliRunner().invoke(app, ["size", "--price", "25"])
    assert refused.exit_code == 2
    assert "such as 25,3,0.1" in refused.output


def test_the_sources_are_named():
    told = run("--sources")
    for name in SOURCES:
        assert name in told
    assert "make bench-serve" in told
