"""Tokens to text as it may be sent: whole characters, and nothing that could be the beginning of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from onsight.engines.torch_engine.vocabulary import Vocabulary


class TextStream:
    """One answer's text. `stopped` is True once a stop text was met; the answer ends before it."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], shield: str = "") -> None:
        """From `shield` on, where there is one, no stop text counts: a call is not to be cut in the middle."""
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._shield = shield
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
        self._shield = ""
        text = self._release(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        if not self._stop:
            text, self._held = self._held, ""
            return text
        shielded = self._held.find(self._shield) if self._shield else -1
        end = shielded if shielded >= 0 else len(self._held) - overlap(self._held, self._shield)
        places = [place for place in map(self._held.find, self._stop) if 0 <= place < end]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        if shielded >= 0:
            self._stop = ()
            return self._release("")
        keep = max(overlap(self._held, marker) for marker in (*self._stop, self._shield))
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def overlap(text: str, marker: str) -> int:
    """How many last characters of `text` could begin `marker`."""
    longest = min(len(marker) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)
