"""The public keys of an identity provider (JWKS, RFC 7517), kept fresh beside the event loop.

Keys in use are answered from memory. They are fetched again in a thread when they are due, and when a token names an
unknown key, at most once in `refresh_min_s`: naming random keys neither floods the provider nor blocks a replica.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt

from serving.errors import UnauthorizedError, UnavailableError
from serving.security.config import JwtSettings

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_MAX_WAITING = 32  # more than this do not wait for one fetch: they are told to come back


class KeySet:
    """Finds the key a token is signed with.

    Args:
        settings: where the keys are, and how old they may get.
        clock: seconds, never going back.
    """

    def __init__(self, settings: JwtSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._documents: dict[str | None, dict[str, Any]] = {}  # key id → JWK
        self._keys: dict[
            tuple[str | None, str], jwt.PyJWK
        ] = {}  # (key id, algorithm) → key, made when needed
        self._loaded_at = self._tried_at = float("-inf")
        self._failed = False
        self._fetch: asyncio.Task[None] | None = None
        self._waiting = 0

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """Return the key of this id for this algorithm.

        Args:
            key_id: as the token names it; None where it names none, which does if there is one key only.

        Raises:
            UnauthorizedError: there is no such key.
            UnavailableError: it is not known here, and the provider does not answer.
        """
        age_s = self._clock() - self._loaded_at
        if age_s >= self._settings.refresh_s and self._may_fetch():
            self._start_fetch()
        if age_s < self._settings.stale_max_s and (document := self._document(key_id)) is not None:
            return self._key(key_id, algorithm, document)
        await self._fetched()
        stale = self._clock() - self._loaded_at >= self._settings.stale_max_s
        document = None if stale else self._document(key_id)
        if document is not None:
            return self._key(key_id, algorithm, document)
        if self._failed or stale:
            raise UnavailableError(
                "the keys that tokens are signed with cannot be fetched now; the same request may succeed later",
                retry_after_s=self._settings.refresh_min_s,
            )
        raise UnauthorizedError("the token is signed with a key that its issuer does not publish")

    def _document(self, key_id: str | None) -> dict[str, Any] | None:
        if key_id is None and len(self._documents) == 1:
            return next(iter(self._documents.values()))
        return self._documents.get(key_id)

    def _key(self, key_id: str | None, algorithm: str, document: dict[str, Any]) -> jwt.PyJWK:
        key = self._keys.get((key_id, algorithm))
        if key is None:
            if document.get("alg", algorithm) != algorithm:
                raise UnauthorizedError("the token's algorithm is not the one its key is published for")
            try:
                key = jwt.PyJWK(document, algorithm)
            except jwt.PyJWTError:
                raise UnauthorizedError("the token's algorithm does not fit its key") from None
            self._keys[key_id, algorithm] = key
        return key

    def _may_fetch(self) -> bool:
        return self._fetch is None and self._clock() - self._tried_at >= self._settings.refresh_min_s

    def _start_fetch(self) -> None:
        self._tried_at = self._clock()
        self._fetch = asyncio.create_task(self._load())

    async def _fetched(self) -> None:
        """Wait for a fetch, one for all who wait; return at once where none may be made."""
        if self._may_fetch():
            self._start_fetch()
        if self._fetch is None:
            return
        if self._waiting >= _MAX_WAITING:
            raise UnavailableError(
                "the keys that tokens are signed with are being fetched", retry_after_s=1.0
            )
        self._waiting += 1
        try:
            await asyncio.shield(self._fetch)
        finally:
            self._waiting -= 1

    async def _load(self) -> None:
        try:
            documents = await asyncio.to_thread(self._read)
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            self._failed = True
            where = self._settings.jwks_url or self._settings.jwks_file
            logger.warning(
                "the keys of the identity provider could not be read from %s: %s: %s",
                where,
                type(error).__name__,
                error,
            )
        else:
            self._documents, self._keys = documents, {}
            self._loaded_at, self._failed = self._clock(), False
        finally:
            self._fetch = None

    def _read(self) -> dict[str | None, dict[str, Any]]:
        """Read the document and keep what can verify signatures.

        Raises:
            OSError, ValueError, httpx.HTTPError: it cannot be read, or holds no such key.
        """
        settings = self._settings
        content = _get(settings.jwks_url, settings.timeout_s) if settings.jwks_url else _file(settings)
        document = json.loads(content)
        keys = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(keys, list):
            raise ValueError('expected a JSON object with a list "keys"')
        found = {key.get("kid"): key for key in keys if isinstance(key, dict) and _verifies(key)}
        if not found:
            raise ValueError("expected public keys for signatures (RSA, EC or OKP), found none")
        return found


def _verifies(key: dict[str, Any]) -> bool:
    """Whether a JWK is a public key for signatures."""
    named = key.get("kid") is None or isinstance(key["kid"], str)
    return named and key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"


def _get(url: str, timeout_s: float) -> bytes:
    with httpx.stream("GET", url, timeout=timeout_s, follow_redirects=False) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"expected status 200, got {answer.status_code}")
        content = bytearray()
        for part in answer.iter_bytes():
            content += part
            if len(content) > _MAX_BYTES:
                raise ValueError(f"expected at most {_MAX_BYTES} bytes")
        return bytes(content)


def _file(settings: JwtSettings) -> bytes:
    assert settings.jwks_file is not None
    return settings.jwks_file.read_bytes()
