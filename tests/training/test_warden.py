"""Windows are screened as they close, and what was found is what is learned from."""

from pathlib import Path

import numpy as np
import pytest

from streaming.trust import decide, read_trust, screened_windows
from streaming.windows import WindowFiles, complete_windows
from tests.training.crowd import LENGTH_MS, as_table, fakes, people, window_of_people, write_window
from tests.training.synthetic import SHARDS, settings
from training.config import TrustConfig
from training.data import concat
from training.items import ItemSlots
from training.progress import PopularityCounts, Progress
from training.status import StatusWriter
from training.warden import Warden, trusted_window

TRAINED, TARGETS, FAKES = 6, [200, 230, 251], 15


def progress_of(trained: int) -> Progress:
    progress = Progress(ItemSlots(8), PopularityCounts(1e12))
    for number in range(trained):
        window = people(number)
        progress.popularity.add(window.items[window.new_events()], window.times[window.new_events()])
        progress.trained[number * LENGTH_MS] = "v0001"
    return progress


def windows(data_dir: Path) -> list[WindowFiles]:
    return complete_windows(data_dir / "windows", SHARDS)


def warden(data_dir: Path, progress: Progress, **config: object) -> Warden:
    (data_dir / "learner").mkdir(exist_ok=True)
    chosen = settings(trust=TrustConfig(simulations=2, **config), popularity_half_life_h=1e9)  # type: ignore[arg-type]
    return Warden(data_dir, chosen, progress, StatusWriter(data_dir, enabled=False))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six windows that were trained on, then one with fakes and one without, screened."""
    data_dir = tmp_path_factory.mktemp("warden")
    for number in (*range(TRAINED), TRAINED + 1):
        write_window(data_dir, number, window_of_people(number))
    poisoned = concat([people(TRAINED), fakes("bandwagon", TRAINED, FAKES, TARGETS)])
    write_window(data_dir, TRAINED, as_table(poisoned.take(np.argsort(poisoned.users))))
    warden(data_dir, progress_of(TRAINED)).watch(windows(data_dir))
    return data_dir


def fake_users() -> np.ndarray:
    return fakes("bandwagon", TRAINED, FAKES, TARGETS).users


def test_untrained_windows_are_screened_and_fakes_held(stream: Path) -> None:
    assert screened_windows(stream) == [TRAINED * LENGTH_MS, (TRAINED + 1) * LENGTH_MS]
    table = read_trust(stream, TRAINED * LENGTH_MS)
    held = table.filter(table["quarantined"])["user"].to_numpy()
    assert np.isin(fake_users(), held).mean() > 0.6
    assert (~np.isin(held, fake_users())).sum() <= 4
    assert all(table["reason"].to_pylist())


def test_what_is_held_is_not_learned_until_a_person_releases_it(stream: Path) -> None:
    window = windows(stream)[TRAINED]
    held = read_trust(stream, window.start_ms).filter(read_trust(stream, window.start_ms)["quarantined"])
    user = held["user"].to_numpy()[0]
    assert not np.isin(held["user"].to_numpy(), trusted_window(stream, window).users).any()
    decide(stream, int(user), "released")
    learned = trusted_window(stream, window)
    assert learned.trust[learned.users == user].tolist() == [1.0]
    decide(stream, int(user), "held")
    assert user not in trusted_window(stream, window).users


def test_a_window_is_screened_once_and_the_detector_kept(stream: Path) -> None:
    kept = stream / "learner" / "detector.safetensors"
    before = [(file, file.stat().st_mtime_ns) for file in (kept, *(stream / "trust").glob("start=*"))]
    warden(stream, progress_of(TRAINED)).watch(windows(stream))
    assert [(file, file.stat().st_mtime_ns) for file, _ in before] == before


def test_the_first_windows_cannot_be_screened(tmp_path: Path) -> None:
    for number in range(3):
        write_window(tmp_path, number, window_of_people(number))
    warden(tmp_path, progress_of(0)).watch(windows(tmp_path))
    assert screened_windows(tmp_path) == []
    assert len(trusted_window(tmp_path, windows(tmp_path)[0])) == len(people(0))


def test_switched_off_nobody_is_screened(stream: Path, tmp_path: Path) -> None:
    for number in range(TRAINED + 1):
        write_window(tmp_path, number, window_of_people(number))
    warden(tmp_path, progress_of(TRAINED), enabled=False).watch(windows(tmp_path))
    assert screened_windows(tmp_path) == []
