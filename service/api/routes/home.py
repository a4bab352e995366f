"""GET / and its assets: the built-in page, and /docs, the reference of the HTTP interface, with its schema.

The page and the reference are files of the package.

All URLs in it are relative, so that it works behind a proxy's path prefix.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from moescope.service.api.params.checked import CheckedRoute
from moescope.service.metrics.text.exposition import takes_gzip

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_DOCUMENTS: Final = frozenset({_TYPES["html"], _TYPES["svg"]})
"""What a browser shows as a page, which a policy is for; scripts and style sheets obey that of their page."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A file's bytes as they are sent, and the tag by which browsers ask for others."""

    body: bytes
    etag: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Asset:
    media_type: str
    plain: _Form
    packed: _Form

    @classmethod
    def read(cls, file: Traversable) -> _Asset:
        body = file.read_bytes()
        tag, kind = hashlib.sha256(body).hexdigest()[:32], _TYPES[file.name.rpartition(".")[2]]
        packed = gzip.compress(body, 9, mtime=0)
        gzipped = _Form(packed, f'"{tag}-gzip"', {"Content-Encoding": "gzip"})
        return cls(kind, _Form(body, f'"{tag}"'), gzipped)


def home_router() -> APIRouter:
    """The page; its files are read once."""
    router = APIRouter(route_class=CheckedRoute)
    page = resources.files("moescope.service") / "page"
    assets = dict(_assets(page, ""))

    @router.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        """The page."""
        return _answer(request, assets["index.html"])

    @router.get("/redoc", include_in_schema=False)
    @router.get("/docs", include_in_schema=False)
    async def reference(request: Request) -> Response:
        """The reference of the HTTP interface; it reads /openapi.json."""
        return _answer(request, assets["reference.html"])

    @router.get("/openapi.json", include_in_schema=False)
    def schema(request: Request) -> Response:
        """The schema of the HTTP interface. Making it, once, takes too long for the event loop."""
        return JSONResponse(request.app.openapi())

    @router.get("/page/{path:path}", include_in_schema=False)
    async def asset(request: Request, path: str) -> Response:
        """A script, a style sheet or an image of the page."""
        if path not in assets:
            raise HTTPException(404)
        return _answer(request, assets[path])

    return router


def _assets(folder: Traversable, prefix: str) -> Iterator[tuple[str, _Asset]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _assets(item, f"{prefix}{item.name}/")
        elif item.name.rpartition(".")[2] in _TYPES:
            yield prefix + item.name, _Asset.read(item)


def _answer(request: Request, asset: _Asset) -> Response:
    form = asset.packed if takes_gzip(request.headers.get("accept-encoding", "")) else asset.plain
    headers = {
        **form.headers,
        "Cache-Control": "no-cache",  # ask each time; unchanged files are answered with 304
        "ETag": form.etag,
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if asset.media_type in _DOCUMENTS:
        headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    if request.headers.get("if-none-match") == form.etag:
        return Response(status_code=304, headers=headers)
    return Response(form.body, media_type=asset.media_type, headers=headers)
