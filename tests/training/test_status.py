import time
from pathlib import Path

from training.status import INTERVAL_S, StatusWriter, blank_status, read_status, write_status


def test_no_file_reads_as_blank(tmp_path: Path) -> None:
    assert read_status(tmp_path) == blank_status()


def test_fields_merge_and_the_file_stays_fresh(tmp_path: Path) -> None:
    with StatusWriter(tmp_path) as status:
        status.update(phase="training", step=3)
        first = read_status(tmp_path)
        assert (first["phase"], first["step"], first["trained"]) == ("training", 3, 0)
        deadline = time.monotonic() + 10 * INTERVAL_S
        while read_status(tmp_path)["updated_at"] == first["updated_at"]:
            assert time.monotonic() < deadline
        status.update(step=4)
    assert read_status(tmp_path)["step"] == 4
    assert [path.name for path in (tmp_path / "learner").iterdir()] == ["status.json"]


def test_an_error_outlives_the_worker_that_met_it(tmp_path: Path) -> None:
    with StatusWriter(tmp_path) as status:
        status.update(phase="failed", error="RuntimeError: broken")
    with StatusWriter(tmp_path) as status:
        status.update(phase="loading")
        assert read_status(tmp_path)["error"] == "RuntimeError: broken"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with StatusWriter(tmp_path, enabled=False) as status:
        status.update(phase="training")
    assert not (tmp_path / "learner").exists()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    write_status(tmp_path, {"detail": "old"})
    with (tmp_path / "learner" / "status.json").open() as reader:
        write_status(tmp_path, {"detail": "new"})
        assert '"old"' in reader.read()
    assert read_status(tmp_path)["detail"] == "new"
