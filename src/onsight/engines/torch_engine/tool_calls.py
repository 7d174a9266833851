"""An answer's text as it comes in, told apart: what is said, and which tools are called. The one place that reads
calls."""

from __future__ import annotations

import re
import uuid

from onsight.core.generation import Event, Finished, TextDelta, TokenLogprob, ToolCallDelta
from onsight.engines.torch_engine.detokenizer import overlap
from onsight.engines.torch_engine.tool_syntax import ToolSyntax

_HEAD = re.compile(r'\n\{"name": "([^"]*)", "arguments": ')
"""How the grammar makes every call begin, after the syntax's opening word."""


class CallReader:
    """Reads one answer that the call grammar keeps in form; never more than a marker's length is held back."""

    def __init__(self, syntax: ToolSyntax) -> None:
        self._opens = syntax.opens
        # JSON on one line holds no line break, so that no argument can be taken for the end of its call.
        self._ends = f"}}\n{syntax.closes}"
        self._held = ""
        self._tokens: list[TokenLogprob] = []
        self._calls = 0
        self._inside = False

    def read(self, event: Event) -> list[Event]:
        """What `event`, of an engine that knows text only, means. Log-probabilities are told of text, not of calls."""
        match event:
            case TextDelta(text, tokens):
                self._held += text
                self._tokens += tokens if self._calls == 0 else ()
                return self._advance()
            case Finished(reason, usage):
                made = reason == "stop" and self._calls > 0
                return [*self._rest(), Finished("tool_calls" if made else reason, usage)]
            case _:
                return [event]

    def _advance(self) -> list[Event]:
        if self._inside:
            return self._arguments()
        if self._opens in self._held:
            return self._head()
        if self._calls:
            return []
        ready = len(self._held) - max(overlap(self._held, self._opens), overlap(self._held, f"\n{self._opens}"))
        text, self._held = self._held[:ready], self._held[ready:]
        return self._said(text)

    def _said(self, text: str) -> list[Event]:
        """`text`, with the log-probabilities of all so far unless some of its neighbours may turn out to be a call."""
        tokens: tuple[TokenLogprob, ...] = ()
        if not self._held:
            tokens, self._tokens = tuple(self._tokens), []
        return [TextDelta(text, tokens)] if text or tokens else []

    def _head(self) -> list[Event]:
        """A call's beginning, and what was said before it."""
        before, _, after = self._held.partition(self._opens)
        head = _HEAD.match(after)
        if head is None:
            return []
        said = before.removesuffix("\n") if self._calls == 0 else ""
        events: list[Event] = [TextDelta(said)] if said else []
        events.append(ToolCallDelta(self._calls, id=f"call_{uuid.uuid4().hex[:24]}", name=head[1]))
        self._held, self._inside = after[head.end() :], True
        self._calls += 1
        return [*events, *self._arguments()]

    def _arguments(self) -> list[Event]:
        place = self._held.find(self._ends)
        cut = place if place >= 0 else len(self._held) - overlap(self._held, self._ends)
        piece, self._held = self._held[:cut], self._held[cut:]
        events: list[Event] = [ToolCallDelta(self._calls - 1, piece)] if piece else []
        if place < 0:
            return events
        self._held, self._inside = self._held[len(self._ends) :], False
        return events + self._advance()

    def _rest(self) -> list[Event]:
        """What was held back, once nothing follows. A call that was cut off keeps the arguments that it gave so far:
        held back is only what looks like its end."""
        held, self._held = self._held, ""
        return [] if self._calls or self._opens in held else self._said(held)
