"""A client of a running server, or of one in this process without a port; and how either is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from onsight.config import Settings

Result = Mapping[str, object]
"""The server's answer, or `error`."""

_TRIES = 30
_AT_ONCE_ELSEWHERE = 16


@asynccontextmanager
async def connected(settings: Settings, url: str | None) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """A client of the server at `url`, or of one that this process loads; and how many requests keep it busy."""
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    timeout = httpx.Timeout(10, read=None, pool=None)
    if url is not None:
        address = url.rstrip("/").removesuffix("/v1")
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=timeout, limits=limits) as client:
            yield client, _AT_ONCE_ELSEWHERE
        return
    from onsight.serve import assemble, loading_bar

    with loading_bar() as progress:
        site = assemble(settings, progress)
        try:
            await site.start()
            transport = httpx.ASGITransport(site.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
                yield client, min(2 * settings.max_num_seqs, settings.max_queue)
        finally:
            await site.close()


async def post(
    client: httpx.AsyncClient,
    path: str,
    *,
    json: Mapping[str, object] | None = None,
    data: Mapping[str, str] | None = None,
    files: Mapping[str, tuple[str | None, bytes | str]] | None = None,
) -> Result:
    """The server's answer, or `error`; a busy server is asked again when it says."""
    try:
        for _ in range(_TRIES):
            response = await client.post(path, json=json, data=data, files=files)
            if response.status_code not in (429, 503):
                break
            await asyncio.sleep(float(response.headers.get("retry-after", "1")))
    except httpx.HTTPError as error:
        return failed(f"the server cannot be reached ({type(error).__name__}); is `onsight serve` running there?")
    try:
        answer = response.json()
    except ValueError:
        return failed(f"the server answered {response.status_code} and no JSON")
    if isinstance(answer, dict) and (response.status_code == 200 or "error" in answer):
        return answer
    return failed(f"the server answered {response.status_code}")


def failed(why: str) -> Result:
    return {"error": {"message": why}}
