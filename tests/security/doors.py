"""Every door through which a picture or a video comes in: the routes, the page, RunPod's handler, the command line.

Behind all of them stands one house: the whole application with an engine that notes what it was asked, an engine that
notes what it made vectors of, and a network that is written down.
"""

from __future__ import annotations

import asyncio
import base64
import html
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import httpx
from starlette.requests import HTTPConnection

from onsight.api.app import ApiSettings, Services, create_app
from onsight.api.metrics import Metrics
from onsight.core.embedding import Embedding, ImageSpan
from onsight.core.frames import FrameRule
from onsight.core.messages import Image, Text
from onsight.hosts.runpod import Worker
from onsight.media.door import MediaDoor
from onsight.media.uploads import Uploads
from onsight.models.card import ModelCard, Prompt
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.chat import Chat
from onsight.tasks.embed import Embed
from onsight.tasks.roster import Loaded, LoadedEmbedder, Roster
from onsight.ui.captions_tab import CaptionsTab
from onsight.ui.chat_tab import ChatTab
from onsight.ui.desk import Desk, Workplace
from onsight.ui.locate_tab import LocateTab
from onsight.ui.ocr_tab import OcrTab
from onsight.ui.region_tab import RegionTab
from onsight.ui.search_tab import SearchTab
from onsight.ui.words import load_words
from tests.api.conftest import Bench
from tests.api.finder import Finder
from tests.api.test_tasks import pair, square
from tests.embedders import behind_a_port
from tests.media.networks import Names, Network, redirect
from tests.media.pictures import data_url
from tests.tasks.test_embed import CARD as PAGES_CARD
from tests.tasks.test_embed import Counting

PUBLIC, METADATA = "93.184.215.14", "169.254.169.254"
SIGHT = ModelCard(
    name="looker",
    title="Looks",
    family="fake",
    licence="Apache-2.0",
    description="Notes what it is asked.",
    capabilities=("chat", "caption", "ocr", "locate", "describe", "video"),
    convention="0..1000",
    prompts={
        "caption": Prompt("Say."),
        "ocr": Prompt("Read."),
        "describe": Prompt("In ({x1}, {y1}, {x2}, {y2})?"),
        "locate": Prompt("Where is {target}?", notation="pair"),
    },
    frames=FrameRule(1.0, 8, "ends"),
)


