"""An application over any engine, asked without a port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx

from onsight.api.app import ApiSettings, Services, create_app
from onsight.api.metrics import Metrics
from onsight.core.engine import ChatEngine
from onsight.media.door import MediaDoor
from onsight.models.card import ModelCard
from onsight.tasks.admission import Admission
from onsight.tasks.chat import Chat
from onsight.tasks.embed import Embed
from onsight.tasks.roster import Loaded, Roster

Post = Callable[[str, object], Awaitable[httpx.Response]]
"""Posts a JSON body to a path."""


@contextmanager
def post_to(engine: ChatEngine, card: ModelCard) -> Iterator[Post]:
    """Requests to an application whose one model is `engine`."""
    door, admission = MediaDoor(), Admission(4)
    roster = Roster([Loaded(("fake",), card, engine, 0)])
    services = Services(
        roster,
        Chat(roster, door, admission),
        Embed(roster, door, admission),
        admission,
        Metrics(roster, admission, door.decoded.cache),
    )
    app = create_app(services, ApiSettings())

    async def post(path: str, body: object) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://onsight") as client:
            return await client.post(path, json=body)

    yield post
    door.close()
