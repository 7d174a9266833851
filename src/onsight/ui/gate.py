"""Who may see the page of a server with keys: whoever typed one, known from then on by a cookie."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from html import escape
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from onsight.ui.posts import read_body
from onsight.ui.words import Words

COOKIE = "onsight_page"
_MOST_VISITORS = 100
"""With one key; each name of the keys' file has as many, so that none can send those of another away."""
_MOST_BYTES = 4096
"""Of what a browser makes of the form: a key, as `application/x-www-form-urlencoded`; nothing else holds one."""


class Gate:
    """Remembers which visitor typed which key. `name_of`: what a key that opens the server is called, asked at every
    request, so that a key that is taken back closes the page too."""

    def __init__(self, name_of: Callable[[str], str | None]) -> None:
        self._name_of = name_of
        self._keys: dict[str, str] = {}

    def visitor(self, request: Request) -> str | None:
        """The name of the key that the request's cookie stands for, if it still opens the server."""
        key = self._keys.get(request.cookies.get(COOKIE, ""))
        return None if key is None else self._name_of(key)

    async def answer(self, request: Request, words: Words) -> Response:
        """The form that asks for a key; for a form that was sent, the page or the form again."""
        if request.method != "POST":
            return _form(words)
        sent = await read_body(request, _MOST_BYTES)
        key = parse_qs(sent.decode("latin-1")).get("key", [""])[0]
        if self._name_of(key) is None:
            return _form(words, words("gate.wrong"))
        response = RedirectResponse(request.scope["path"], 303)
        secure = request.url.scheme == "https"
        # `root_path`: where the page is mounted, below whatever prefix the server has.
        path = request.scope["root_path"]
        response.set_cookie(COOKIE, self._remember(key), path=path, httponly=True, samesite="strict", secure=secure)
        return response

    def _remember(self, key: str) -> str:
        visitor = secrets.token_urlsafe(32)
        self._keys[visitor] = key
        known = [one for one, typed in self._keys.items() if typed == key]
        if len(known) > _MOST_VISITORS:
            del self._keys[known[0]]
        return visitor


def _form(words: Words, problem: str = "") -> Response:
    told = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    page = (
        f'<!doctype html><html lang="{words.language}"><meta charset="utf-8">'
        f"<title>{escape(words('page.title'))}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        "<style>:root{color-scheme:light dark}body{font:1rem system-ui;max-width:24rem;margin:15vh auto;padding:0 1rem}"
        "input,button{font:inherit;padding:.5rem;margin:.25rem 0}</style>"
        f"<h1>{escape(words('gate.title'))}</h1>{told}"
        f'<form method="post"><label>{escape(words("gate.label"))} <input name="key" type="password" autofocus required'
        f' autocomplete="current-password"></label> <button>{escape(words("gate.enter"))}</button></form></html>'
    )
    return HTMLResponse(page, 401, {"cache-control": "no-store"})
