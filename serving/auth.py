"""Who may change what is served."""

import hmac

from fastapi.security import APIKeyHeader

from serving.config import ServingSettings
from serving.errors import ForbiddenError, UnauthorizedError

API_KEY = APIKeyHeader(
    name="X-API-Key",
    auto_error=False,
    description="the setting serving.admin_api_key; needed to promote models, to erase users and to scale",
)


def require_admin(settings: ServingSettings, key: str | None) -> None:
    """Let pass who holds the admin key.

    Raises:
        ForbiddenError: no key is set, and the door is not declared open.
        UnauthorizedError: the key is missing or wrong.
    """
    if settings.admin_api_key is None:
        if settings.admin_open:
            return
        raise ForbiddenError(
            "promoting models, erasing users and scaling over HTTP are off: "
            "set serving.admin_api_key (16 characters or more) and send it as X-API-Key, or on a laptop "
            "set serving.admin_open = true"
        )
    # compared in constant time, as bytes: the time taken tells nothing about where they differ
    if key is None or not hmac.compare_digest(
        key.encode(), settings.admin_api_key.get_secret_value().encode()
    ):
        raise UnauthorizedError("expected header X-API-Key with the value of serving.admin_api_key")
