"""Settings of who may call the API. Every number has its unit in its name or its description."""

import ipaddress
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from streaming.config import Section

Scope = Literal["read", "write", "admin"]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # asymmetric ones only: whoever can verify a token must not be able to make one

OPEN_PATHS = ("/healthz", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json", "/static-offline-docs")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class ApiKey(Section):
    """A key that callers send; `headrace keys new` makes one."""

    id: str = Field(
        pattern="^[a-z0-9-]{1,32}$", description="names the key, also within it: hr_<id>_<secret>"
    )
    hash: str = Field(
        pattern="^sha256:[0-9a-f]{64}$", description="of the whole key; the key itself is nowhere"
    )
    scopes: tuple[Scope, ...] = Field(min_length=1, description="read, write, admin; admin may do everything")
    rate_per_s: float | None = Field(
        None, gt=0, description="requests per second and replica; none: no limit"
    )
    burst: int | None = Field(None, ge=1, description="requests at once; as many as rate_per_s if absent")


class JwtSettings(Section):
    """Tokens of an identity provider; off while neither jwks_url nor jwks_file is set."""

    jwks_url: str | None = Field(None, description="where the provider publishes its keys, https")
    jwks_file: Path | None = Field(None, description="file with the keys instead; read again when it is due")
    issuer: str | None = Field(None, min_length=1, description="claim `iss` must be this")
    audience: str | None = Field(None, min_length=1, description="claim `aud` must be or hold this")
    algorithms: tuple[Algorithm, ...] = Field(("RS256", "ES256"), min_length=1, description="accepted ones")
    scope_claim: str = Field(
        "scope", min_length=1, description="claim with the scopes, text or list; a.b looks for b within a"
    )
    scope_prefix: str = Field(
        "", description='what stands before read, write, admin in the claim, e.g. "headrace:"'
    )
    leeway_s: float = Field(30.0, ge=0, le=300, description="how far the clocks may differ, s")
    refresh_s: float = Field(300.0, gt=0, description="keys are fetched again after this, s")
    refresh_min_s: float = Field(
        10.0, gt=0, description="and not sooner than this, however many unknown keys are named, s"
    )
    stale_max_s: float = Field(
        86400.0, gt=0, description="keys that could not be fetched again are used so long, s"
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="longest wait for the provider, s")
    rate_per_s: float | None = Field(
        None, gt=0, description="requests per second, subject and replica; none: no limit"
    )
    burst: int | None = Field(None, ge=1, description="requests at once; as many as rate_per_s if absent")

    @property
    def enabled(self) -> bool:
        """Whether tokens are accepted at all."""
        return self.jwks_url is not None or self.jwks_file is not None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.enabled:
            if self.issuer or self.audience:
                raise ValueError("issuer or audience is set, but neither jwks_url nor jwks_file; set one")
            return self
        if self.jwks_url is not None and self.jwks_file is not None:
            raise ValueError("expected one of jwks_url and jwks_file, got both; remove one")
        for name in ("issuer", "audience"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing: without it any token of the provider would be accepted")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            local = url.scheme == "http" and is_loopback(url.hostname or "")
            if not url.hostname or not (url.scheme == "https" or local):
                raise ValueError("jwks_url: expected https://… (http:// on loopback only)")
        return self


class SecuritySettings(Section):
    """Who may call the API, how often, and how large a request may be. All limits are per replica."""

    anonymous_scopes: tuple[Scope, ...] | None = Field(
        None,
        description="what callers without credentials may do; absent: nothing where keys or jwt are set, "
        "read and write on loopback, and any other host refuses to start",
    )
    rate_per_s: float | None = Field(
        None, gt=0, description="requests per second of one address without credentials; none: no limit"
    )
    burst: int | None = Field(None, ge=1, description="requests at once; as many as rate_per_s if absent")
    forwarded_hops: int = Field(
        0, ge=0, le=8, description="trusted proxies in front that append to X-Forwarded-For; 0: not looked at"
    )
    rates_kept: int = Field(65536, ge=16, le=10_000_000, description="addresses whose rate is remembered")
    open_paths: tuple[str, ...] = Field(
        OPEN_PATHS, description="paths, with what is below, free of credentials and of limits"
    )
    body_max_bytes: int = Field(2 << 20, ge=1024, le=1 << 30, description="largest request body, bytes")
    in_flight_max: int = Field(
        200,
        ge=1,
        description="requests a replica works on at once, more are answered 503; below replicas.max_ongoing_requests",
    )
    gzip_min_bytes: int | None = Field(
        2048, ge=0, description="answers from this size on are compressed, bytes; none: never"
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description='origins whose pages may call from a browser, e.g. "https://shop.example"; none: CORS off',
    )
    keys: tuple[ApiKey, ...] = Field((), description="API keys; `headrace keys new` prints an entry")
    jwt: JwtSettings = JwtSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [key.id for key in self.keys]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"keys: expected different ids, got {', '.join(twice)} more than once")
        for path in self.open_paths:
            if not path.startswith("/") or path == "/" or path.startswith("/v1"):
                raise ValueError(
                    f"open_paths: expected paths such as /metrics, outside /v1, got {path!r}; "
                    "what callers without credentials may do under /v1 is anonymous_scopes"
                )
        for origin in self.cors_origins:
            url = urlsplit(origin)
            if origin != "*" and (
                url.scheme not in ("http", "https") or origin != f"{url.scheme}://{url.netloc}"
            ):
                raise ValueError(f'cors_origins: expected "https://host[:port]" or "*", got {origin!r}')
        return self

    def anonymous_on(self, host: str) -> frozenset[Scope]:
        """What callers without credentials may do when the API listens on `host`.

        Raises:
            ValueError: others can reach this host, and nothing says what they may do.
        """
        if self.anonymous_scopes is not None:
            return frozenset(self.anonymous_scopes)
        if self.keys or self.jwt.enabled:
            return frozenset()
        if is_loopback(host):
            return frozenset(("read", "write"))
        raise ValueError(
            f"host={host} can be reached by others, and nothing says what callers without credentials may do; set "
            'security.anonymous_scopes, e.g. ["read", "write"] behind a gateway of yours, or make keys with '
            "`headrace keys new` for security.keys"
        )
