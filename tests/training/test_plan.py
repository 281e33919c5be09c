from training.plan import Plan, WindowCounts, split

SIZES = {1: 50, 2: 50, 3: 5, 4: 0, 5: 12, 6: 30}


def counts(window: int) -> WindowCounts:
    return WindowCounts(events=SIZES[window], targets=SIZES[window], scorable=SIZES[window])


def test_train_on_all_but_the_newest() -> None:
    assert split([1, 2], set(), counts, 20) == ((1,), (2,))
    assert split([1, 2, 6], {1}, counts, 20) == ((2,), (6,))


def test_several_windows_that_arrived_together_are_taken_together() -> None:
    assert split([1, 2, 3, 4, 5, 6], {1}, counts, 20) == ((2, 3, 4, 5), (6,))


def test_small_windows_are_merged_into_an_exam() -> None:
    assert split([1, 2, 3, 4, 5], {1}, counts, 15) == ((2,), (3, 4, 5))


def test_nothing_to_judge_by_means_waiting() -> None:
    assert split([1], set(), counts, 20) is None
    assert split([1, 2, 3], {1}, counts, 20) is None
    assert split([], set(), counts, 20) is None


def test_empty_windows_are_never_trained_alone_but_never_lost() -> None:
    assert split([4, 6], set(), counts, 20) is None
    assert split([1, 4, 6], set(), counts, 20) == ((1, 4), (6,))


def test_a_window_that_completes_late_is_still_trained() -> None:
    assert split([1, 2, 5, 6], {2, 5}, counts, 20) == ((1,), (6,))


def test_a_plan_survives_json() -> None:
    plan = Plan("v0002", (1, 2), (3,), (), True)
    assert Plan.from_json(plan.to_json()) == plan
