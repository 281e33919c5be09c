"""The start of HAProxy: a request is read to its end before it is passed on."""

import subprocess
import sys
from pathlib import Path

from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serving.haproxy import COMMAND, buffered

CONFIG = """defaults
    mode http
    option httplog
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend here
    bind 127.0.0.1:1
"""


def test_serve_still_writes_what_the_option_is_put_behind():
    assert "option http-buffer-request" in buffered(HAPROXY_CONFIG_TEMPLATE)


def test_the_option_is_put_in_once():
    once = buffered(CONFIG)
    assert once.count("http-buffer-request") == 1
    assert buffered(once) == once


def test_haproxy_takes_the_mended_file_and_its_own_arguments(tmp_path, monkeypatch):
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIG)
    command = Path(sys.executable).with_name(COMMAND)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(command))  # as Serve's processes have it
    done = subprocess.run(
        [command, "-f", path, "-c", "-V"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout + done.stderr
    assert "option http-buffer-request" in path.read_text()
