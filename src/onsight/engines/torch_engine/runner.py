"""The forwards: pictures to features, prompts to first logits, tokens to next logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from onsight.core.messages import Image, ImageOptions
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.feature_cache import FeatureCache
from onsight.engines.torch_engine.kv_cache import DecodeWindow, KeyValueCache, PrefillWindow
from onsight.engines.torch_engine.prefix import Claim
from onsight.engines.torch_engine.prompt import Pixels, Span
from onsight.engines.torch_engine.sequence import Chunk, Sequence

_SMALL_LAYER = 2_000_000
"""A layer with no more weights than this decodes faster on one CPU thread than on several."""


class Runner:
    """Runs on the model's thread, under `torch.inference_mode`."""

    def __init__(self, family: Family, cache: KeyValueCache, features: FeatureCache) -> None:
        self._family = family
        self._decoder = family.decoder
        self._cache = cache
        self._features = features
        self._threads = torch.get_num_threads()
        # Waking a second thread takes longer than such a model's small products do.
        self._decode_threads = 1 if self._decoder.layer_weights <= _SMALL_LAYER else self._threads

    def copy_prefixes(self, claims: Rows[Claim]) -> None:
        """Bring what is reused into the slots that reuse it, before anything overwrites it."""
        for claim in claims:
            if claim.tokens and claim.source != claim.slot:
                self._cache.copy(claim.source, claim.slot, claim.tokens)

    def encode(self, chunks: Rows[Chunk]) -> None:
        """See to it that every picture that these chunks read has features; each is encoded once, all in one batch."""
        spans = [span for chunk in chunks for span in _spans_to_encode(chunk)]
        wanted: dict[str, Pixels] = {}
        for span in spans:
            # Another request may have had the same picture encoded while this one was in line.
            span.features = self._features.find(span.plan.key)
            if span.features is None and span.pixels is not None:
                wanted[span.plan.key] = span.pixels
        made: dict[str, torch.Tensor] = {}
        if wanted:
            torch.set_num_threads(self._threads)
            for key, features in zip(wanted, self._family.encode(list(wanted.values())), strict=True):
                made[key] = self._features.store(key, features)
        for span in spans:
            if span.features is None:
                span.features = made[span.plan.key]
            span.pixels = None

    def prefill(self, chunks: Rows[Chunk]) -> torch.Tensor:
        """Read the chunks; the logits after each one's last token, [chunks, vocab_rows]."""
        torch.set_num_threads(self._threads)
        device = self._decoder.device
        counts = [chunk.stop - chunk.start for chunk in chunks]
        longest = max(counts)
        ids = torch.zeros(len(chunks), longest, dtype=torch.int64)
        positions = torch.zeros(self._decoder.axes, len(chunks), longest, dtype=torch.int64)
        for row, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
            prompt = chunk.sequence.prompt
            ids[row, :count] = torch.tensor(prompt.token_ids[chunk.start : chunk.stop])
            positions[:, row, :count] = prompt.positions[:, chunk.start : chunk.stop]
        embeds = self._decoder.embed(ids.to(device))  # [rows, longest, hidden]
        for row, chunk in enumerate(chunks):
            _put_features(embeds[row], chunk)
        slots, starts = [chunk.sequence.slot for chunk in chunks], [chunk.start for chunk in chunks]
        window = PrefillWindow(self._cache, slots, starts, counts)
        hidden = self._decoder.forward(embeds, positions.to(device), window.mask(device), window)
        last = hidden[torch.arange(len(chunks), device=device), torch.tensor(counts, device=device) - 1]
        return self._decoder.logits(last)

    def decode(self, sequences: Rows[Sequence]) -> torch.Tensor:
        """Read each sequence's last token (ascending slots); the logits after it, [sequences, vocab_rows]."""
        torch.set_num_threads(self._decode_threads)
        device = self._decoder.device
        lengths = [sequence.computed for sequence in sequences]
        window = DecodeWindow(self._cache, [sequence.slot for sequence in sequences], lengths, device)
        table = torch.tensor(
            [
                [sequence.last_token for sequence in sequences],
                [length + sequence.prompt.delta for length, sequence in zip(lengths, sequences, strict=True)],
            ],
            device=device,
        )
        ids, positions = window.spread(table)  # [rows] each
        axes = positions[None, :, None].expand(self._decoder.axes, -1, -1)
        hidden = self._decoder.forward(self._decoder.embed(ids[:, None]), axes, window.mask(), window)
        return self._decoder.logits(hidden[window.rows, 0])

    def warm_up(self) -> None:
        """One small picture, one prefill and one decode step in slot 0: the first request pays for no lazy set-up."""
        picture = Image.of(bytes(3 * 56 * 56), 56, 56, ImageOptions(detail="low"))
        self._family.encode([self._family.prepare(self._family.plan(picture))])
        device = self._decoder.device
        for count, start in ((8, 0), (1, 8)):
            ids = torch.zeros(1, count, dtype=torch.int64, device=device)
            positions = torch.arange(start, start + count, device=device).expand(self._decoder.axes, 1, -1)
            window = PrefillWindow(self._cache, [0], [start], [count])
            hidden = self._decoder.forward(self._decoder.embed(ids), positions, window.mask(device), window)
            self._decoder.logits(hidden[:, -1])


def _spans_to_encode(chunk: Chunk) -> list[Span]:
    """Pictures with features inside the chunk that have none yet."""
    spans = []
    for span in chunk.sequence.prompt.spans:
        first, stop = span.places_in(chunk.start, chunk.stop)
        if first < stop and span.features is None:
            spans.append(span)
    return spans


def _put_features(embeds: torch.Tensor, chunk: Chunk) -> None:
    """Overwrite the places of pictures in `embeds` [tokens, hidden] with their features."""
    for span in chunk.sequence.prompt.spans:
        first, stop = span.places_in(chunk.start, chunk.stop)
        if first < stop and span.features is not None:
            places = torch.tensor(span.places[first:stop], device=embeds.device) - chunk.start
            embeds[places] = span.features[first:stop].to(embeds.dtype)
