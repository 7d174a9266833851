"""The page's tabs over engines without a model: what a visitor's browser would send is handed to them directly."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from onsight.core.engine import ChatEngine, EmbedEngine
from onsight.core.frames import FrameRule
from onsight.engines.fake_engine import FakeEngine, FakeScript
from onsight.media.door import MediaDoor
from onsight.media.uploads import Uploads
from onsight.models.card import ModelCard, Prompt, find_card
from onsight.models.hub import locate_model
from onsight.tasks.admission import Admission, QueueLimits
from onsight.tasks.chat import Chat
from onsight.tasks.embed import Embed
from onsight.tasks.record import Record
from onsight.tasks.roster import Loaded, LoadedEmbedder, Roster
from onsight.ui.desk import Desk, Workplace
from onsight.ui.words import load_words
from tests.media.pictures import plain

CARD = ModelCard(
    name="fake",
    title="The fake engine",
    family="fake",
    licence="Apache-2.0",
    description="No model at all.",
    capabilities=("chat", "caption", "ocr", "locate", "describe", "video"),
    convention="0..1000",
    prompts={
        "caption": Prompt("Describe the picture."),
        "ocr": Prompt("Read the picture."),
        "describe": Prompt("Describe the part."),
        "locate": Prompt("Where is {target}?", notation="pair"),
        "locate_all": Prompt("Where is each {target}?", notation="pair"),
        "locate_box": Prompt("Box {target}.", notation="boxes"),
    },
    frames=FrameRule(1.0, 8, "ends"),
)

LEAF = locate_model("leaf")
LEAF_CARD = find_card("leaf", LEAF)

T = TypeVar("T")


@dataclass
class Office:
    """A desk, and what its requests cost."""

    desk: Desk
    folder: Path
    admission: Admission
    engine: ChatEngine
    records: list[Record] = field(default_factory=list)

    def upload(self, name: str = "picture.png", data: bytes | None = None) -> str:
        """Put a file where the page's uploads are; its path, as the page knows it."""
        path = self.folder / name
        path.write_bytes(plain() if data is None else data)
        return str(path)


def furnished(
    folder: Path,
    doors: list[MediaDoor],
    language: str = "en",
    *,
    engine: ChatEngine | None = None,
    script: FakeScript = FakeScript(),  # noqa: B008 (frozen)
    places: int = 8,
    limits: QueueLimits = QueueLimits(),  # noqa: B008 (frozen)
    finds: EmbedEngine | None = None,
) -> Office:
    """An office whose uploads are in `folder`; `engine` or `script` says how answers are made, and `finds`, an engine
    for Leaf, how vectors are. Its door joins `doors`, to be closed."""
    if engine is None:
        engine = FakeEngine(script)
        with suppress(StopIteration):
            engine.start().send(None)
    embedders = [] if finds is None else [LoadedEmbedder(("leaf",), LEAF_CARD, finds, 0)]
    roster = Roster([Loaded(("fake",), CARD, engine, 0)], embedders)
    admission, door = Admission(places, limits), MediaDoor()
    doors.append(door)
    records: list[Record] = []
    kept = (records.append,)
    chat, embed = Chat(roster, door, admission, kept), Embed(roster, door, admission, kept)
    place = Workplace(roster, chat, embed, door, admission)
    desk = Desk(place, load_words(language), Uploads(folder, 1 << 20))
    return Office(desk, folder, admission, engine, records)


@pytest.fixture
def furnish(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    """Makes offices; see `furnished`."""
    doors: list[MediaDoor] = []
    yield partial(furnished, tmp_path, doors)
    for door in doors:
        door.close()


@pytest.fixture
def office(furnish: Callable[..., Office]) -> Office:
    return furnish()


async def last(shown: AsyncGenerator[T, None]) -> T:
    """What a tab shows in the end."""
    return [item async for item in shown][-1]
