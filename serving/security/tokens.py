"""JSON Web Tokens of an identity provider (RFC 7519), verified with its published keys."""

from collections.abc import Mapping
from typing import Any, get_args

import jwt

from serving.errors import UnauthorizedError
from serving.security.caller import Caller, with_implied
from serving.security.config import JwtSettings, Scope
from serving.security.jwks import KeySet

_MAX_LENGTH = 8192  # characters; a header larger than this is not a token

_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired (claim `exp`)",
    jwt.ImmatureSignatureError: "it is not valid yet (claims `nbf`, `iat`)",
    jwt.InvalidAudienceError: "it was made for somebody else (claim `aud`)",
    jwt.InvalidIssuerError: "it was made by somebody else (claim `iss`)",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its algorithm is not accepted",
    jwt.InvalidKeyError: "its key is too short, or not one for its algorithm",
    jwt.MissingRequiredClaimError: "it lacks one of the claims `exp`, `iss` and `aud`",
}


class Tokens:
    """Verifies tokens.

    Args:
        settings: what a token must say.
        keys: finds the keys they are signed with.
    """

    def __init__(self, settings: JwtSettings, keys: KeySet) -> None:
        self._settings, self._keys = settings, keys
        self._jwt = jwt.PyJWT(options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True})

    async def verify(self, token: str) -> Caller:
        """Return who holds this token. What is said of a refused one tells nothing of its contents.

        Raises:
            UnauthorizedError: the token is not acceptable.
            UnavailableError: its key cannot be fetched now.
        """
        settings = self._settings
        try:
            if len(token) > _MAX_LENGTH:
                raise jwt.DecodeError
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in settings.algorithms:
                raise jwt.InvalidAlgorithmError
            key = await self._keys.find(key_id, algorithm)
            claims = self._jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
            )
        except jwt.PyJWTError as error:
            reason = next(
                (text for kind, text in _REASONS.items() if isinstance(error, kind)), "it is malformed"
            )
            raise UnauthorizedError(f"the token is refused: {reason}") from None
        subject = next((claims[name] for name in ("sub", "client_id", "azp") if name in claims), "")
        return Caller(str(subject), "token", self._scopes(claims))

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        value = _claim(claims, self._settings.scope_claim)
        names = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
        prefix = self._settings.scope_prefix
        return with_implied(frozenset(scope for scope in get_args(Scope) if prefix + scope in names))


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name or, where there is none of this name, by its path."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
