"""A small server that answers like the API, with faults on request."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class FakeApi:
    """What to answer, and what was asked."""

    items: list[str] = field(default_factory=list)
    kind: str = "trained"
    status: int = 200
    delay_s: float = 0.0
    partition: int | None = None
    offset: int | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    versions: list[dict[str, Any]] = field(default_factory=list)
    on_recommend: Callable[[str], None] = lambda _: None
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        if path == "/v1/stats":
            return self.stats
        if path == "/v1/models":
            return {"current": None, "versions": self.versions}
        user = unquote(path.rsplit("/", 1)[1])
        self.asked.append((user, query))
        self.on_recommend(user)
        return {
            "user_id": user,
            "items": [{"item_id": item, "title": "", "score": 1.0, "reasons": []} for item in self.items],
            "model": {"version": "v1", "age_s": 1.0, "kind": self.kind},
            "state": {
                "known": True,
                "events": 1,
                "partition": self.partition,
                "offset": self.offset,
                "age_ms": 1.0,
            },
        }


@contextmanager
def serve(api: FakeApi) -> Iterator[FakeApi]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            time.sleep(api.delay_s)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            body = json.dumps(api.answer(parts.path, query)).encode()
            self.send_response(api.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # the client gave up waiting
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        api.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield api
        finally:
            server.shutdown()
            thread.join(5)
