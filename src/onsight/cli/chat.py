"""`onsight chat`: ask one question about pictures and videos, of a running server or of a model loaded here."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import httpx
import typer

from onsight.config import Settings
from onsight.core.errors import OnsightError, StartError
from onsight.core.generation import Sampling, TextDelta
from onsight.core.messages import Draft, ImageRef, Text, VideoRef
from onsight.core.pages import Pages
from onsight.media.uploads import as_reference

_VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".webm")


def chat(
    settings: Settings,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    attach: Annotated[
        list[str] | None,
        typer.Option("--attach", "-a", help="Picture, PDF or video to ask about: a file or a URL; repeatable."),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask this running server, like http://127.0.0.1:8000.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 is the likeliest answer every time.", min=0.0, max=2.0)] = 0.0,
) -> None:
    """Ask a question, with pictures and videos or without; the answer is printed as it comes."""
    attached = [_attached(name) for name in attach or []]
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    pieces = (
        _ask_server(url, settings.api_key, attached, question, sampling)
        if url
        else _ask_here(settings, attached, question, sampling)
    )
    asyncio.run(_print(pieces))


def _attached(name: str) -> ImageRef | VideoRef:
    """A URL as it is, a file as its bytes.

    Raises StartError for a file that cannot be read.
    """
    if name.startswith(("http://", "https://", "data:")):
        path = name.partition("?")[0].partition("#")[0].lower()
        is_video = name.startswith("data:video/") or path.endswith(_VIDEO_ENDINGS)
        return VideoRef(name) if is_video else ImageRef(name, pages=Pages())
    try:
        data = Path(name).expanduser().read_bytes()
    except OSError as error:
        raise StartError(f"attachment {name} cannot be read: {error.strerror}") from None
    return as_reference(data)


async def _print(pieces: AsyncGenerator[str, None]) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            typer.echo(piece, nl=False)
    typer.echo()


async def _ask_here(
    settings: Settings, attached: list[ImageRef | VideoRef], question: str, sampling: Sampling
) -> AsyncGenerator[str, None]:
    """The answer's pieces from a model that this process loads."""
    from onsight.serve import assemble, loading_bar
    from onsight.tasks.chat import ChatCall

    with loading_bar() as progress:
        site = assemble(settings, progress)
        try:
            await site.start()
            parts: tuple[Text | ImageRef | VideoRef, ...] = (*attached, Text(question))
            call = ChatCall((Draft("user", parts),), sampling=sampling)
            async with aclosing(site.chat.stream(call)) as events:
                async for choice in events:
                    if isinstance(choice.event, TextDelta):
                        yield choice.event.text
        finally:
            await site.close()


async def _ask_server(
    url: str, key: str | None, attached: list[ImageRef | VideoRef], question: str, sampling: Sampling
) -> AsyncGenerator[str, None]:
    """The answer's pieces from a running server, over its own public API."""
    content: list[dict[str, object]] = [_part(one) for one in attached]
    body = {
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    try:
        async with httpx.AsyncClient(timeout=httpx.Timeout(10, read=None)) as client:
            async with client.stream("POST", address, json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise OnsightError(f"{url} answered {response.status_code}: {_message(await response.aread())}")
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield _piece(json.loads(line.removeprefix("data: ")), url)
    except httpx.HTTPError as error:
        raise OnsightError(
            f"{url} cannot be reached ({type(error).__name__}); is `onsight serve` running there?"
        ) from None


def _part(ref: ImageRef | VideoRef) -> dict[str, object]:
    """The attachment as the public API takes it; the server looks at the bytes, not at the type that stands here."""
    kind, media_type = ("video_url", "video/mp4") if isinstance(ref, VideoRef) else ("image_url", "image/png")
    source = ref.source
    if isinstance(source, bytes):
        source = f"data:{media_type};base64,{base64.b64encode(source).decode()}"
    return {"type": kind, kind: {"url": source}}


def _piece(chunk: dict[str, object], url: str) -> str:
    """The text in one streamed chunk. Raises OnsightError for an error event."""
    match chunk:
        case {"error": {"message": str(message)}}:
            raise OnsightError(f"{url} broke off: {message}")
        case {"choices": [{"delta": {"content": str(text)}}, *_]}:
            return text
        case _:
            return ""


def _message(body: bytes) -> str:
    try:
        match json.loads(body):
            case {"error": {"message": str(message)}}:
                return message
    except ValueError:
        pass
    return body[:200].decode("utf-8", "replace")
