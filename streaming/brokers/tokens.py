"""Bearer tokens for SASL OAUTHBEARER: from a token endpoint, or from a file that something else refreshes.

Sources: OAuth 2.0 client-credentials grant (RFC 6749, section 4.4) with the client's name and secret in HTTP Basic
authentication (section 2.3.1), as Kafka's own clients do it.
"""

import base64
import json
import math
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streaming.errors import BrokerError

if TYPE_CHECKING:
    import httpx

_UNKNOWN_LIFETIME_S = 300.0  # of a token that does not tell, asked for again after that
_REFRESH_EARLY_S = 60.0  # a token must outlive the connection that is being made with it


class TokenSource:
    """A token that is asked for when it is needed, and kept until shortly before it expires. Thread-safe.

    Args:
        ask: brings a token and its lifetime in seconds.
        keep: whether a token is kept; a file is read again each time.
    """

    def __init__(self, ask: Callable[[], tuple[str, float]], *, keep: bool) -> None:
        self._ask, self._keep = ask, keep
        self._lock = threading.Lock()
        self._token = ""
        self._expires_at = -math.inf
        self._lifetime_s = 0.0

    @classmethod
    def from_endpoint(
        cls,
        url: str,
        client_id: str,
        client_secret: Callable[[], str],
        scope: str | None,
        trust: ssl.SSLContext,
        timeout_s: float,
    ) -> "TokenSource":
        """Ask a token endpoint."""
        return cls(lambda: _fetch(url, client_id, client_secret(), scope, trust, timeout_s), keep=True)

    @classmethod
    def from_file(cls, read: Callable[[], str]) -> "TokenSource":
        """Read the token from a file."""

        def ask() -> tuple[str, float]:
            token = read().strip()
            if not token:
                raise BrokerError("kafka.oauth_token_file is empty; expected a token")
            return token, _lifetime_s(token)

        return cls(ask, keep=False)

    def token(self) -> str:
        """A token that is still good.

        Raises:
            BrokerError: there is none to be had.
        """
        with self._lock:
            early_s = min(_REFRESH_EARLY_S, 0.2 * self._lifetime_s)
            if not self._keep or time.time() > self._expires_at - early_s:
                self._token, self._lifetime_s = self._ask()
                self._expires_at = time.time() + self._lifetime_s
            return self._token

    def expires_at(self) -> float:
        """When the token last handed out expires, epoch seconds."""
        return self._expires_at


def _fetch(
    url: str, client_id: str, client_secret: str, scope: str | None, trust: ssl.SSLContext, timeout_s: float
) -> tuple[str, float]:
    import httpx

    form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
    where = f"kafka.oauth_token_url={url!r}"
    try:
        answer = httpx.post(url, data=form, auth=(client_id, client_secret), verify=trust, timeout=timeout_s)
    except httpx.TimeoutException:
        raise BrokerError(f"{where} did not answer within {timeout_s:g} s") from None
    except httpx.HTTPError as error:
        raise BrokerError(f"{where} cannot be reached: {error}") from None
    if answer.status_code in (400, 401, 403):
        raise BrokerError(
            f"{where} refused the client (HTTP {answer.status_code}, {_reason(answer)}); check "
            "kafka.oauth_client_id, oauth_client_secret(_file) and oauth_scope"
        )
    try:
        body = answer.raise_for_status().json()
        return str(body["access_token"]), float(body.get("expires_in", _UNKNOWN_LIFETIME_S))
    except (httpx.HTTPStatusError, ValueError, TypeError, KeyError):
        raise BrokerError(
            f"{where} answered HTTP {answer.status_code} without an access_token; "
            "expected a token endpoint (RFC 6749)"
        ) from None


def _reason(answer: "httpx.Response") -> str:
    """The error code of RFC 6749, section 5.2; no free text, which might repeat what was sent."""
    known = ("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "invalid_scope")
    try:
        code = answer.json().get("error")
    except (ValueError, AttributeError):
        code = None
    return code if code in known else "no error code"


def _lifetime_s(token: str) -> float:
    """Remaining lifetime of a JSON Web Token (RFC 7519, `exp`), unverified: only the broker can judge it."""
    try:
        payload = token.split(".")[1]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(1.0, float(claims["exp"]) - time.time())
    except (IndexError, ValueError, TypeError, KeyError):
        return _UNKNOWN_LIFETIME_S
