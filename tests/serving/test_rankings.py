"""What may be asked of a ranking beside how many items: candidates, exclusions, pages, reasons in numbers, tags."""

import asyncio

import pytest

from serving.ask import Ask
from serving.batching import MicroBatcher
from serving.errors import ConflictError, InvalidRequestError
from serving.models import InlineEvent, RankRequest, RecommendationRequest
from serving.policy_config import DiversitySettings, ExplorationSettings, RuleSettings
from serving.ranking import Answered
from tests.serving.conftest import ITEMS
from tests.serving.test_engine import ids, open_only
from tests.serving.test_http import problem, serve
from tests.serving.world import MINUTE, event


def one(recommender, **asked):
    return recommender.recommend_batch([RecommendationRequest(**asked)])[0]


def test_candidates_come_in_the_order_of_the_whole_list(recommender):
    whole = recommender.recommend("anna", k=20, exclude_seen=False)
    order = ids(whole)
    wanted = [order[15], "nix", order[2], order[7], order[2]]
    ranked = recommender.rank(RankRequest(user_id="anna", items=wanted))
    assert ids(ranked) == [order[2], order[7], order[15]]
    assert ranked.unknown == ["nix"]
    by_id = {item.item_id: item.score for item in whole.items}
    assert [item.score for item in ranked.items] == pytest.approx(
        [by_id[item] for item in ids(ranked)], abs=2e-4
    )
    assert ids(recommender.rank(RankRequest(user_id="anna", items=wanted, k=1))) == [order[2]]
    unseen = recommender.rank(RankRequest(user_id="anna", items=["i1", "i4"], exclude_seen=True))
    assert (ids(unseen), unseen.unknown) == (["i4"], ["i1"])


@pytest.mark.parametrize("repeats", ["excluded", "copied"])
def test_candidates_of_a_model_that_copies(world, repeats):
    world.train("v1", known=("i1", "i2", "i3"), repeats=repeats)
    with open_only(world) as recommender:
        order = ids(recommender.recommend("anna", k=20, exclude_seen=False))
        ranked = recommender.rank(RankRequest(user_id="anna", items=order[::-1]))
        assert ids(ranked) == order


def test_candidates_for_a_stranger_are_ranked_by_popularity(recommender):
    popular = ids(recommender.recommend("nobody", k=20))
    assert ids(recommender.rank(RankRequest(items=popular[10:4:-1]))) == popular[5:11]


def test_excluded_items_are_not_shown(recommender):
    for user in ("anna", "nobody"):
        first = ids(recommender.recommend(user, k=5))
        rest = one(recommender, user_id=user, k=5, exclude=[*first[:2], "nix"])
        assert ids(rest)[:3] == first[2:]
        assert not {*first[:2]} & {*ids(rest)}


@pytest.mark.parametrize("user", ["anna", "nobody"])
def test_pages_make_up_the_list(recommender, user):
    whole = ids(recommender.recommend(user, k=20))
    seen, cursor = [], None
    for k in (3, 7, 4, 20):
        page = one(recommender, user_id=user, k=k, cursor=cursor)
        seen, cursor = seen + ids(page), page.next
        if cursor is None:
            break
    assert seen == whole


def test_a_page_of_a_list_that_has_changed_is_refused(trained, recommender):
    cursor = recommender.recommend("anna", k=3).next
    assert one(recommender, user_id="anna", k=3, cursor=cursor).items
    with pytest.raises(ConflictError, match="the list has changed"):
        one(recommender, user_id="anna", k=3, cursor=cursor, exclude=["i9"])
    with pytest.raises(ConflictError, match="ask again without cursor"):
        one(recommender, user_id="bert", k=3, cursor=cursor)
    trained.elsewhere("happen", event("anna", "i4", 7), offset=3)
    with pytest.raises(ConflictError):
        one(recommender, user_id="anna", k=3, cursor=cursor)
    for broken in ("", "x", "w" * 30, cursor[:-2]):
        with pytest.raises(InvalidRequestError, match="cursor"):
            one(recommender, user_id="anna", k=3, cursor=broken)


