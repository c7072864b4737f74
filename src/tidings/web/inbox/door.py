"""The door of the inbox: which user a request comes from, and whether the page that sends it may.

A token comes in the `Authorization` header, in the cookie `tidings_inbox`, or, for a WebSocket, as a subprotocol beside
`tidings.inbox`, since pages can set no other header there. Never in a URL: those are logged and shared.

A browser adds the cookie to whatever any page asks for. So with the cookie the page counts too: it must be of the same
origin as the API, or of an origin that the project lists (`PUT /api/v1/project/settings`). With a token of its own a
page has shown that it was given one, and CORS (https://fetch.spec.whatwg.org/#http-cors-protocol) keeps others out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.requests import cookie_parser

from tidings.directory.access import Access
from tidings.directory.tokens import NONE_GIVEN, PREFIX, Tokens, UserCaller
from tidings.errors import Forbidden, Unauthenticated

PATH: Final = "/api/v1/inbox"
COOKIE: Final = "tidings_inbox"
SUBPROTOCOL: Final = "tidings.inbox"

_FOREIGN_PAGE: Final = (
    "Pages of this origin may not use the inbox with its cookie; list the origin in the project's settings."
)
_KEY: Final = "This is a user's own inbox and takes a user token; with an API key, ask /api/v1/users/{id}/inbox."


class of_user:
    """The dependency that a request comes from a user. The edge has authenticated them at the door."""

    def __call__(self, request: Request) -> UserCaller:
        user: UserCaller = request.state.user
        return user


AsUser = Annotated[UserCaller, Depends(of_user())]


def is_inbox(path: str) -> bool:
    """Whether a path leads through this door."""
    return path == PATH or path.startswith(f"{PATH}/")


class Door:
    """Lets users in."""

    def __init__(self, tokens: Tokens, access: Access) -> None:
        self._tokens = tokens
        self._access = access

    async def enter(self, headers: Mapping[bytes, bytes], extra: list[tuple[bytes, bytes]]) -> UserCaller:
        """Whom a request comes from. What CORS has to say is put into `extra`, for an answer of refusal as well.

        Raises:
            Unauthenticated: no token, or none that holds.
            Forbidden: an API key, or the cookie from a page that may not use it.
        """
        cors = await self._allow(headers)
        extra += cors
        user = await self.authenticate(headers)
        if headers.get(b"origin", b"").decode("latin-1") not in user.origins:
            for pair in cors[1:]:  # some other project lists this origin, the user's does not
                extra.remove(pair)
        return user

    async def preflight(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers that answer a preflight request, which bears no token: whether any project lists the origin."""
        cors = await self._allow(headers)
        if len(cors) > 1:
            cors += [
                (b"access-control-allow-methods", b"GET, POST, PATCH"),
                (b"access-control-allow-headers", b"authorization, content-type, last-event-id, traceparent"),
                (b"access-control-max-age", b"600"),
            ]
        return cors

    async def _allow(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        vary = (b"vary", b"origin")
        origin = headers.get(b"origin")
        if origin is None or not await self._tokens.knows_origin(origin.decode("latin-1")):
            return [vary]
        return [
            vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", b"retry-after, traceparent"),
        ]

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> UserCaller:
        """The user of the token in the header, else of the one in the cookie; see :meth:`enter`."""
        if (authorization := headers.get(b"authorization")) is not None:
            text = authorization.decode("latin-1")
            scheme, _, credentials = text.partition(" ")
            if scheme.lower() == "bearer" and credentials.strip().startswith(PREFIX):
                return await self._tokens.authenticate(credentials.strip())
            await self._access.authenticate(text)
            raise Forbidden(_KEY)
        token = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
        if not token:
            raise Unauthenticated(NONE_GIVEN)
        user = await self._tokens.authenticate(token)
        if b"origin" not in headers and headers.get(b"sec-fetch-site") == b"same-origin":
            return user  # browsers do not name the origin of a page that reads from its own
        self._check_page(headers, user)
        return user

    async def authenticate_socket(self, headers: Mapping[bytes, bytes], subprotocols: Sequence[str]) -> UserCaller:
        """The user who opens a WebSocket. CORS does not apply there, so the page is looked at with any token.

        Raises:
            Unauthenticated: no token, or none that holds.
            Forbidden: an API key, or a page that may not.
        """
        token = next((text for text in subprotocols if text.startswith(PREFIX)), None)
        user = await (self.authenticate(headers) if token is None else self._tokens.authenticate(token))
        if b"origin" in headers:
            self._check_page(headers, user)
        return user

    def _check_page(self, headers: Mapping[bytes, bytes], user: UserCaller) -> None:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin in user.origins:
            return
        # Behind a proxy we do not know our own scheme; the browser does, and says so.
        same = _host(origin) == headers.get(b"host", b"").decode("latin-1").lower()
        if not (same and headers.get(b"sec-fetch-site", b"same-origin") == b"same-origin"):
            raise Forbidden(_FOREIGN_PAGE)


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
