"""What else is reached: the store of snapshots, a schema registry, an identity provider, a collector of traces."""

import time
import uuid
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import httpx

from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings
from streaming.backup.remote import Remote
from streaming.errors import SnapshotError

_TIMEOUT_S = 5.0


def check_snapshots(settings: Settings) -> Iterator[Finding]:
    """Whether snapshots can be written, listed and removed; a small file goes there and away again."""
    configured, what = settings.streaming.snapshots, "snapshots"
    if configured.url is None:
        yield ok(what, "off: a lost data_dir is read again from Kafka, as far as its retention goes")
        return
    try:
        remote = Remote(configured.url, configured.options)
        name = f"{remote.root}/.headrace-doctor-{uuid.uuid4().hex[:8]}"
        with remote.reaching("write"):
            remote.make_folder(remote.root)
            remote.fs.pipe_file(name, b"headrace doctor")
        with remote.reaching("list"):
            listed = name.rsplit("/", 1)[1] in remote.names(remote.root)
        with remote.reaching("remove"):
            remote.fs.rm_file(name)
    except SnapshotError as refused:
        yield error(
            what,
            str(refused),
            "see streaming.snapshots.url and options, the way there, and the credentials (AWS_… in the environment)",
        )
        return
    if listed:
        yield ok(what, f"{remote.url} can be written, listed and pruned")
    else:
        yield error(
            what, f"{remote.url} does not list what was just written", "grant the user the right to list"
        )


def check_registries(settings: Settings) -> Iterator[Finding]:
    """Schema registries of Avro topics."""
    for source in settings.streaming.sources:
        avro = source.avro
        if source.format != "avro" or avro.registry_url is None:
            continue
        password = avro.registry_password.get_secret_value() if avro.registry_password else ""
        auth = (avro.registry_username, password) if avro.registry_username else None
        yield _reached(
            f"schema registry of {source.topic}",
            f"{avro.registry_url.rstrip('/')}/subjects",
            auth,
            "check avro.registry_url, registry_username and registry_password of this source",
        )


def check_identity_provider(settings: Settings) -> Iterator[Finding]:
    """The public keys that tokens are checked with."""
    jwt = settings.serving.security.jwt
    if jwt.jwks_file is not None and not jwt.jwks_file.is_file():
        yield error("jwks", f"no file {jwt.jwks_file}", "mount it, or set serving.security.jwt.jwks_url")
    if jwt.jwks_url is not None:
        yield _reached("jwks", jwt.jwks_url, None, "check serving.security.jwt.jwks_url and the way there")


def check_collector(settings: Settings) -> Iterator[Finding]:
    """Where traces go; it is told of no spans."""
    endpoint = settings.streaming.traces.endpoint
    if endpoint is not None:
        advice = "check streaming.traces.endpoint (OTLP over HTTP ends in /v1/traces) and the way there"
        yield _reached("traces", endpoint, None, advice, told="application/x-protobuf")


def _reached(
    what: str, url: str, auth: tuple[str, str] | None, advice: str, *, told: str | None = None
) -> Finding:
    """Ask, or tell nothing of the content type `told`."""
    shown = httpx.URL(url).copy_with(userinfo=b"")
    method, headers = ("GET", {}) if told is None else ("POST", {"content-type": told})
    try:
        answer = httpx.request(method, url, auth=auth, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as refused:
        return error(what, f"{shown}: {refused or type(refused).__name__}", advice)
    if answer.is_error:
        return error(what, f"{shown}: {answer.status_code}", advice)
    ahead_s = _ahead_s(answer)
    if ahead_s is not None and abs(ahead_s) > 5:
        return warning(
            what, f"{shown} answers; its clock is {ahead_s:+.0f} s from ours", "let both follow NTP"
        )
    return ok(what, f"{shown} answers")


def _ahead_s(answer: httpx.Response) -> float | None:
    """How far the server's clock is ahead of ours, by its Date header (whole seconds)."""
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
    except (LookupError, ValueError):
        return None