def test_lists_end_where_the_settings_say(trained):
    with open_only(trained, page_depth=8) as recommender:
        first = recommender.recommend("anna", k=5)
        with pytest.raises(InvalidRequestError, match="lists end at item 8"):
            one(recommender, user_id="anna", k=5, cursor=first.next)
        assert one(recommender, user_id="anna", k=3, cursor=first.next).next is None


@pytest.mark.parametrize("repeats", ["excluded", "copied"])
def test_an_explanation_is_what_the_score_loses_without_the_event(world, repeats):
    world.train("v1", known=("i1", "i2", "i3"), repeats=repeats)
    happened = [("i1", "view", 0), ("i2", "rating", MINUTE), ("i3", "click", 4 * MINUTE)]
    with open_only(world) as recommender:
        answer = one(recommender, user_id="anna", k=20, exclude_seen=False, explain=True)
        for item in answer.items:
            assert len(item.explanation) == 3
            strength = [abs(part.effect) for part in item.explanation]
            assert strength == sorted(strength, reverse=True)
            for part in item.explanation:
                rest = [
                    InlineEvent(item_id=i, type=t, timestamp=at) for i, t, at in happened if i != part.item_id
                ]
                without = one(recommender, events=rest, k=20, exclude_seen=False)
                [score] = [other.score for other in without.items if other.item_id == item.item_id]
                assert part.effect == pytest.approx(item.score - score, abs=5e-4)
                assert part.text.startswith("you ")
                assert part.title in part.text
        alone = one(recommender, events=[InlineEvent(item_id="i5", type="view")], k=3, explain=True)
        assert [part.effect for item in alone.items for part in item.explanation] == pytest.approx(
            [item.score for item in alone.items], abs=2e-4
        )
        assert recommender.recommend("nobody").items[0].explanation is None


