"""Pictures to features: beside the model's own thread where that leaves cores idle, else in its turn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from onsight.engines.torch_engine.cores import Cores
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.feature_cache import FeatureCache
from onsight.engines.torch_engine.prompt import Pixels, Span
from onsight.engines.torch_engine.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """The pictures that `sequence` waits for have features, or cannot have any (`broken` says why)."""

    sequence: Sequence
    broken: BaseException | None = None


class Eye:
    """Owns the vision tower. `look` may be called from the model's thread only."""

    def __init__(self, family: Family, features: FeatureCache, cores: Cores) -> None:
        self.features = features
        self._family = family
        self._cores = cores
        self._report: Callable[[Seen], object]
        self._waiting: SimpleQueue[Sequence | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, report: Callable[[Seen], object]) -> None:
        """Begin to look, on a thread of its own if that is of use.

        `report` is called on whichever thread looked, once for every sequence that nobody has left.
        """
        self._report = report
        if self._cores.apart:
            self._thread = threading.Thread(target=self._run, name="onsight-eye", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Return once nothing is looked at any more; what still waits is not reported."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def look(self, sequences: Rows[Sequence]) -> None:
        """See to it that every picture that these sequences have yet to read gets features."""
        if self._thread is None:
            self._see(sequences)
            return
        for sequence in sequences:
            self._waiting.put(sequence)

    def _run(self) -> None:
        """One request after the other: on a CPU its pictures are done no later alone than in a batch with others'."""
        with torch.inference_mode():
            while (sequence := self._waiting.get()) is not None:
                if not sequence.cancelled:
                    self._see([sequence])

    def _see(self, sequences: Rows[Sequence]) -> None:
        self._cores.looking = self._cores.apart
        broken = self._broken(sequences)
        # Before the reports: whoever reads on then may have the cores.
        self._cores.looking = False
        for sequence in sequences:
            self._report(Seen(sequence, broken.get(sequence)))

    def _broken(self, sequences: Rows[Sequence]) -> dict[Sequence, BaseException]:
        """Encode all that these sequences have yet to read; those of them whose pictures cannot be encoded."""
        try:
            self.encode([span for sequence in sequences for span in sequence.unseen()])
            return {}
        except BaseException as error:  # the engine's boundary: whatever breaks concerns these requests only
            if len(sequences) == 1:
                log.exception("a picture could not be encoded; its request fails with it")
                return {sequences[0]: error}
            # One picture must not take its neighbours with it: find the culprit by looking at each request's alone.
            log.warning("encoding %d requests' pictures together failed; encoding each alone", len(sequences))
        broken: dict[Sequence, BaseException] = {}
        for sequence in sequences:
            broken.update(self._broken([sequence]))
        return broken

    def encode(self, spans: Rows[Span]) -> None:
        """Give these pictures features, on this thread: each once, in one batch; what the cache has is taken over."""
        wanted: dict[str, Pixels] = {}
        for span in spans:
            span.features = self.features.find(span.plan.key)
            if span.features is None and span.pixels is not None:
                wanted[span.plan.key] = span.pixels
        made: dict[str, torch.Tensor] = {}
        if wanted:
            self._cores.to_look()
            for key, features in zip(wanted, self._family.encode(list(wanted.values())), strict=True):
                made[key] = self.features.store(key, features)
        for span in spans:
            if span.features is None:
                span.features = made[span.plan.key]
            span.pixels = None
