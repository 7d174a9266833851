"""What the routes are given: the tasks they call, and the settings of the HTTP face."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import ASGIApp

from onsight.api.keys import KeyBook
from onsight.api.metrics import Metrics
from onsight.api.rates import Rate
from onsight.tasks.admission import Admission
from onsight.tasks.chat import Chat
from onsight.tasks.embed import Embed
from onsight.tasks.roster import Roster


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The HTTP face's settings.

    `keys`: where it guards, every route but /health, /ready and the /docs page needs one. `allowed_hosts`,
    `origins`, `loopback_only`: see `onsight.api.origin`. `rate_by_key`: the page counts by it too.
    `a_minute_by_address`: most requests of each. `max_body_bytes`: of one request; `max_bodies_bytes`: what has come of
    all that are being answered, together. `body_timeout_s`: for how long a body may stand still (both:
    `onsight.api.body_limits`). `send_timeout_s`: for a client to make room for the next piece. `open_docs`,
    `open_metrics`: with a key, /openapi.json and /metrics need none. `max_tokens_default`, `temperature_default`,
    `top_p_default`: for chat requests that name none, where the model's card has no default of its own. `page`: what
    answers everything under /ui, and asks for keys itself; None is a server without a page.
    """

    keys: KeyBook = field(default_factory=KeyBook)
    allowed_hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    loopback_only: bool = False
    rate_by_key: Rate | None = None
    a_minute_by_address: int | None = None
    max_body_bytes: int = 64 << 20
    max_bodies_bytes: int = 512 << 20
    body_timeout_s: float = 30.0
    send_timeout_s: float | None = None
    open_docs: bool = False
    open_metrics: bool = False
    max_tokens_default: int = 512
    temperature_default: float = 0.7
    top_p_default: float = 1.0
    page: ASGIApp | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call."""

    roster: Roster
    chat: Chat
    embed: Embed
    admission: Admission
    metrics: Metrics
