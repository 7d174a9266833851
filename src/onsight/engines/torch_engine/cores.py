"""How many threads each of the two who compute may use: the model's thread, and the one that encodes pictures."""

from __future__ import annotations

import torch

_SMALL_LAYER = 2_000_000
"""A layer with no more weights than this writes faster on one CPU thread than on several, in however many bits."""


class Cores:
    """Shares the processor out. Each flag has one writer, and one read a moment late only costs time."""

    def __init__(self, device: torch.device, layer_weights: int) -> None:
        """`layer_weights`: numbers in one layer of the language model."""
        self._all = torch.get_num_threads()
        # Waking a second thread takes longer than such a model's small products do.
        self._alone = device.type == "cpu" and layer_weights <= _SMALL_LAYER
        self.apart = self._alone and self._all > 1
        """Whether pictures are encoded while others' answers are written: where writing leaves cores idle."""
        self._model_works = False
        self.looking = False
        """Set by the pictures' thread while it encodes."""

    def to_look(self) -> None:
        """Before pictures are encoded, on the thread that does."""
        torch.set_num_threads(max(1, self._all // 2) if self.apart and self._model_works else self._all)

    def to_read(self) -> None:
        """Before prompts are read, on the model's thread."""
        self._model_works = True
        torch.set_num_threads(max(1, self._all // 2) if self.looking else self._all)

    def to_write(self) -> None:
        """Before answers go on by a token each, on the model's thread."""
        self._model_works = True
        torch.set_num_threads(1 if self._alone else self._all)

    def rest(self) -> None:
        """The model's thread has nothing to do."""
        self._model_works = False
