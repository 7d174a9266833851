"""Tokens to text as it may be sent: whole characters, and nothing that could be the beginning of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from onsight.engines.torch_engine.vocabulary import Vocabulary


class TextStream:
    """One answer's text. `stopped` is True once a stop text was met; the answer ends before it."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._drop_blank = vocabulary.drops_first_blank
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that this token makes ready to send; often empty."""
        data = self._vocabulary.data(token_id)
        if data and self._drop_blank:
            data, self._drop_blank = data.removeprefix(b" "), False
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back, once no token follows; a cut character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        if not self._stop:
            text, self._held = self._held, ""
            return text
        places = [place for place in map(self._held.find, self._stop) if place >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        keep = max(map(self._overlap, self._stop))
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _overlap(self, stop: str) -> int:
        """How many last characters of the held text could begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
