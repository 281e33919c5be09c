"""What a ranking is made of, on bundles and state written by the real writers."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from serving.config import PopularitySettings
from serving.engine import Recommender
from serving.errors import InvalidRequestError, NotFoundError
from serving.models import InlineEvent, RecommendationRequest
from serving.user_encoder import Encoded
from tests.serving.world import MINUTE, World, event
from training.bundle import load_bundle
from training.registry import Registry


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.items]


def open_only(world: World, **settings):
    """A recommender that is closed at the end of a `with` block and does not poll."""
    recommender = world.recommender(**settings)
    recommender.close = recommender.stop
    return closing(recommender)


def test_a_ranking_is_the_models_own(trained, recommender):
    """Engine and model, fed by hand and padded to full length, agree on order and scores."""
    bundle = load_bundle(trained.data_dir / "models" / "v1")
    rows = [bundle.item_ids.index(item) for item in ("i1", "i2", "i3")]
    items = torch.zeros(1, 8, 16)
    items[0, 5:] = torch.from_numpy(bundle.item_vectors[rows])
    types, times = torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)
    types[0, 5:], times[0, 5:] = torch.tensor([0, 2, 1]), torch.tensor([0, MINUTE, 4 * MINUTE])
    mask = torch.arange(8)[None] >= 5
    with torch.inference_mode():
        user = bundle.model(items, types, times, mask)[0, -1]
        scores = bundle.model.scores(user, torch.from_numpy(bundle.item_vectors)).numpy()
    expected = [bundle.item_ids[row] for row in np.argsort(-scores, kind="stable") if row not in rows]

    answer = recommender.recommend("anna", k=20)
    assert ids(answer) == expected
    shown = [item.score for item in answer.items]
    assert shown == pytest.approx([scores[bundle.item_ids.index(item)] for item in expected], abs=2e-4)


def test_a_model_that_copies_ranks_what_was_seen_by_its_copies(world):
    world.train("v1", known=("i1", "i2", "i3"), repeats="copied")
    world.publish({"item_id": "i2", "title": "Item 2", "available": False})
    bundle = load_bundle(world.data_dir / "models" / "v1")
    rows = torch.tensor([[bundle.item_ids.index(item) for item in ("i1", "i2", "i3")]])
    vectors = torch.from_numpy(bundle.item_vectors)
    types, times = torch.tensor([[0, 2, 1]]), torch.tensor([[0, MINUTE, 4 * MINUTE]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        scores = bundle.model.next_scores(vectors[rows], types, times, mask, vectors, rows)[0].numpy()
    ranked = [bundle.item_ids[row] for row in np.argsort(-scores, kind="stable")]
    with open_only(world) as recommender:
        everything = recommender.recommend("anna", k=20, exclude_seen=False)
        new = recommender.recommend("anna", k=20, exclude_seen=True)
    assert ids(everything) == [item for item in ranked if item != "i2"]
    assert ids(new) == [item for item in ranked if item not in ("i1", "i2", "i3")]
    shown = {item.item_id: item.score for item in everything.items}
    assert shown["i3"] == pytest.approx(scores[bundle.item_ids.index("i3")], abs=2e-4)


def test_seen_items_are_left_out_unless_asked_for(recommender):
    assert not {"i1", "i2", "i3"} & set(ids(recommender.recommend("anna", k=20)))
    everything = recommender.recommend("anna", k=20, exclude_seen=False)
    assert len(everything.items) == 20
    again = next(item for item in everything.items if item.item_id == "i2")
    assert again.reasons == ["you rated 3 min before the last one"]


def test_an_answer_says_what_it_was_made_from(recommender):
    answer = recommender.recommend("anna", k=3)
    assert (answer.model.version, answer.model.kind) == ("v1", "trained")
    assert answer.model.age_s == pytest.approx(time.time() - 1_700_000_000, abs=5)
    assert (answer.state.known, answer.state.events) == (True, 3)
    assert (answer.state.partition, answer.state.offset) == (0, 2)
    assert answer.state.age_ms == pytest.approx(time.time() * 1000 - 1_700_000_000_000, abs=5000)
    assert all(item.title == item.item_id.replace("i", "Item ") for item in answer.items)


def test_a_reason_names_the_item_of_the_history_that_is_nearest(trained, recommender):
    bundle = load_bundle(trained.data_dir / "models" / "v1")
    vectors = dict(zip(bundle.item_ids, bundle.item_vectors, strict=True))
    deeds = {
        "i1": "viewed 4 min before the last one",
        "i2": "rated 3 min before the last one",
        "i3": "clicked last",
    }
    for item in recommender.recommend("anna", k=17).items:
        likeness = {seen: vectors[seen] @ vectors[item.item_id] for seen in deeds}
        nearest = max(likeness, key=likeness.get)
        if likeness[nearest] > 0:
            expected = f"similar to {nearest.replace('i', 'Item ')}, which you {deeds[nearest]}"
        else:
            expected = "fits what you did lately"
        assert item.reasons == [expected]


def test_an_unknown_user_gets_what_is_popular(trained, recommender):
    bundle = load_bundle(trained.data_dir / "models" / "v1")
    answer = recommender.recommend("nobody", k=4)
    best = np.argsort(-bundle.popularity)[:4]
    assert ids(answer) == [bundle.item_ids[row] for row in best]
    assert answer.items[0].reasons == ["popular now"]
    assert answer.state.model_dump() == {
        "known": False, "events": 0, "partition": None, "offset": None, "age_ms": None
    }  # fmt: skip


def test_a_user_whose_items_nobody_knows_gets_what_is_popular(trained):
    trained.happen(event("bert", "gone", 9), offset=3)
    with open_only(trained) as recommender:
        answer = recommender.recommend("bert", k=3)
        assert ids(answer) == ids(recommender.recommend("nobody", k=3))
        assert answer.state.known


def test_an_item_known_from_histories_only_counts_but_is_never_shown(world):
    world.happen(event("cleo", "i1", 5), event("cleo", "nameless", 6), offset=3)
    world.happen(event("dora", "i1", 5), offset=5)
    world.train("v1", known=("i1", "nameless"))
    with open_only(world) as recommender:
        cleo, dora = (recommender.recommend(user, k=20) for user in ("cleo", "dora"))
        assert len(cleo.items) == 19
        assert set(ids(cleo)) == set(ids(dora))
        assert [item.score for item in cleo.items] != [item.score for item in dora.items]
        assert all("nameless" not in reason for item in cleo.items for reason in item.reasons)


@pytest.mark.parametrize(("half_life_s", "first", "second"), [(1e9, "i7", "i9"), (60.0, "i9", "i7")])
def test_without_a_model_recent_windows_decide(world, half_life_s, first, second):
    """Three events on i7 four minutes before two on i9; a later event closes their windows."""
    early = [event(f"u{n}", "i7", n / 100) for n in range(3)]
    late = [event(f"u{n}", "i9", 4 + n / 100) for n in range(2)]
    world.happen(*early, *late, event("u9", "i0", 10), offset=3)
    with open_only(world, popularity=PopularitySettings(half_life_s=half_life_s)) as recommender:
        answer = recommender.recommend("nobody", k=20)
        assert ids(answer)[0] == first
        assert second in ids(answer)[1:5]
        assert answer.model.model_dump() == {"version": None, "age_s": None, "kind": "popular"}
        assert answer.items[0].reasons == ["popular now"]
        assert answer.items[-1].reasons == ["in the catalogue"]
        assert sum(item.score for item in answer.items) == pytest.approx(1, abs=1e-3)
        assert {"i7", "i9"}.isdisjoint(ids(recommender.recommend("u0", k=20)))
        assert recommender.similar("i1", 3).model.kind == "popular"  # by text, before there is a model


def test_without_anything_but_a_catalogue_its_order_decides(tmp_path):
    world = World(tmp_path)
    with open_only(world) as recommender:
        assert recommender.servable() == 0
        assert recommender.recommend("nobody").items == []
        world.elsewhere("publish", *({"item_id": f"i{n}"} for n in range(5)))
        assert recommender.refresher.refresh()
        answer = recommender.recommend("nobody", k=3)
        assert len(answer.items) == 3
        assert answer.items[0].title == answer.items[0].item_id
        assert answer.items[0].reasons == ["from the catalogue: no activity has been counted yet"]


def test_a_new_item_is_servable_from_its_text(trained, recommender):
    trained.elsewhere("publish", {"item_id": "fresh", "title": "Fresh"}, encode=False)
    assert recommender.refresher.refresh()
    assert "fresh" not in ids(recommender.recommend("anna", k=20))  # not encoded yet
    trained.elsewhere("publish", {"item_id": "fresh", "title": "Fresh"})
    assert recommender.refresher.refresh()
    found = next(i for i in recommender.recommend("anna", k=20).items if i.item_id == "fresh")
    assert found.reasons[0] == "new item, matched by its text"
    assert not recommender.refresher.refresh()  # nothing has changed since
    assert "fresh" in [i.item_id for i in recommender.similar("i5", 20).items]


def test_what_filters_asked_for_is_built_before_a_new_snapshot_serves(trained, recommender):
    recommender.recommend_batch([RecommendationRequest(user_id="anna", filter='title = "x"')])
    before = recommender._snapshot.columns
    assert "title" in before._built_in
    trained.elsewhere("publish", {"item_id": "fresh", "title": "Fresh"})
    assert recommender.refresher.refresh()
    after = recommender._snapshot.columns
    assert after is not before
    assert set(before._built_in) <= set(after._built_in)


def test_an_event_on_a_new_item_is_read_from_its_text(trained):
    trained.publish({"item_id": "fresh", "title": "Fresh"})
    trained.happen(event("emil", "fresh", 3), offset=3)
    with open_only(trained) as recommender:
        answer = recommender.recommend("emil", k=20)
        assert "fresh" not in ids(answer)
        assert any("similar to Fresh, which you viewed last" in i.reasons for i in answer.items)


def test_unavailable_and_deleted_items_are_not_shown(trained, recommender):
    trained.elsewhere("publish", {"item_id": "i5", "available": False}, {"item_id": "i6", "deleted": True})
    recommender.refresher.refresh()
    for user in ("anna", "nobody"):
        assert not {"i5", "i6"} & set(ids(recommender.recommend(user, k=20)))
    assert not {"i5", "i6"} & {i.item_id for i in recommender.similar("i4", 20).items}


def test_a_deleted_item_still_counts_in_a_history(trained, recommender):
    before = recommender.recommend("anna", k=20)
    trained.elsewhere("publish", {"item_id": "i3", "deleted": True})
    recommender.refresher.refresh()
    assert ids(recommender.recommend("anna", k=20)) == ids(before)


def test_a_batch_answers_as_single_requests_do(trained):
    trained.happen(*(event("gus", f"i{n}", n) for n in range(8)), event("hans", "i8", 0), offset=3)
    with open_only(trained) as recommender:
        users = ["gus", "nobody", "anna", "hans"]
        batch = recommender.recommend_batch([RecommendationRequest(user_id=u, k=5) for u in users])
        for user, answer in zip(users, batch, strict=True):
            alone = recommender.recommend(user, k=5)
            assert ids(answer) == ids(alone)
            assert [i.score for i in answer.items] == pytest.approx([i.score for i in alone.items], abs=2e-4)
            assert answer.user_id == user


def test_a_session_equals_the_same_events_in_the_state(recommender):
    events = (
        InlineEvent(item_id="i3", type="click", timestamp=4 * MINUTE),
        InlineEvent(item_id="i1", type="view", timestamp=0),
        InlineEvent(item_id="i2", type="rating", timestamp="1970-01-01T00:01:00Z"),
    )
    [session] = recommender.recommend_batch([RecommendationRequest(events=events, k=20)])
    assert session.items == recommender.recommend("anna", k=20).items
    assert (session.user_id, session.state.known, session.state.events) == (None, False, 3)


def test_inline_events_of_a_known_user_come_on_top_of_the_state(trained, recommender):
    trained.elsewhere("happen", event("anna", "i4", 7), offset=3)
    stored = recommender.recommend("anna", k=20)
    more = (InlineEvent(item_id="i5", type="view", timestamp=9 * MINUTE),)
    [answer] = recommender.recommend_batch([RecommendationRequest(user_id="anna", events=more, k=20)])
    assert (answer.state.events, answer.state.offset) == (5, 3)
    assert "i5" not in ids(answer)
    assert "i5" in ids(stored)


def test_state_is_fresh_without_any_refresh(trained, recommender):
    assert recommender.recommend("anna").state.offset == 2
    trained.elsewhere("happen", event("anna", "i4", 7), offset=3)
    assert recommender.recommend("anna").state.offset == 3


def test_similar_items_are_the_nearest_and_not_the_item_itself(trained, recommender):
    bundle = load_bundle(trained.data_dir / "models" / "v1")
    cosines = bundle.item_vectors @ bundle.item_vectors[bundle.item_ids.index("i5")]
    order = [bundle.item_ids[row] for row in np.argsort(-cosines)]
    assert [item.item_id for item in recommender.similar("i5", 4).items] == order[1:5]
    with pytest.raises(NotFoundError, match="no item 'nix'"):
        recommender.similar("nix")


def test_a_user_in_words(recommender):
    anna = recommender.user("anna")
    assert [(e.item_id, e.title, e.type, e.time) for e in anna.events] == [
        ("i3", "Item 3", "click", "1970-01-01T00:04:00.000Z"),
        ("i2", "Item 2", "rating", "1970-01-01T00:01:00.000Z"),
        ("i1", "Item 1", "view", "1970-01-01T00:00:00.000Z"),
    ]
    assert anna.total == 3
    assert anna.decayed_counts["604800"] == pytest.approx(
        {"view": 1.0, "click": 1.0, "rating": 1.0}, abs=0.01
    )
    with pytest.raises(NotFoundError, match="no event of user 'nobody'"):
        recommender.user("nobody")


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        ({"user_id": "x" * 600}, "/requests/0/user_id"),
        ({"user_id": "x", "k": 101}, "/requests/0/k"),
        ({"events": [{"item_id": "i1", "type": "sneeze"}]}, "/requests/0/events/0/type"),
        ({"events": [{"item_id": "i1", "type": "view"}] * 201}, "/requests/0/events"),
    ],
)
def test_out_of_bounds_requests_are_refused_by_name(recommender, request_, pointer):
    with pytest.raises(InvalidRequestError) as refused:
        recommender.recommend_batch([RecommendationRequest.model_validate(request_)])
    assert refused.value.pointer == pointer


def test_a_promotion_is_taken_up_between_two_requests(trained, recommender):
    first = recommender.recommend("anna", k=5)
    trained.train("v2", seed=1, known=("i1", "i2", "i3"))
    assert recommender.recommend("anna", k=5).items == first.items
    assert recommender.refresher.refresh()
    second = recommender.recommend("anna", k=5)
    assert second.model.version == "v2"
    assert second.items != first.items
    assert recommender.promote("v1", "rollback").previous == "v2"
    assert recommender.refresher.refresh()
    assert recommender.recommend("anna", k=5).items == first.items


def test_swaps_under_concurrent_requests_fail_none_and_mix_nothing(trained):
    """Every answer equals that of one of the two models, while they are swapped back and forth."""
    trained.train("v2", seed=1, known=("i1", "i2", "i3"), promote=False)
    registry = Registry(trained.data_dir / "models")
    seen: list[tuple[str | None, tuple[str, ...]]] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def ask(recommender: Recommender) -> None:
        while not stop.is_set():
            try:
                answer = recommender.recommend("anna", k=20)
                seen.append((answer.model.version, tuple(ids(answer))))
            except Exception as error:
                failures.append(error)

    with trained.recommender() as recommender:
        threads = [threading.Thread(target=ask, args=(recommender,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for swap in range(6):
            version = ("v2", "v1")[swap % 2]
            registry.promote(version, "test")
            wait_for(lambda wanted=version: recommender.model_state().version == wanted)
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not failures
    by_version = {version: {items for v, items in seen if v == version} for version, _ in seen}
    assert set(by_version) == {"v1", "v2"}
    assert all(len(orders) == 1 for orders in by_version.values())
    assert not recommender.refresher.alive()


def test_a_damaged_bundle_is_refused_and_the_old_one_stays(trained, recommender, caplog):
    path = trained.train("v2", seed=1)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert not recommender.refresher.refresh()
    assert recommender.recommend("anna").model.version == "v1"
    assert "v2 is not taken into service (v1 stays)" in caplog.text
    trained.elsewhere("publish", {"item_id": "fresh", "title": "Fresh"})
    assert recommender.refresher.refresh()  # the rest goes on
    assert "fresh" in ids(recommender.recommend("anna", k=20))


def test_a_model_that_gives_no_numbers_is_refused(trained, recommender, monkeypatch):
    def broken(*_: object, **__: object) -> Encoded:
        return Encoded(np.full((1, 16), np.nan, np.float32), None)

    trained.train("v2", seed=1)
    monkeypatch.setattr("serving.user_encoder.UserEncoder.encode", broken)
    assert not recommender.refresher.refresh()
    monkeypatch.undo()
    assert recommender.recommend("anna").model.version == "v1"


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        tick.wait(0.005)
