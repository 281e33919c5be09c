"""The page in a real browser: against the whole running system, and against one that asks for a key."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from serving.app import build_app
from tests.browser import CHROMIUM, Page, chromium
from tests.e2e.ring import NUM_USERS, System, ring_settings, ring_system
from tests.serving.conftest import ITEMS
from tests.serving.live import key, served
from tests.serving.test_http import Running
from tests.serving.world import World, event

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

TITLES = "[...document.querySelectorAll('#list .title')].map(one => one.textContent)"
TOOK = "document.querySelector('#timing').dataset.ms"
OVERFLOW = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def system(broker: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    training = {"min_initial_windows": 2, "initial_events": 5 * NUM_USERS, "initial_epochs": 10}
    training |= {"max_seconds_initial": 5, "trust": {"simulations": 1}}
    folder = tmp_path_factory.mktemp("page")
    with ring_system(ring_settings(broker, folder, "page", training, simulations=True)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, system: System) -> Iterator[Page]:
    """The page of the running system on a desktop; whoever leaves it, it had nothing to complain of."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.look_like(1280, 900)
    browser.go(str(system.http.base_url))
    yield browser
    assert browser.complaints == []
    elsewhere = [url for url in browser.requests if not url.startswith(str(system.http.base_url))]
    assert elsewhere == []


def test_before_any_model_it_says_so_and_shows_what_is_popular(page: Page, system: System) -> None:
    page.wait("document.querySelector('#lede').textContent.includes('No model yet')", 90)
    page.wait("document.querySelector('#verdicts').textContent.includes('the first one comes when')")
    page.wait(
        "document.querySelector('#model-chart .waiting').textContent.includes('No model has been judged')"
    )
    system.walk(1)
    page.wait("document.querySelector('#chips button')", 40)
    page.wait(f"{TITLES}.length === 10")
    assert re.fullmatch(r"u\d+", page.text("#chips button"))
    assert "by popularity" in page.text("#list-note")


def test_the_first_model_appears_with_its_verdict_and_what_it_keeps_under_attack(
    page: Page, system: System
) -> None:
    system.walk(16)
    page.wait("/^v\\d+ answers in/.test(document.querySelector('#lede').textContent)", 120)
    page.wait("document.querySelector('#verdicts .tag')?.textContent === 'serves now'")
    assert "NDCG@10" in page.text("#verdicts li")
    assert "Quality kept under attack" in page.text("#facts")
    page.wait("document.querySelectorAll('#charts .uplot, #model-chart .uplot').length >= 3", 20)
    page.wait("document.querySelector('#flow [data-id=kafka] b').textContent === 'all read'")
    assert page.text("#pill") == "running"


def test_a_click_goes_through_the_stream_and_changes_the_list(page: Page, system: System) -> None:
    page.wait(f"{TITLES}.length === 10", 40)
    before = page.evaluate(TITLES)
    page.click("#list li:nth-child(3) .pick")
    page.wait(TOOK)
    system.sent += 1
    assert 0 < float(page.evaluate(TOOK)) < 15_000
    assert re.search(r"[\d.]+\sm?s\s*from your click to another list", page.text("#timing"))
    after = page.evaluate(TITLES)
    assert before[2] not in after
    page.wait(f"document.querySelector('#past li span')?.textContent === {before[2]!r}")
    assert page.evaluate("document.querySelector('#timing').getAttribute('aria-live')") == "polite"
    page.click("#list li:nth-child(2) .ask")
    page.wait("document.querySelector('#list .effects .bar')")
    assert before[2] in page.text("#list .effects")


def test_everything_is_done_by_keyboard_too(page: Page, system: System) -> None:
    page.wait(f"{TITLES}.length === 10", 40)
    page.evaluate("document.activeElement.blur()")
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.press("Enter")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "user"
    page.evaluate("document.activeElement.select()")
    page.write("somebody-new")
    page.press("Enter")
    page.wait("document.querySelector('#past .empty')")
    assert page.text("#trust") == "Nobody knows this user yet."
    page.evaluate("document.querySelector('#list .pick').focus()")
    page.press("ArrowDown")
    title = page.evaluate("document.activeElement.querySelector('.title').textContent")
    assert title == page.evaluate(TITLES)[1]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    page.wait(TOOK)
    system.sent += 1
    page.wait(f"document.querySelector('#past li span')?.textContent === {title!r}")
    assert page.evaluate("document.activeElement.className") == "pick"  # the place in the list is kept


def test_fake_users_are_sent_and_what_becomes_of_them_is_seen(page: Page, system: System) -> None:
    page.wait("!document.querySelector('#attack form').hidden", 20)
    page.click("#attack button[type=submit]")
    page.wait("document.querySelectorAll('#attack .crowd i').length > 0", 60)
    page.wait("document.querySelector('#attack .steps4 li:nth-child(3)').dataset.done === 'now'", 60)
    status = system.get("/v1/stats")["attack"]
    assert status["sent"] == status["events"] > 0
    assert page.evaluate("document.querySelectorAll('#attack .crowd i').length") == status["fake_users"]
    assert "before, with v" in page.text("#attack .share")
    assert page.evaluate("document.querySelector('#attack button').disabled")  # one at a time
    again = system.http.post("/v1/attacks", json={})
    assert again.status_code == 409, again.text
    system.walk(12)  # the stream goes on, the window that was hit closes and is screened
    page.wait("/users were held/.test(document.querySelector('#attack .outcome').textContent)", 90)
    assert system.get("/v1/stats")["attack"]["phase"] in ("learning", "done")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_colours(page: Page, dark: bool) -> None:
    page.look_like(390, 844, dark=dark, mobile=True)
    page.go(page.evaluate("location.origin"))
    page.wait(f"{TITLES}.length === 10", 40)
    assert not page.evaluate(OVERFLOW)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(13, 19, 18)" if dark else "rgb(245, 247, 246)")
    page.click("#theme")  # light
    page.click("#theme")  # dark
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.click("#theme")  # as the system has it
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")


def test_where_reading_needs_a_key_it_asks_for_one_and_keeps_it_in_the_tab(
    browser: Page, tmp_path: Any
) -> None:
    world = World(tmp_path)
    world.publish(*ITEMS)
    world.happen(event("anna", "i1", 0))
    world.train("v1", known=("i1",))
    words, kept = key("reader", "read")
    recommender = world.recommender(security={"keys": (kept,)})
    with served(build_app(recommender, None, Running())) as client:  # type: ignore[arg-type]
        browser.look_like(1280, 900)
        browser.go(str(client.base_url))
        browser.wait("document.querySelector('#key-dialog').open")
        assert "anna" not in browser.evaluate("document.body.innerText")
        assert browser.evaluate("document.activeElement.id") == "key"
        browser.write(words)
        browser.press("Enter")
        browser.wait("document.querySelector('#user').value === 'anna'")
        browser.wait("document.querySelector('#past li span')?.textContent === 'Item 1'")
        kept_in = browser.evaluate(
            "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])"
        )
        assert json.loads(kept_in) == [{"headrace-key": words}, {}, ""]
        browser.click("#list .pick")  # reading is all that it may do
        browser.wait("document.querySelector('#timing .fault')?.textContent.includes('needs scope write')")
    recommender.stop()
