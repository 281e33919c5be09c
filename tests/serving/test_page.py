"""The page as a server sees it: what is given to whom, how long it is kept, and that nothing comes from elsewhere."""

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import build_app
from serving.page.assets import FOLDER, load
from serving.security.config import ApiKey
from tests.serving.live import key, problem, served
from tests.serving.test_http import Running
from tests.serving.world import World

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("js/*.js"))
# what may name an address: the namespace of SVG, and the comment in which uPlot says where it comes from
HARMLESS = ("http://www.w3.org/2000/svg", "/*! https://github.com/leeoniya/uPlot (v1.6.32) */")


class Elements(HTMLParser):
    """All start tags with their attributes, and the text within scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.inline.append(data.strip())


@pytest.fixture
def secured(trained: World) -> Iterator[tuple[httpx.Client, str, str]]:
    """The API where reading needs a key; with a key that reads and one that may do everything."""
    reader, reads = key("reader", "read")
    operator, administers = key("operator", "admin")
    keys: tuple[ApiKey, ...] = (reads, administers)
    recommender = trained.recommender(security={"keys": keys}, simulations=True)
    with served(build_app(recommender, None, Running())) as client:  # type: ignore[arg-type]
        yield client, reader, operator
    recommender.stop()


@pytest.fixture
def client(recommender: Any) -> Iterator[httpx.Client]:
    with served(build_app(recommender, None, Running())) as client:  # type: ignore[arg-type]
        yield client


def addresses(page: str) -> list[str]:
    """What the page loads, from its own server."""
    named = [attributes.get("src") or attributes.get("href") for _, attributes in Elements(page).found]
    return [address for address in named if address is not None and address.startswith("/page/")]


def test_the_page_and_all_that_it_loads_are_there_for_everybody(secured) -> None:
    client, *_ = secured
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    loaded = addresses(page.text)
    assert len(loaded) > 6
    for address in loaded:
        assert client.get(address).status_code == 200, address
    assert client.head("/").status_code == 200
    assert client.get("/v1/stats").status_code == 401  # what it shows is not


def test_scripts_import_only_scripts_that_exist() -> None:
    for name in SCRIPTS:
        text = (FOLDER / name).read_text()
        for imported in re.findall(r'^import .* from "(.+)";$', text, re.MULTILINE):
            assert imported.startswith("./"), f"{name} imports {imported}"
            assert (FOLDER / name).parent.joinpath(imported).is_file(), f"{name} imports {imported}"


def test_only_this_server_is_asked_and_nothing_is_inline(client) -> None:
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    page = Elements(answer.text)
    assert not any(page.inline)
    for tag, attributes in page.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.suffix not in (".md", ".txt"):
            text = path.read_text()
            for harmless in HARMLESS:
                text = text.replace(harmless, "")
            assert not re.search(r"https?:|[\"'(]//|@import|url\(", text), path.name


def test_files_are_kept_for_a_year_under_a_name_that_changes_with_them(client, tmp_path) -> None:
    page = client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    address = next(one for one in addresses(page.text) if one.endswith("js/main.js"))
    script = client.get(address)
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    older = client.get("/page/0123456789ab/js/main.js")  # of a replica with another version
    assert (older.status_code, older.headers["cache-control"]) == (200, "no-cache")

    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("{digest}")
    (folder / "a.js").write_text("1")
    before = load(folder).digest
    (folder / "a.js").write_text("2")
    assert load(folder).digest != before
    assert load(folder).files["index.html"].body.decode() == load(folder).digest


def test_who_has_it_is_not_sent_it_again(client) -> None:
    for encoding in ("gzip", "identity"):
        first = client.get("/", headers={"Accept-Encoding": encoding})
        assert first.headers.get("content-encoding", "identity") == encoding
        assert "accept-encoding" in first.headers["vary"].lower()
        known = {"Accept-Encoding": encoding, "If-None-Match": first.headers["etag"]}
        again = client.get("/", headers=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert first.headers["etag"] != client.get("/", headers={"Accept-Encoding": "gzip"}).headers["etag"]


def test_all_of_it_is_small(client) -> None:
    sent = sum(len(asset.packed) for asset in load().files.values())
    assert sent < 80_000


def test_what_is_not_there_is_told_as_everywhere(client) -> None:
    problem(client.get("/page/x/js/nothing.js"), 404)
    problem(client.get("/page/x/..%2f..%2fassets.py"), 404)
    problem(client.post("/"), 405)


def test_it_can_be_switched_off(trained: World) -> None:
    recommender = trained.recommender(page=False)
    with served(build_app(recommender, None, Running())) as client:  # type: ignore[arg-type]
        problem(client.get("/"), 404)
        assert client.get("/healthz").status_code == 200
    recommender.stop()


def test_it_is_no_part_of_the_document(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]
    assert paths["/v1/attacks"]["post"]["x-required-scope"] == "admin"
    assert paths["/v1/users"]["get"]["x-required-scope"] == "read"


def test_ids_of_users_are_for_those_who_may_read(secured) -> None:
    client, reader, _ = secured
    problem(client.get("/v1/users"), 401)
    problem(client.get("/v1/stats/history"), 401)
    sent = {"Authorization": f"Bearer {reader}"}
    assert client.get("/v1/users", params={"limit": 2}, headers=sent).json() == {"users": ["anna", "bert"]}
    past = client.get("/v1/stats/history", headers=sent).json()
    assert len(past["at"]) == len(past["lag"]) == 2


def test_attacks_need_scope_admin_and_come_one_at_a_time(secured) -> None:
    client, reader, operator = secured
    problem(client.post("/v1/attacks", json={}), 401)
    problem(client.post("/v1/attacks", json={}, headers={"X-API-Key": reader}), 403)
    sent = {"X-API-Key": operator}
    begun = client.post("/v1/attacks", json={"kind": "segment", "size": 0.1}, headers=sent)
    assert (begun.status_code, begun.json()) == (202, {"number": 2})
    wrong = problem(client.post("/v1/attacks", json={"size": 0.9}, headers=sent), 422)
    assert wrong["errors"][0]["pointer"] == "/size"
    assert (
        "sending" in problem(client.post("/v1/attacks", json={"items": ["i1"]}, headers=sent), 409)["detail"]
    )


def test_attacks_are_off_unless_the_settings_allow_them(trained: World) -> None:
    recommender = trained.recommender(admin_open=True)
    with served(build_app(recommender, None, Running())) as client:  # type: ignore[arg-type]
        assert client.get("/v1/stats").json()["simulations"] is False
        detail = problem(client.post("/v1/attacks", json={}), 403)["detail"]
        assert "serving.simulations = true" in detail
    recommender.stop()


def test_it_is_installed_with_the_package_and_its_library_is_named() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "serving"
    ]
    installed = {path for pattern in patterns for path in (ROOT / "serving").glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= installed
    [version] = re.findall(r"uPlot \(v([\d.]+)\)", (FOLDER / "vendor/uplot.min.js").read_text()[:200])
    for text in (FOLDER / "vendor/README.md", ROOT / "NOTICE"):
        assert f"uplot` {version}" in text.read_text() or f"uPlot {version}" in text.read_text(), text
    assert "MIT License" in (FOLDER / "vendor/uplot.LICENSE.txt").read_text()


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_words_can_be_read_in_both_themes(theme: str) -> None:
    block = (FOLDER / "css/base.css").read_text().split(theme)[1].split("}")[0]
    colour = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    words = [(ink, ground) for ink in ("ink", "muted") for ground in ("ground", "surface", "sunk")]
    words += [(tone, f"{tone}-soft") for tone in ("good", "warn", "bad", "accent")]
    words += [
        ("accent-ink", "accent"),
        ("accent", "ground"),
        ("good", "surface"),
        ("second", "surface"),
        ("bad", "surface"),
    ]
    for ink, ground in words:
        assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
    for mark in ("accent", "second", "strong-line"):
        assert contrast(colour[mark], colour["surface"]) >= 3, mark
