"""Ports: those that Headrace listens on, and those that Ray and HAProxy hand out; free, or whose."""

import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

import httpx
import psutil

from services.client import base_url
from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings

# Ray Serve's own defaults, which a cluster has; `headrace up` takes other ones for each Ray
_RANGES = {
    "replicas, HTTP": ("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", 30_000),
    "replicas, gRPC": ("RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT", 40_000),
}
_RANGE = 1000
_RAYS = {6379: "Ray's GCS", 8265: "Ray's dashboard"}
_OURS = ("ray", "raylet", "gcs_server", "haproxy", "headrace")  # beginnings of names
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def check_api_port(settings: Settings) -> Iterator[Finding]:
    """Whether the API can listen, or does already."""
    listening = listeners()
    port, what = settings.serving.port, "port of the API"
    if is_free(settings.serving.host, port):
        yield ok(what, f"{port} is free")
    elif _answers(settings):
        yield ok(what, f"{port}: Headrace serves here ({whose(listening, port)})")
    else:
        yield error(
            what,
            f"{port} is taken by {whose(listening, port)}",
            "stop that one, or set serving.port to another",
        )


def check_metrics_port(settings: Settings) -> Iterator[Finding]:
    """Whether the exporter can listen, or does already."""
    metrics, what = settings.metrics, "port of the metrics"
    if not metrics.enabled or metrics.port == 0:
        yield ok(what, "off" if not metrics.enabled else "any free one")
    elif is_free(metrics.host, metrics.port):
        yield ok(what, f"{metrics.port} is free")
    else:
        owners = listeners().get(metrics.port, [])
        seen = f"{metrics.port} is taken by {whose({metrics.port: owners}, metrics.port)}"
        if _ours(owners):
            yield ok(what, seen)
        else:
            yield warning(
                what,
                seen,
                "stop that one, or set metrics.port to another: Headrace runs, but cannot be scraped",
            )


def check_ray_ports() -> Iterator[Finding]:
    """Ports of Ray: another Ray on this machine, and strangers among the ports that replicas get."""
    if "RAY_ADDRESS" in os.environ and not _in_cluster():
        yield error(
            "RAY_ADDRESS",
            f"is set to {os.environ['RAY_ADDRESS']}",
            "unset it for `headrace up`, which starts a Ray of its own and would meet that one",
        )
    listening = listeners()
    for port, name in _RAYS.items():
        if port in listening:
            yield ok(
                f"port {port}", f"{name}: taken by {whose(listening, port)}; `headrace up` takes another"
            )
    for what, (variable, default) in _RANGES.items():
        first = int(os.environ.get(variable, default))
        strangers = {
            port: owners
            for port, owners in listening.items()
            if first <= port <= first + _RANGE and not _ours(owners)
        }
        seen = f"{first} to {first + _RANGE}"
        if strangers:
            named = ", ".join(f"{port} by {whose(listening, port)}" for port in sorted(strangers)[:3])
            yield warning(
                f"ports of {what}",
                f"{seen}: taken {named}",
                "on a cluster Ray hands these out, and calls could reach the stranger: move it, or set "
                f"{variable}; `headrace up` alone takes others",
            )
        else:
            yield ok(f"ports of {what}", f"{seen}: no stranger listens")
    yield from _ephemeral()


def _ephemeral() -> Iterator[Finding]:
    """On a cluster the kernel must not give the replicas' ports to outgoing connections."""
    if not _in_cluster() or not _EPHEMERAL.is_file():
        return
    first, last = map(int, _EPHEMERAL.read_text().split())
    overlap = [what for what, (_, low) in _RANGES.items() if first <= low + _RANGE and low <= last]
    if overlap:
        yield warning(
            "ephemeral ports",
            f"{first} to {last}, which {' and '.join(overlap)} are among",
            "set the sysctl net.ipv4.ip_local_port_range as k8s/base/rayservice.yaml does",
        )
    else:
        yield ok("ephemeral ports", f"{first} to {last}")


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def listeners() -> dict[int, list[str]]:
    """Who listens on which TCP port here: `name (process 12)`; no name where the process is another user's."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS
        return {}
    found: dict[int, list[str]] = {}
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN:
            found.setdefault(connection.laddr.port, []).append(_name(connection.pid))
    return found


def whose(listening: dict[int, list[str]], port: int) -> str:
    """Who listens on a port, in words."""
    return " and ".join(dict.fromkeys(listening.get(port, ()))) or "somebody unknown"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _name(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return f"process {pid}"


def _ours(owners: Collection[str]) -> bool:
    return bool(owners) and all(owner.lower().startswith(_OURS) for owner in owners)


def _answers(settings: Settings) -> bool:
    """Whether what listens there answers as Headrace does."""
    try:
        answer = httpx.get(f"{base_url(settings)}/healthz", timeout=2.0, trust_env=False)
        return "x-request-id" in answer.headers and answer.json()["status"] == "ok"
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False
