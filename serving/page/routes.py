"""The routes of the page: public, outside of the OpenAPI document, nothing from elsewhere.

The page is one for everybody and holds no data; what it shows it asks the API for, with the caller's key.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Response

from serving.errors import NotFoundError
from serving.page import assets
from serving.pages import known
from serving.security.routes import PUBLIC, GuardedRoute

# only what this server gives, and no script or style within the page itself
POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)
_REVALIDATE = "no-cache"
_FOREVER = "public, max-age=31536000, immutable"

Wanted = Annotated[str, Header(include_in_schema=False)]


def page_routes() -> APIRouter:
    """`GET /` and what it loads."""
    router = APIRouter(route_class=GuardedRoute, include_in_schema=False)
    found = assets.load()

    def sent(asset: assets.Asset, cache: str, encodings: str, tags: str) -> Response:
        packed = "gzip" in encodings
        tag = asset.packed_tag if packed else asset.tag
        headers = {
            "ETag": tag,
            "Cache-Control": cache,
            "Content-Security-Policy": POLICY,
            "Vary": "Accept-Encoding",
        }
        if known(tags, tag):
            return Response(status_code=304, headers=headers)
        if packed:
            headers["Content-Encoding"] = "gzip"
        return Response(asset.packed if packed else asset.body, 200, headers, asset.media_type)

    @router.api_route(assets.PAGE, methods=["GET", "HEAD"], openapi_extra=PUBLIC)
    async def page(accept_encoding: Wanted = "", if_none_match: Wanted = "") -> Response:
        return sent(found.files[assets.INDEX], _REVALIDATE, accept_encoding, if_none_match)

    @router.api_route(
        f"{assets.BELOW}/{{digest}}/{{name:path}}", methods=["GET", "HEAD"], openapi_extra=PUBLIC
    )
    async def asset(
        digest: str, name: str, accept_encoding: Wanted = "", if_none_match: Wanted = ""
    ) -> Response:
        one = found.files.get(name)
        if one is None:
            raise NotFoundError(f"the page has no file {name[:200]!r}")
        # while replicas are replaced, a page may ask one of another version
        cache = _FOREVER if digest == found.digest else _REVALIDATE
        return sent(one, cache, accept_encoding, if_none_match)

    return router