def test_what_the_caller_has_already_is_not_sent_again(trained, recommender):
    with serve(recommender) as client:
        first = client.get("/v1/recommendations/anna")
        tag = first.headers["etag"]
        again = client.get("/v1/recommendations/anna", headers={"If-None-Match": f'W/"other", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        for other in ("?k=3", "?explain=true", "?exclude=i9", "?exclude_seen=false"):
            answer = client.get(f"/v1/recommendations/anna{other}", headers={"If-None-Match": tag})
            assert answer.status_code == 200
        assert client.get("/v1/recommendations/anna?k=10", headers={"If-None-Match": tag}).status_code == 304
        trained.elsewhere("happen", event("anna", "i4", 7), offset=3)
        changed = client.get("/v1/recommendations/anna", headers={"If-None-Match": tag})
        assert changed.status_code == 200
        assert changed.headers["etag"] != tag


def test_the_fast_lane_answers_as_the_framework_does(recommender):
    with serve(recommender) as client:
        for fast, framed in (("", "?exclude_seen=true"), ("?k=4", "?k=4&exclude_seen=true")):
            one_way = client.get(f"/v1/recommendations/anna{fast}")
            other = client.get(f"/v1/recommendations/anna{framed}")
            assert one_way.json()["items"] == other.json()["items"]
            assert {*one_way.headers} == {*other.headers}
        for wrong in ("?k=0", "?k=101", "?k=101&explain=false"):
            found = problem(client.get(f"/v1/recommendations/anna{wrong}"), 422)
            assert found["errors"][0]["pointer"] == "query/k"
        unknown = problem(client.get("/v1/recommendations/anna?count=3"), 422)
        assert unknown["errors"][0]["pointer"] == "query/count"
        assert client.get("/v1/recommendations/a%2Fb%20c").json()["user_id"] == "a/b c"
        metrics = client.get("/metrics").text
        assert 'route="/v1/recommendations/{user_id}",status="422"' in metrics
        assert "anna" not in metrics


def test_pages_and_candidates_over_http(recommender):
    with serve(recommender) as client:
        first = client.get("/v1/recommendations/anna", params={"k": 3, "exclude": ["i4", "i5"]}).json()
        second = client.get(
            "/v1/recommendations/anna", params={"k": 3, "exclude": ["i4", "i5"], "cursor": first["next"]}
        ).json()
        assert not {i["item_id"] for i in first["items"]} & {i["item_id"] for i in second["items"]}
        problem(client.get("/v1/recommendations/anna", params={"cursor": first["next"]}), 409)
        ranked = client.post("/v1/rank", json={"user_id": "anna", "items": ["i7", "i8", "nix"]}).json()
        assert ranked["unknown"] == ["nix"]
        assert problem(client.post("/v1/rank", json={"items": []}), 422)["errors"][0]["pointer"] == "/items"
        long = client.post("/v1/rank", json={"items": ["i1"] * 1001})
        assert "serving.candidates_max" in problem(long, 422)["detail"]


def test_requests_that_come_together_are_ranked_together():
    batches = []

    def answer(asks):
        batches.append([ask.user_id for ask in asks])
        if any(ask.user_id == "bad" for ask in asks):
            raise RuntimeError("a ranking that fails")
        refused = InvalidRequestError("/k", "no")
        return [refused if ask.user_id == "refused" else Answered(None, ask.user_id) for ask in asks]

    async def together(*users):
        batcher = MicroBatcher(answer, most=3)
        asked = [batcher.ask(Ask(user_id=user)) for user in users]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(together("a", "b", "refused", "c"))
    assert [getattr(one, "tag", type(one)) for one in found] == ["a", "b", InvalidRequestError, "c"]
    assert batches == [["a", "b", "refused"], ["c"]]
    batches.clear()
    found = asyncio.run(together("a", "bad", "b"))
    assert [getattr(one, "tag", type(one)) for one in found] == ["a", RuntimeError, "b"]
    assert batches == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]


def test_a_caller_who_has_gone_takes_nobody_along():
    async def run():
        batcher = MicroBatcher(lambda asks: [Answered(None, ask.user_id) for ask in asks], most=8)
        gone, stays = (asyncio.ensure_future(batcher.ask(Ask(user_id=user))) for user in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(run()).tag == "stays"


def test_a_filter_holds_for_known_users_and_strangers(recommender):
    for user in ("anna", "nobody"):
        whole = ids(recommender.recommend(user, k=20))
        chosen = one(recommender, user_id=user, k=20, filter='category = "a" or item_id = "i4"')
        assert ids(chosen) == [item for item in whole if int(item[1:]) % 3 == 0 or item == "i4"]
    ranked = recommender.rank(RankRequest(items=["i3", "i4", "i5"], filter='category in ("b", "c")'))
    assert (sorted(ids(ranked)), ranked.unknown) == (["i4", "i5"], ["i3"])
    with pytest.raises(InvalidRequestError) as refused:
        one(recommender, user_id="anna", filter="color = 3")
    assert refused.value.pointer == "/requests/0/filter"


def test_diversity_spreads_the_list_and_its_pages_fit(trained):
    with open_only(trained) as recommender:
        plain = ids(recommender.recommend("anna", k=17))
        spread = ids(one(recommender, user_id="anna", k=17, diversity=0.9))
        assert spread[0] == plain[0]
        assert spread != plain
        assert sorted(spread) == sorted(plain)
        first = one(recommender, user_id="anna", k=5, diversity=0.9)
        second = one(recommender, user_id="anna", k=5, diversity=0.9, cursor=first.next)
        assert ids(first) + ids(second) == spread[:10]
        vectors = recommender._snapshot.vectors
        table = recommender._snapshot.table

        def likeness(shown):
            rows = table.rows_named(shown[:6])
            return float((vectors[rows] @ vectors[rows].T).sum())

        assert likeness(spread) < likeness(plain)
    with open_only(trained, diversity=DiversitySettings(default=0.9)) as recommender:
        assert ids(recommender.recommend("anna", k=17)) == spread


@pytest.mark.parametrize("kind", ["epsilon", "plackett-luce"])
def test_exploration_draws_anew_tells_its_chances_and_keeps_to_a_list(trained, kind):
    settings = ExplorationSettings(kind=kind, epsilon=0.5, temperature=2.0)
    with open_only(trained, exploration=settings) as recommender:
        lists = [recommender.recommend("anna", k=17) for _ in range(8)]
        assert len({tuple(ids(answer)) for answer in lists}) > 1
        assert len({tuple(sorted(ids(answer))) for answer in lists}) == 1
        assert all(0 < item.propensity <= 1 for answer in lists for item in answer.items)
        first = recommender.recommend("anna", k=6)
        second = one(recommender, user_id="anna", k=20, cursor=first.next)
        assert not {*ids(first)} & {*ids(second)}
        again = one(recommender, user_id="anna", k=20, cursor=first.next)
        assert again.items == second.items
        assert recommender.rank(RankRequest(user_id="anna", items=["i4", "i5"])).items[0].propensity is None
        with serve(recommender) as client:
            assert "etag" not in client.get("/v1/recommendations/anna").headers


def rules(**told):
    return RuleSettings.model_validate(told)


@pytest.mark.parametrize("user", ["anna", "nobody"])
def test_rules_hold_for_known_users_and_strangers(trained, user):
    with open_only(trained) as recommender:
        plain = ids(recommender.recommend(user, k=20))
        scores = {item.item_id: item.score for item in recommender.recommend(user, k=20).items}
    last, first = plain[-1], plain[0]
    told = rules(
        pin=[{"item_id": last, "position": 2}],
        block=[{"filter": f'item_id = "{first}"'}],
    )
    with open_only(trained, rules=told) as recommender:
        answer = recommender.recommend(user, k=20)
        rest = [item for item in plain if item not in (first, last)]
        assert ids(answer) == [rest[0], last, *rest[1:]]
        assert {item.item_id: item.score for item in answer.items} == pytest.approx(
            {item: scores[item] for item in ids(answer)}, abs=2e-4
        )
        paged = recommender.recommend(user, k=4)
        more = one(recommender, user_id=user, k=16, cursor=paged.next)
        assert ids(paged) + ids(more) == ids(answer)
        ranked = recommender.rank(RankRequest(user_id=user, items=[first, rest[1], rest[0]]))
        assert (ids(ranked), ranked.unknown) == ([rest[0], rest[1]], [first])
    with open_only(
        trained, rules=rules(boost=[{"filter": f'item_id = "{last}"', "factor": 1000}])
    ) as boosted:
        assert ids(boosted.recommend(user, k=20)).index(last) < len(plain) - 1


def test_caps_hold_on_every_page(trained):
    told = rules(cap=[{"most": 2, "each": "category"}])
    with open_only(trained, rules=told) as recommender:
        kinds = {item["item_id"]: item["categories"][0] for item in ITEMS}
        first = recommender.recommend("anna", k=5)
        second = one(recommender, user_id="anna", k=5, cursor=first.next)
        for page in (first, second):
            shown = [kinds[item] for item in ids(page)]
            assert max(map(shown.count, shown)) <= 2
            assert len(shown) == 5
        assert not {*ids(first)} & {*ids(second)}
        with pytest.raises(ConflictError):
            one(recommender, user_id="anna", k=4, cursor=first.next)


def test_ids_that_no_event_could_have_are_refused(recommender):
    with serve(recommender) as client:
        for path in ("/v1/recommendations/a%00b", "/v1/users/a%00b", "/v1/items/a%00b/similar"):
            assert "NUL" in problem(client.get(path), 422)["detail"]
