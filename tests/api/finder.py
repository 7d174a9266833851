"""An engine for tests that truly looks: it finds the magenta spot in the pixels it is given, and says where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import numpy

from onsight.core.engine import EngineStatus
from onsight.core.generation import Candidate, Event, Finished, GenerateRequest, TextDelta, TokenLogprob, Usage
from onsight.core.geometry import Box, Convention, Point, Size, View, to_model
from onsight.core.messages import Image, Text

SPOT = (255, 0, 255)

Words = Callable[[Point, Point], str]
"""What to say of a spot, by its top left and bottom right corner in the model's space."""


def middle(start: Point, stop: Point) -> Point:
    return Point((start.x + stop.x) / 2, (start.y + stop.y) / 2)


@dataclass
class Finder:
    """`resize`: the size in which it sees a picture of a given size. `asked`: the requests that came. `step_s`: pause
    before each answer."""

    convention: Convention
    resize: Callable[[Size], Size]
    words: Words
    asked: list[GenerateRequest] = field(default_factory=list)
    context_tokens: int = 4096
    step_s: float = 0.0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def status(self) -> EngineStatus:
        return EngineStatus("ready", "none")

    @property
    def texts(self) -> list[str]:
        """What was asked, request by request."""
        parts = (request.messages[-1].parts for request in self.asked)
        return ["".join(part.text for part in one if isinstance(part, Text)) for one in parts]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        await asyncio.sleep(self.step_s)
        images = [image for message in request.messages for image in message.images]
        views = tuple(View(image.size, self.resize(image.size)) for image in images)
        said = ""
        if images:
            spot = find_spot(images[0])
            corners = (Point(spot.x1, spot.y1), Point(spot.x2, spot.y2))
            said = self.words(*(to_model(corner, self.convention, views[0]) for corner in corners))
        for character in said:
            token = Candidate(character, character.encode(), -0.1)
            yield TextDelta(character, (TokenLogprob(token),) if request.sampling.logprobs else ())
        yield Finished("stop", Usage(10, len(said)), views)


def find_spot(image: Image) -> Box:
    """The spot's edges, px of the upright picture; a box of nothing where there is none."""
    pixels = numpy.frombuffer(image.pixels, numpy.uint8).reshape(image.height, image.width, 3)
    rows, columns = numpy.nonzero((pixels == SPOT).all(axis=2))
    if not len(rows):
        return Box(0, 0, 0, 0)
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
