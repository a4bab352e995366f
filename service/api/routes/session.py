"""POST /v1/session: signing a browser in. Event streams and links can't carry a token, a cookie can."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.problems import documented
from moescope.service.auth.sessions import COOKIE, SESSION_S, Sessions
from moescope.service.auth.tokens import Token


def session_router(sessions: Sessions) -> APIRouter:
    """The routes that begin and end a session."""
    router = APIRouter(tags=["operation"], route_class=CheckedRoute)

    @router.post("/v1/session", status_code=204, responses=documented(401, 403))
    async def sign_in(request: Request) -> Response:
        """Get a cookie for the bearer token that comes with this request; it is good for GET only.

        Scripts can't read it, other sites' pages can't use it, and it ends with the token or after 12 hours.
        """
        answer = Response(status_code=204)
        token = request.scope.get("moescope.token")
        if isinstance(token, Token):
            answer.set_cookie(
                COOKIE,
                sessions.begin(token),
                max_age=SESSION_S,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return answer

    @router.delete("/v1/session", status_code=204, responses=documented(401, 403))
    async def sign_out() -> Response:
        """Take the cookie away."""
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router
