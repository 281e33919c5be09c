"""Finds out who is calling, and refuses who may not or asks too often."""

import ipaddress
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from pydantic import SecretStr

from serving.errors import ForbiddenError, ServingError, TooManyRequestsError, UnauthorizedError
from serving.security.caller import Caller, with_implied
from serving.security.config import Scope, SecuritySettings
from serving.security.jwks import KeySet
from serving.security.keys import KeyRing
from serving.security.rate import Buckets
from serving.security.tokens import Tokens

_SEND_ONE = "send an API key as X-API-Key or Authorization: Bearer, or a token as Authorization: Bearer"


class Guard:
    """Knows all credentials, and how often each caller has asked. Belongs to one event loop.

    Args:
        settings: keys, tokens, rates.
        host: the address the API listens on.
        admin_api_key: the setting serving.admin_api_key, a key with scope admin.
        admin_open: the setting serving.admin_open: where nobody can hold scope admin, everybody does.
        clock: seconds, never going back.

    Raises:
        ValueError: see `SecuritySettings.anonymous_on`.
    """

    def __init__(
        self,
        settings: SecuritySettings,
        host: str = "127.0.0.1",
        admin_api_key: SecretStr | None = None,
        admin_open: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._has_credentials = bool(settings.keys) or admin_api_key is not None or settings.jwt.enabled
        self._has_admins = (
            admin_api_key is not None
            or settings.jwt.enabled
            or any("admin" in key.scopes for key in settings.keys)
        )
        self._ring = KeyRing(
            settings.keys, None if admin_api_key is None else admin_api_key.get_secret_value()
        )
        self._tokens = Tokens(settings.jwt, KeySet(settings.jwt, clock)) if settings.jwt.enabled else None
        scopes = settings.anonymous_on(host)
        if admin_open and not self._has_admins:
            scopes = scopes | {"admin"}
        self.anonymous = Caller("", "anonymous", with_implied(scopes))
        self._by_key = Buckets(len(settings.keys) + 1, clock)
        self._by_subject = Buckets(settings.rates_kept, clock)
        self._by_address = Buckets(settings.rates_kept, clock)

    async def admit(self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]) -> Caller:
        """Return who sent a request, and count it against that caller's rate.

        Args:
            scope: of the ASGI connection.
            headers: of the request, names in lower case; the last one where a name occurs twice.

        Raises:
            UnauthorizedError: the credentials are wrong, or missing where nothing is allowed without.
            ForbiddenError: nothing is allowed without credentials, and there are none.
            TooManyRequestsError: the caller asks too often.
            UnavailableError: the credentials cannot be judged now.
        """
        caller = self.anonymous
        if self._has_credentials:
            try:
                caller = await self._identify(headers)
            except UnauthorizedError:
                self._count_address(scope, headers)  # who guesses is slowed down
                raise
        if caller.kind == "anonymous":
            self._count_address(scope, headers)
            if not caller.scopes:
                raise self.refusal(caller, "read")
        return caller

    def require(self, caller: Caller, scope: Scope) -> None:
        """Refuse a caller who lacks a scope.

        Raises:
            UnauthorizedError: credentials would help.
            ForbiddenError: these credentials do not allow it, or it is off.
        """
        if scope not in caller.scopes:
            raise self.refusal(caller, scope)

    def refusal(self, caller: Caller, scope: Scope) -> ServingError:
        """Why a caller without a scope is refused, and what to do about it."""
        if caller.kind != "anonymous":
            return ForbiddenError(
                f"this needs scope {scope}, and the {caller.kind} that was sent has not got it"
            )
        if scope == "admin" and not self._has_admins:
            return ForbiddenError(
                "promoting models, erasing users and scaling over HTTP are off: set serving.admin_api_key "
                "(16 characters or more) and send it as X-API-Key, or make a key by `headrace keys new --scopes "
                "admin`, or on a laptop set serving.admin_open = true"
            )
        if not self._has_credentials:
            return ForbiddenError(
                f"this needs scope {scope}, which nobody has: add it to serving.security.anonymous_scopes, "
                f"or make a key by `headrace keys new --scopes {scope}`"
            )
        return UnauthorizedError(f"this needs scope {scope}: {_SEND_ONE}")

    async def _identify(self, headers: Mapping[bytes, bytes]) -> Caller:
        sent = headers.get(b"x-api-key")
        if sent is None:
            scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":  # other schemes are between the client and a gateway
                return self.anonymous
            sent = sent.strip()
            if self._tokens is not None and sent.count(b".") == 2:
                caller = await self._tokens.verify(sent.decode("latin-1"))
                jwt = self._settings.jwt
                _take(self._by_subject, caller.id, jwt.rate_per_s, jwt.burst)
                return caller
        key = self._ring.find(sent)
        if key is None:
            raise UnauthorizedError(f"the key that was sent is not known: {_SEND_ONE}")
        _take(self._by_key, key.id, key.rate_per_s, key.burst)
        return Caller(key.id, "key", with_implied(frozenset(key.scopes)))

    def _count_address(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> None:
        rate_per_s = self._settings.rate_per_s
        if rate_per_s is not None:
            address = client_address(scope, headers, self._settings.forwarded_hops)
            _take(self._by_address, address, rate_per_s, self._settings.burst)


def client_address(scope: Mapping[str, Any], headers: Mapping[bytes, bytes], forwarded_hops: int) -> str:
    """The address that a request comes from; of IPv6 the network (/64), as one client has all of it.

    Args:
        forwarded_hops: proxies that are trusted. Each appends the address it was called from to X-Forwarded-For, so
            that the client's stands there that many places from the right; what is further left is anybody's claim.
    """
    client = scope.get("client")
    address: str = client[0] if client else ""
    if forwarded_hops and (header := headers.get(b"x-forwarded-for")):
        places = header.decode("latin-1").split(",")
        address = places[max(0, len(places) - forwarded_hops)].strip()
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _take(buckets: Buckets, caller: str, rate_per_s: float | None, burst: int | None) -> None:
    """Count a request.

    Raises:
        TooManyRequestsError: it is one too many.
    """
    if rate_per_s is None:
        return
    wait_s = buckets.take(caller, rate_per_s, burst)
    if wait_s > 0:
        raise TooManyRequestsError(
            f"expected at most {rate_per_s:g} requests per second, got more; try again in {wait_s:.1f} s",
            wait_s,
        )
