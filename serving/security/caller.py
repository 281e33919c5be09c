"""Who is calling, and what that one may do."""

from dataclasses import dataclass
from typing import Any, Literal

from serving.security.config import Scope

ALL: frozenset[Scope] = frozenset(("read", "write", "admin"))

CALLER = "headrace.caller"  # where the ASGI scope of a request holds its caller


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    Args:
        id: of the key, or the subject of the token; empty for anonymous callers.
        kind: by which credentials.
        scopes: all that is allowed, implied ones too.
    """

    id: str
    kind: Literal["anonymous", "key", "token"]
    scopes: frozenset[Scope]


def with_implied(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Add what a scope includes: admin may do everything."""
    return ALL if "admin" in scopes else scopes


def caller_of(scope: Any) -> Caller:
    """The caller of an ASGI request that came through the envelope."""
    caller = scope[CALLER]
    assert isinstance(caller, Caller)
    return caller
