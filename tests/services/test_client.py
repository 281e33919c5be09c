"""Commands that ask the running API show it a key: the one they are given, or else that of the settings."""

import http.server
import json
import threading

import pytest
from typer.testing import CliRunner

from services.cli import app

LAYOUT = {"layout": {"shard_actors": 1, "ingestors": 1, "version": 1, "settled": True}}
KEY, ADMIN = "hr_ops_given", "sixteen-characters-at-least"


@pytest.fixture
def api():
    """Base URL of a server with a settled pipeline that lets KEY and ADMIN in, and which keys it saw."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["X-API-Key"])
            allowed = seen[-1] in (KEY, ADMIN)
            body = LAYOUT | LAYOUT["layout"] if allowed else {"detail": "no key"}
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def scale(url, settings, *arguments, **env):
    command = ["scale", "--shards", "1", "--url", url, "--settings", str(settings), *arguments]
    return CliRunner(env=env).invoke(app, command)


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "headrace.toml"
    file.write_text("")
    return file


@pytest.mark.parametrize(
    ("arguments", "env"), [(["--key", KEY], {}), ([], {"HEADRACE_API_KEY": KEY})], ids=["option", "variable"]
)
def test_a_key_that_is_given_goes_before_that_of_the_settings(api, settings, arguments, env):
    url, seen = api
    settings.write_text(f'[serving]\nadmin_api_key = "{ADMIN}"\n')
    result = scale(url, settings, *arguments, **env)
    assert result.exit_code == 0, result.output
    assert set(seen) == {KEY}


def test_the_settings_key_serves_where_none_is_given(api, settings):
    settings.write_text(f'[serving]\nadmin_api_key = "{ADMIN}"\n')
    assert scale(api[0], settings).exit_code == 0
    assert set(api[1]) == {ADMIN}


def test_without_a_key_the_refusal_is_told(api, settings):
    result = scale(api[0], settings)
    assert result.exit_code == 2
    assert "401 no key" in result.output
    assert set(api[1]) == {None}