class NotingPages(Counting):
    """Makes vectors by a rule, and keeps what it made them of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Text | Image] = []
        self.callers: set[str] = set()
        self.step_s = 0.0

    async def embed(self, one: Text | Image, caller: str = "") -> Embedding:
        await asyncio.sleep(self.step_s)
        self.callers.add(caller)
        self.seen.append(one)
        if isinstance(one, Image):
            return Embedding(struct.pack("2f", one.width, one.height), 2, 1, ImageSpan(1, 1, 1))
        return await super().embed(one)


class House:
    """All of the application, and what is known of what went in. `network`: what every fetch was answered."""

    def __init__(
        self,
        folder: Path,
        settings: ApiSettings = ApiSettings(),  # noqa: B008 (frozen)
        limits: QueueLimits = QueueLimits(),  # noqa: B008 (frozen)
    ) -> None:
        self.engine, self.pages = Finder("0..1000", square, pair), NotingPages()
        self.network = Network(redirect(f"http://{METADATA}/latest/meta-data/"))
        names = Names(
            public_example=[[PUBLIC]],
            inside_example=[["10.0.0.7"]],
            mixed_example=[[PUBLIC, "192.168.1.1"]],
            rebinding_example=[[PUBLIC], ["127.0.0.1"]],
        )
        # As the operating system reads numbers that no address is written as.
        names.answers |= {"2130706433": [["127.0.0.1"]], "0x7f.1": [["127.0.0.1"]]}
        self.door = MediaDoor(resolver=names, network=self.network)
        self.admission = Admission(8, limits)
        roster = Roster(
            [Loaded(("looker",), SIGHT, self.engine, 0)], [LoadedEmbedder(("pages",), PAGES_CARD, self.pages, 0)]
        )
        metrics = Metrics(roster, self.admission, self.door.decoded.cache)
        chat, embed = Chat(roster, self.door, self.admission), Embed(roster, self.door, self.admission)
        app = create_app(Services(roster, chat, embed, self.admission, metrics), settings)
        self.bench = Bench(app, self.engine, self.admission, metrics, self.door)  # type: ignore[arg-type]
        self.folder = folder
        self.desk = Desk(
            Workplace(roster, chat, embed, self.door, self.admission), load_words("en"), Uploads(folder, 50 << 20)
        )

        self.address = ""

    @contextmanager
    def open(self) -> Iterator[House]:
        """Listens on a loopback port too, for those who come from outside; closed at the end."""
        with behind_a_port(self.bench.app) as self.address:
            yield self
        self.door.close()

    def upload(self, data: bytes) -> str:
        path = self.folder / "file"
        path.write_bytes(data)
        return str(path)

    def forget(self) -> None:
        """What came to an engine so far."""
        self.engine.asked.clear()
        self.pages.seen.clear()

    @property
    def shown(self) -> list[Image]:
        """Every picture that came to an engine."""
        asked = [image for request in self.engine.asked for message in request.messages for image in message.images]
        return asked + [one for one in self.pages.seen if isinstance(one, Image)]

    @property
    def texts(self) -> list[str]:
        """Every text that came to an engine, whole."""
        parts = [part for request in self.engine.asked for part in request.messages[-1].parts]
        return [part.text for part in (*parts, *self.pages.seen) if isinstance(part, Text)]


Given = bytes | str
"""A file, or a URL."""


@dataclass(frozen=True)
class Said:
    """What came back: whether it is an answer, all of its words, and a status, where the door has one."""

    fine: bool
    words: str
    status: int = 400


Show = Callable[[House, Given, str], Awaitable[Said]]
"""Shows a house a picture (or a video) with a text."""


@dataclass(frozen=True)
class Door:
    """`path`: of a route; `tab`: of the page, by the capability that it is for. `urls`: it takes those too.

    `texts`: a text goes along. `videos`: they may come in.
    """

    name: str
    show: Show
    path: str | None = None
    urls: bool = True
    texts: bool = True
    videos: bool = False
    tab: str | None = None


def _url(given: Given, media_type: str = "image/png") -> str:
    return given if isinstance(given, str) else data_url(given, media_type)


def _is_video(given: Given) -> bool:
    from onsight.media.video_files import video_format

    return isinstance(given, bytes) and video_format(given) in ("MP4", "WEBM")


def _part(given: Given) -> dict[str, object]:
    if _is_video(given):
        return {"type": "video_url", "video_url": {"url": _url(given, "video/mp4")}}
    return {"type": "image_url", "image_url": {"url": _url(given)}}


def _said(response: httpx.Response) -> Said:
    return Said(response.status_code == 200, response.text, response.status_code)


def _posted(path: str, body: Callable[[Given, str], dict[str, object]]) -> Show:
    async def show(house: House, given: Given, text: str) -> Said:
        return _said(await house.bench.post(path, body(given, text)))

    return show


def _form(path: str, field: str = "file", **texts: str) -> Show:
    async def show(house: House, given: Given, text: str) -> Said:
        assert isinstance(given, bytes)
        fields = {name: text if value == "TEXT" else value for name, value in texts.items()}
        async with house.bench.client() as client:
            return _said(await client.post(path, data=fields, files={field: ("picture", given)}))

    return show


def _messages(given: Given, text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [_part(given), {"type": "text", "text": text}]}]}


def _responses(given: Given, text: str) -> dict[str, object]:
    content = [{"type": "input_image", "image_url": _url(given)}, {"type": "input_text", "text": text}]
    return {"input": [{"role": "user", "content": content}]}


def _infer(given: Given, text: str) -> dict[str, object]:
    assert isinstance(given, bytes)
    return {"prompt": text, "image": base64.b64encode(given).decode()}


def _through_runpod(job: Callable[[Given, str], dict[str, object]]) -> Show:
    async def show(house: House, given: Given, text: str) -> Said:
        answer = await Worker(house.address).answer_whole({"id": "1", "input": job(given, text)})
        return Said("error" not in answer, str(answer))

    return show


async def _last(shown: AsyncGenerator[object, None]) -> Said:
    """What a tab of the page shows in the end."""
    words = html.unescape(str([item async for item in shown][-1]))
    return Said("cannot be used" not in words, words)


async def _chat_tab(house: House, given: Given, text: str) -> Said:
    assert isinstance(given, bytes)
    asked = ChatTab(house.desk).ask({"text": text, "files": [house.upload(given)]}, (), 16, 0.0)
    problem = html.unescape([problem async for *_, problem in asked][-1])
    return Said(problem == "", problem)


async def _ocr_tab(house: House, given: Given, text: str) -> Said:
    assert isinstance(given, bytes)
    return await _last(OcrTab(house.desk).read(house.upload(given)))


async def _region_tab(house: House, given: Given, text: str) -> Said:
    assert isinstance(given, bytes)
    return await _last(RegionTab(house.desk).describe(house.upload(given), "0,0,4,4"))


async def _locate_tab(house: House, given: Given, text: str) -> Said:
    assert isinstance(given, bytes)
    asked = gr.Request(HTTPConnection({"type": "http", "path": "/", "headers": [(b"host", b"onsight")]}))
    return await _last(LocateTab(house.desk).find(house.upload(given), text, "point", False, asked))


async def _search_tab(house: House, given: Given, text: str) -> Said:
    assert isinstance(given, bytes)
    return await _last(SearchTab(house.desk).find([house.upload(given)], text))


async def _captions_tab(house: House, given: Given, text: str) -> Said:
    assert isinstance(given, bytes)
    return await _last(CaptionsTab(house.desk).caption_all([house.upload(given)], "normal"))


BOX = [0, 0, 4, 4]
DOORS = (
    Door("chat", _posted("/v1/chat/completions", _messages), "/v1/chat/completions", videos=True),
    Door("responses", _posted("/v1/responses", _responses), "/v1/responses"),
    Door("caption", _posted("/v1/caption", lambda given, _: {"image": _url(given)}), "/v1/caption", texts=False),
    Door("caption form", _form("/v1/caption"), "/v1/caption", urls=False, texts=False),
    Door("ocr", _posted("/v1/ocr", lambda given, _: {"image": _url(given)}), "/v1/ocr", texts=False),
    Door("ocr form", _form("/v1/ocr"), "/v1/ocr", urls=False, texts=False),
    Door("locate", _posted("/v1/locate", lambda given, text: {"image": _url(given), "target": text}), "/v1/locate"),
    Door("locate form", _form("/v1/locate", target="TEXT"), "/v1/locate", urls=False),
    Door(
        "describe",
        _posted("/v1/describe", lambda given, _: {"image": _url(given), "box": BOX}),
        "/v1/describe",
        texts=False,
    ),
    Door("describe form", _form("/v1/describe", box="0,0,4,4"), "/v1/describe", urls=False, texts=False),
    Door("embeddings", _posted("/v1/embeddings", lambda given, text: {"input": [_part(given)]}), "/v1/embeddings",
         texts=False),
    Door("score", _posted("/v1/score", lambda given, text: {"queries": text, "documents": [_part(given)]}),
         "/v1/score"),
    Door("rerank", _posted("/v1/rerank", lambda given, text: {"query": text, "documents": [_part(given)]}),
         "/v1/rerank"),
    Door("embed images", _form("/embed/images", "files"), "/embed/images", urls=False, texts=False),
    Door("infer", _posted("/infer", _infer), "/infer", urls=False),
    Door("infer form", _form("/infer"), "/infer", urls=False, texts=False),
    Door("page's chat", _chat_tab, urls=False, videos=True, tab="chat"),
    Door("page's text", _ocr_tab, urls=False, texts=False, tab="ocr"),
    Door("page's region", _region_tab, urls=False, texts=False, tab="describe"),
    Door("page's captions", _captions_tab, urls=False, texts=False, tab="caption"),
    Door("page's places", _locate_tab, urls=False, tab="locate"),
    Door("page's search", _search_tab, urls=False, tab="embed"),
    Door("RunPod's chat", _through_runpod(_messages), videos=True),
    Door("RunPod's picture", _through_runpod(lambda given, text: {"image": _url(given), "text": text})),
    Door(
        "RunPod's route",
        _through_runpod(
            lambda given, text: {
                "openai_route": "/v1/embeddings",
                "openai_input": {"input": [_part(given)]},
            }
        ),
        texts=False,
    ),
)  # fmt: skip

NO_MEDIA = frozenset({"/patches", "/embed/queries"})
"""Routes that read a body in which no picture can be."""
