"""Fake users are told from people, also those of attacks that the detector did not learn from."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.crowd import HASHES, fakes, people
from training.config import InfluenceConfig, TrustConfig
from training.data import concat
from training.influence import clipped_rows, limited
from training.progress import PopularityCounts
from training.trust.detector import Detector, Example
from training.trust.features import NAMES, behaviour
from training.trust.screening import screen
from training.trust.simulation import KINDS, fitted_detector

TARGETS = [200, 230, 251]
LEARNED = 8  # windows
CONFIG = TrustConfig(simulations=2)


def popularity(upto: int) -> PopularityCounts:
    counts = PopularityCounts(1e12)
    for number in range(upto):
        window = people(number)
        counts.add(window.items[window.new_events()], window.times[window.new_events()])
    return counts


@pytest.fixture(scope="module")
def past() -> PopularityCounts:
    return popularity(LEARNED)


@pytest.fixture(scope="module", params=["bandwagon", "segment"])
def unknown(request: pytest.FixtureRequest) -> tuple[str, Detector]:
    """An attack, and a detector that learned from the others."""
    windows = [people(number) for number in range(LEARNED)]
    kinds = [kind for kind in KINDS if kind != request.param]
    made = fitted_detector(windows, PopularityCounts(1e12), CONFIG, kinds=kinds)
    assert made is not None
    return request.param, made


def test_fakes_of_an_unknown_attack_are_caught_and_people_are_not(unknown, past) -> None:
    kind, detector = unknown
    crowd = people(LEARNED)
    whole = concat([crowd, fakes(kind, LEARNED, 12, TARGETS)])
    found = screen(whole, past, detector)
    fake = np.arange(len(whole)) >= len(crowd)
    assert found.quarantined[fake].mean() > 0.7
    assert found.trust[fake].mean() < 0.15
    assert found.quarantined[~fake].mean() < 0.02
    assert found.trust[~fake].mean() > 0.9
    learned = found.applied(whole)
    assert len(learned) == len(whole) - found.quarantined.sum()
    assert not np.isin(whole.users[found.quarantined], learned.users).any()
    told = dict(zip(found.doubted.tolist(), found.reasons, strict=True))
    assert "suddenly had by many" in told[int(np.flatnonzero(fake & found.quarantined)[0])]


def test_accounts_kept_in_store_do_not_help(unknown, past) -> None:
    kind, detector = unknown
    crowd, poison = people(LEARNED), fakes(kind, LEARNED, 12, TARGETS)
    aged = replace(poison, target_from=np.minimum(np.diff(poison.offsets) // 3, 3))
    found = screen(concat([crowd, aged]), past, detector)
    assert found.trust[len(crowd) :].mean() < 0.3


def test_a_window_of_people_is_left_alone(unknown, past) -> None:
    crowd = people(LEARNED)
    found = screen(crowd, past, unknown[1])
    assert found.quarantined.mean() < 0.02


def test_a_detector_is_the_same_when_read_back(unknown, past, tmp_path) -> None:
    detector = unknown[1]
    detector.windows = 9
    detector.save(tmp_path / "d.safetensors")
    again = Detector.load(tmp_path / "d.safetensors")
    features = behaviour(people(LEARNED), past).features
    np.testing.assert_array_equal(again.trust(features), detector.trust(features))
    assert again.windows == 9


def test_too_little_to_learn_from() -> None:
    assert fitted_detector([people(0)], PopularityCounts(1e12), CONFIG) is None
    with pytest.raises(ValueError, match="fake"):
        Detector.fit(
            [Example(np.zeros((3, len(NAMES))), np.zeros(3, bool))], [np.zeros((1, len(NAMES)))], CONFIG
        )


def test_features_leave_the_user_out_and_see_company(past) -> None:
    crowd = people(LEARNED)
    alone = fakes("random", LEARNED, 1, TARGETS)
    many = fakes("random", LEARNED, 15, TARGETS)
    column = NAMES.index("surplus 3")
    one = behaviour(concat([crowd, alone]), past).features[-1, column]
    company = behaviour(concat([crowd, many]), past).features[-1, column]
    assert company > one + 1
    together = NAMES.index("most together")
    features = behaviour(concat([crowd, many]), past).features[:, together]
    assert np.median(features[len(crowd) :]) > np.quantile(features[: len(crowd)], 0.9)


def test_rows_without_new_events_and_empty_windows_have_features(past) -> None:
    crowd = people(LEARNED)
    nothing_new = replace(crowd, target_from=np.diff(crowd.offsets))
    assert np.isfinite(behaviour(nothing_new, past).features).all()
    assert behaviour(crowd.take(np.zeros(0, np.int64)), past).features.shape == (0, len(NAMES))
    assert np.isfinite(behaviour(crowd, PopularityCounts(1e12)).features).all()


def test_an_item_may_grow_but_not_by_leaps(past) -> None:
    crowd = people(LEARNED)
    whole = concat([crowd, fakes("bandwagon", LEARNED, 60, TARGETS)])
    config = InfluenceConfig(enabled=True, item_growth=3.0, item_floor=5.0)
    weights = limited(whole, past, config).target_weights()
    fresh = whole.new_events()
    total = weights[fresh].sum()
    for target in TARGETS:
        of_it = (whole.items == HASHES[target]) & fresh
        assert of_it.sum() >= 60
        allowed = 3.0 * past.shares(HASHES[[target]])[0] * total * 1.3 + 5.0
        assert weights[of_it].sum() <= allowed
    honest = limited(crowd, past, config).target_weights()
    assert honest[crowd.new_events()].mean() > 0.95
    assert limited(whole, past, InfluenceConfig()) is whole


def test_a_user_weighs_what_the_busiest_usually_do(past) -> None:
    crowd = people(LEARNED)
    busy = replace(
        crowd.take(np.zeros(40, np.int64)),
        offsets=np.array([0, len(crowd.take(np.zeros(40, np.int64)).items)]),
        target_from=np.zeros(1, np.int64),
        trust=np.ones(1, np.float32),
        users=np.array([99], np.uint64),
    )
    config = InfluenceConfig(enabled=True, user_events=1.0, item_growth=1e9)
    weights = limited(concat([crowd, busy]), past, config).target_weights()
    most = np.quantile(
        np.bincount(np.repeat(np.arange(len(crowd)), np.diff(crowd.offsets))[crowd.new_events()]), 0.9
    )
    assert weights[len(crowd.items) :].sum() == pytest.approx(most, rel=0.1)


def test_a_sequence_pulls_no_harder_than_its_batch() -> None:
    import torch

    gradient = torch.ones(4, 2, 3)
    gradient[0] *= 100
    gradient[3] = 0
    clipped = clipped_rows(gradient, ratio=2.0)
    norms = clipped.flatten(1).norm(dim=1)
    assert torch.allclose(norms[0], 2 * norms[1])
    assert torch.equal(clipped[1:], gradient[1:])
