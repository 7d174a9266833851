"""llama.cpp's own server as one of the sides of benchmarks/cpu.py: asked over HTTP, token by token."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import httpx
import torch
from PIL import Image as Pillow

from benchmarks.client import TIMEOUT_S, chat_body
from benchmarks.families import Written, WrongLength
from benchmarks.llama import SLOTS, alone
from benchmarks.server import RunningServer, running
from benchmarks.shapes import Shape
from onsight.core.messages import Image, Message, Text
from training.export_gguf import MIXTURE, export_gguf

KINDS = {"q8_0": "Q8_0", "q4_k_m": MIXTURE}
"""By the names of their sides."""


def files(shape: Shape, folder: Path, side: str) -> tuple[Path, Path]:
    """(model, what sees) of the checkpoint in `folder`, written beside it when they are not there yet."""
    own = folder / KINDS[side]
    if not own.exists():
        return export_gguf(folder, own, shape.name, KINDS[side])
    mmproj = next(own.glob("mmproj-*.gguf"))
    return next(path for path in own.glob("*.gguf") if path != mmproj), mmproj


@asynccontextmanager
async def llama(shape: Shape, folder: Path, side: str) -> AsyncIterator[LlamaSide]:
    """The server, on as many threads as torch has, until it is left."""
    model, mmproj = files(shape, folder, side)
    command = alone(model, mmproj, f"llama.cpp {KINDS[side]}", torch.get_num_threads(), shape.context)
    with tempfile.TemporaryDirectory() as logs, running(command, Path(logs)) as server:
        yield LlamaSide(server)


class LlamaSide:
    """See `benchmarks.cpu.CpuSide`; `process_id` is the server's, `load_s` until it was ready."""

    def __init__(self, server: RunningServer) -> None:
        self._url = f"{server.url}/v1/chat/completions"
        self.process_id = server.process.pid
        self.load_s = server.start_s

    async def write(self, asked: Sequence[Message], tokens: int) -> Written:
        """See `CpuSide.write`; what comes at one moment is one token."""
        if len(asked) > SLOTS:
            raise ValueError(f"{len(asked)} requests at once, and the server has {SLOTS} slots")
        done = await asyncio.gather(*(self._answer(prompt, tokens) for prompt in asked))
        if any(len(times) != tokens for _, times, _ in done):
            raise WrongLength(f"answers of {[len(times) for _, times, _ in done]} tokens; asked for were {tokens}")
        began_s, ended_s = max(times[0] for _, times, _ in done), max(times[-1] for _, times, _ in done)
        after = sum(at > began_s for _, times, _ in done for at in times)
        return Written(tuple(text for text, _, _ in done), after / (ended_s - began_s))

    async def first(self, prompt: Message) -> tuple[float, int]:
        """See `CpuSide.first`."""
        body, began_s = _body(prompt, 1), time.perf_counter()
        _, times, prompt_tokens = await self._answer(prompt, 1, body)
        return times[0] - began_s, prompt_tokens

    def encode(self, image: Image) -> float | None:
        """See `CpuSide.encode`: its server cannot be asked for that alone."""
        return None

    async def _answer(self, prompt: Message, tokens: int, body: bytes | None = None) -> tuple[str, list[float], int]:
        """Text, when each piece of it came, and how many tokens the prompt had."""
        text, times, prompt_tokens = "", [], 0
        headers = {"content-type": "application/json"}
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", self._url, content=body or _body(prompt, tokens), headers=headers) as answer,
        ):
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                if piece:
                    text += piece
                    times.append(time.perf_counter())
                prompt_tokens = (event.get("usage") or {}).get("prompt_tokens", prompt_tokens)
        return text, times, prompt_tokens


def _body(prompt: Message, tokens: int) -> bytes:
    """As the server is asked, greedy; pictures as PNG."""
    parts: list[dict[str, object]] = []
    for part in prompt.parts:
        if isinstance(part, Text):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            data = base64.b64encode(_png(part)).decode()
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return chat_body([{"role": "user", "content": parts}], tokens=tokens)


def _png(image: Image) -> bytes:
    held = BytesIO()
    Pillow.frombytes("RGB", (image.width, image.height), image.pixels).save(held, "PNG")
    return held.getvalue()
