"""`headrace experiment`: the arithmetic of the report against plain loops and simulations, and the command itself."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from services.attribution import slots_of, without_exploration
from services.commands.experiment import app
from services.experiment_data import ReportError, Successes
from services.experiment_report import chosen, report
from services.sequential import BURN_IN, chi_square_tail, confidence_sequence, effects, ratio_mismatch
from streaming.hashing import stable_hash
from training.registry import Registry

MONDAY = 1_760_313_600_000
SHARES = {"control": 0.5, "new": 0.5}


# --- the confidence sequence -----------------------------------------------------------------------------


def looked_at_throughout(rng, control, treatment, users=3000, share=0.5):
    """Whether the interval ever left out the true difference, and whether a fixed-size one did, looked at alike."""
    treated = rng.random(users) < share
    outcomes = (rng.random(users) < np.where(treated, treatment, control)).astype(float)
    values = effects(outcomes, treated, share)
    mean, width = confidence_sequence(values)
    count = np.arange(1, users + 1)
    fixed = 1.96 * np.sqrt(np.maximum(np.cumsum(values**2) / count - mean**2, 0) / count)
    fixed[: BURN_IN - 1] = np.inf
    off = np.abs(mean - (treatment - control))
    return bool((off > width).any()), bool((off > fixed).any())


@pytest.mark.parametrize(
    ("control", "treatment", "share"), [(0.1, 0.1, 0.5), (0.3, 0.3, 0.2), (0.1, 0.15, 0.5)]
)
def test_the_interval_holds_the_truth_at_all_times_and_a_fixed_one_looked_at_does_not(
    control, treatment, share
):
    rng = np.random.default_rng(1)
    wrong = np.array([looked_at_throughout(rng, control, treatment, share=share) for _ in range(300)])
    assert wrong[:, 0].mean() <= 0.05
    assert wrong[:, 1].mean() > 0.2


def test_the_interval_narrows_and_finds_a_difference():
    rng = np.random.default_rng(2)
    treated = rng.random(20_000) < 0.5
    outcomes = (rng.random(20_000) < np.where(treated, 0.13, 0.1)).astype(float)
    mean, width = confidence_sequence(effects(outcomes, treated, 0.5))
    assert np.isinf(width[: BURN_IN - 1]).all()
    assert width[500] > width[5000] > width[-1]
    assert mean[-1] - width[-1] > 0
    assert mean[-1] == pytest.approx(outcomes[treated].mean() - outcomes[~treated].mean(), abs=0.003)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7])
def test_chi_square(freedom):
    stats = pytest.importorskip("scipy.stats")
    for value in (0.0, 0.1, 3.0, 20.0):
        assert chi_square_tail(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), abs=1e-12)


def test_a_broken_split_is_found():
    assert ratio_mismatch(np.array([5000, 5050]), np.array([0.5, 0.5])) > 0.1
    assert ratio_mismatch(np.array([5000, 5400]), np.array([0.5, 0.5])) < 0.001
    assert ratio_mismatch(np.array([900, 100]), np.array([0.9, 0.1])) == pytest.approx(1.0)


# --- the report against plain loops ----------------------------------------------------------------------


def impressions_of(rows, experiment="test"):
    """Rows: user, arm, time (ms), items, and if need be scores and propensities."""
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "time": pa.array([row[2] for row in rows], pa.int64()),
            "experiment": pa.array([experiment] * len(rows), pa.string()),
            "arm": pa.array([row[1] for row in rows], pa.string()),
            "items": pa.array([row[3] for row in rows], pa.list_(pa.string())),
            "scores": pa.array([row[4] if len(row) > 4 else None for row in rows], pa.list_(pa.float64())),
            "propensities": pa.array(
                [row[5] if len(row) > 5 else None for row in rows], pa.list_(pa.float64())
            ),
        }
    )


def successes_of(rows):
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    return Successes(stable_hash(list(users)), stable_hash(list(items)), np.array(times, np.int64))


def by_loops(rows, events, window):
    """Per arm: users whose window is over, how many of them succeeded, and items shown that did."""
    until = max([row[2] for row in rows] + [event[2] for event in events])
    first, seen, hits = {}, {}, {}
    for user, arm, time, _ in rows:
        first[user] = min(first.get(user, time), time)
        seen.setdefault(user, set()).add(arm)
    for user, item, when in sorted(events, key=lambda event: event[2]):
        before = [n for n, row in enumerate(rows) if row[0] == user and item in row[3] and row[2] <= when]
        if before:
            newest = max(before, key=lambda n: (rows[n][2], n))
            if when - rows[newest][2] <= window:
                hits.setdefault((newest, item), when)
    found = {}
    for arm in SHARES:
        ripe = [u for u in first if seen[u] == {arm} and first[u] + window <= until]
        won = {rows[n][0] for (n, _), when in hits.items() if when <= first[rows[n][0]] + window}
        shown = sum(rows[n][1] == arm for n, _ in hits)
        found[arm] = len(ripe), sum(user in won for user in ripe), shown
    return found


@pytest.mark.parametrize("seed", range(8))
def test_columns_find_what_loops_find(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(150):
        user = int(rng.integers(25))
        arm = "new" if (user + (user == 3) * int(rng.integers(2))) % 2 else "control"  # user 3 was in both
        items = rng.choice(list("abcdefgh"), 3, replace=False).tolist()
        rows.append((f"u{user}", arm, int(rng.integers(300)), items))
    events = [
        (f"u{rng.integers(28)}", str(rng.choice(list("abcdefgh"))), int(rng.integers(360)))
        for _ in range(200)
    ]
    found = report(impressions_of(rows), successes_of(events), name="test", window_ms=40, shares=SHARES)
    told = {
        one["arm"]: (one["ripe_users"], one["converted_users"], one["successes"]) for one in found["arms"]
    }
    assert told == by_loops(rows, events, 40)
    assert found["crossed_users"] == len(
        {r[0] for r in rows if r[1] == "new"} & {r[0] for r in rows if r[1] != "new"}
    )


def many(rates, users, rng, split=0.5, start_ms=0):
    """Each user sees one item in the minute of his number, and takes it with the probability of his arm."""
    rows, events = [], []
    for n in range(users):
        arm = "new" if rng.random() < split else "control"
        rows.append((f"u{n}", arm, start_ms + n * 60_000, ["a", "b"]))
        if rng.random() < rates[arm]:
            events.append((f"u{n}", "b", start_ms + n * 60_000 + 5))
    return impressions_of(rows), successes_of(events)


@pytest.mark.parametrize(
    ("new", "users", "split", "said"),
    [
        (0.3, 4000, 0.5, "new is better than control: "),
        (0.05, 4000, 0.5, "new is worse than control: "),
        (0.1, 4000, 0.5, "No difference between new and control is shown yet"),
        (0.1, 50, 0.5, "Too few users or successes to compare new with control: 49 users"),
        (0.3, 4000, 0.6, "Do not trust this experiment: its users are not split as planned"),
    ],
)
def test_the_verdict_in_words(new, users, split, said):
    shown, events = many({"control": 0.1, "new": new}, users, np.random.default_rng(3), split)
    found = report(shown, events, name="test", window_ms=60_000, shares=SHARES)
    assert found["verdict"].startswith(said)


def test_without_a_plan_shares_are_those_seen_and_the_split_is_not_tested():
    shown, events = many({"control": 0.1, "new": 0.3}, 3000, np.random.default_rng(3), 0.8)
    found = report(shown, events, name="test", window_ms=60_000)
    assert found["split_p"] is None
    assert found["differences"][0]["shown"] == "better"
    assert found["arms"][0]["arm"] == "control"


def test_users_whose_window_is_not_over_wait():
    rows = [("u1", "control", 0, ["a"]), ("u2", "new", 90, ["a"])]
    found = report(
        impressions_of(rows), successes_of([("u1", "a", 100)]), name="t", window_ms=50, shares=SHARES
    )
    assert found["unripe_users"] == 1
    assert [arm["ripe_users"] for arm in found["arms"]] == [1, 0]
    assert found["arms"][0]["converted_users"] == 0  # his success came too late


def test_what_would_have_been_without_exploration():
    """Two items, the better one first with probability 0.8: only it is taken, wherever it stands."""
    rng = np.random.default_rng(5)
    rows, clicked = [], []
    for n in range(4000):
        swapped = rng.random() < 0.2
        items, scores = (["bad", "good"], [1.0, 2.0]) if swapped else (["good", "bad"], [2.0, 1.0])
        chance = 0.2 if swapped else 0.8
        rows.append((f"u{n}", "control", n, items, scores, [chance, chance]))
        taken = rng.random() < (0.1 if swapped else 0.5)
        clicked += [taken and item == "good" for item in items]
    slots = slots_of(impressions_of(rows))
    told = without_exploration(slots, np.array(clicked), np.ones(len(clicked), bool))
    assert np.mean(clicked) == pytest.approx((0.8 * 0.5 + 0.2 * 0.1) / 2, abs=0.02)
    assert told["ips"] == pytest.approx(0.25, abs=0.02)
    assert told["snips"] == pytest.approx(0.25, abs=0.02)
    assert told["largest_weight"] == pytest.approx(1.25)


def test_an_experiment_that_was_not_logged_is_told_with_those_that_were():
    shown = impressions_of([("u1", "control", 0, ["a"])], "wider")
    assert chosen(shown, None)[0] == "wider"
    with pytest.raises(ReportError, match="expected impressions of other; there are impressions of wider"):
        chosen(shown, "other")
    with pytest.raises(ReportError, match="two arms, got control"):
        report(shown, successes_of([]), name="wider", window_ms=5)


# --- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "headrace.toml"
    file.write_text(f'data_dir = "{tmp_path}/data"\n')
    registry = Registry(tmp_path / "data" / "models")
    for version in ("v1", "v2"):
        folder = registry.path(version)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "eval.json").write_text("{}")
        (folder / "lineage.json").write_text("{}")
    registry.promote("v1", "first")
    return file


def run(config, *arguments, code=0):
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, [*arguments, "--settings", str(config)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_an_experiment_from_start_to_promotion(config):
    registry = Registry(config.parent / "data" / "models")
    assert run(config, "show") == "No experiment runs."
    said = run(config, "start", "wider", "--arm", "control=current:0.5", "--arm", "new=v2:0.5")
    assert said == "wider runs (ab): control = v1 for 50.00%, new = v2 for 50.00%"
    assert "wider: ab, since" in run(config, "show")
    assert json.loads(run(config, "show", "--json"))["experiment"]["arms"][1]["version"] == "v2"
    assert "stop it first" in run(config, "start", "x", "--kind", "shadow", "--arm", "s=v2:0.1", code=1)
    assert "no arm 'old'; it has control, new" in run(config, "promote", "old", code=1)
    assert run(config, "promote", "new") == "v2 is current; wider has ended"
    assert registry.current() == "v2"
    assert registry.history()[-1]["reason"] == "arm new of experiment wider"
    assert run(config, "stop") == "No experiment runs."


@pytest.mark.parametrize("text", ["control", "control=v1", "control=v1:half", "control=v1:0", "=v1:0.5"])
def test_an_arm_that_is_none_is_refused(config, text):
    assert "expected NAME=VERSION:SHARE" in run(config, "start", "x", "--arm", text, code=2)


def test_report_from_files(config, tmp_path):
    run(config, "start", "test", "--arm", "control=v1:0.5", "--arm", "new=v2:0.5")
    shown, _ = many({"control": 0.1, "new": 0.3}, 3000, np.random.default_rng(3), start_ms=MONDAY)
    lines = [json.dumps(row | {"positions": [0, 1]}) for row in shown.to_pylist()]
    (tmp_path / "shown.jsonl").write_text("\n".join(lines))
    pq.write_table(shown, tmp_path / "shown.parquet")
    rng, now = np.random.default_rng(4), 0
    events = []
    for row in shown.to_pylist():
        if rng.random() < {"control": 0.1, "new": 0.3}[row["arm"]]:
            now = row["time"] + 5
            events.append({"user_id": row["user_id"], "item_id": "a", "type": "click", "timestamp": now})
    (tmp_path / "events.jsonl").write_text(
        "\n".join(json.dumps(e | {"event_id": str(n)}) for n, e in enumerate(events))
    )
    pq.write_table(pa.Table.from_pylist(events), tmp_path / "events.parquet")
    out = tmp_path / "report.json"
    found = []
    for kind in ("jsonl", "parquet"):
        files = [
            "--impressions",
            str(tmp_path / f"shown.{kind}"),
            "--events",
            str(tmp_path / f"events.{kind}"),
        ]
        said = run(config, "report", *files, "--success", "click", "--window", "10m", "--report", str(out))
        assert "new is better than control" in said
        assert "split as planned: p =" in said
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
    (tmp_path / "bad.jsonl").write_text((tmp_path / "events.jsonl").read_text() + '\n{"user_id": 3}')
    said = run(config, "report", *files[:2], "--events", str(tmp_path / "bad.jsonl"), "--success", "click")
    assert "1 records of events do not validate" in said
    assert found[0]["window_s"] == 600
    wrong = run(config, "report", "--impressions", str(tmp_path / "none.jsonl"), code=1)
    assert "none.jsonl cannot be read" in wrong
    assert "no event type 'tap'" in run(config, "report", *files, "--success", "tap", code=1)
