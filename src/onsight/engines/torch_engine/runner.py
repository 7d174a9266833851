"""The forwards: pictures to features, prompts to first logits, tokens to next logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from onsight.core.messages import Image, ImageOptions
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.feature_cache import FeatureCache
from onsight.engines.torch_engine.kv_cache import DecodeWindow, KeyValueCache, PrefillWindow
from onsight.engines.torch_engine.picture_cache import PictureCache
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
        self._pictures = cache.pictures
        self._features = features
        self._threads = torch.get_num_threads()
        # Waking a second thread takes longer than such a model's small products do.
        self._decode_threads = 1 if self._decoder.layer_weights <= _SMALL_LAYER else self._threads

    def copy_prefixes(self, claims: Rows[Claim]) -> None:
        """Bring what is reused into the slots that reuse it, before anything overwrites it."""
        for claim in claims:
            if claim.tokens and claim.source != claim.slot:
                self._cache.copy(claim.source, claim.slot, claim.tokens)

    def place_again(self, sequence: Sequence) -> None:
        """Let the family place an outgrown sequence, prompt and answer together; nothing of it is computed then."""
        sequence.read_again()
        self._family.place(sequence.prompt)

    def encode(self, chunks: Rows[Chunk]) -> None:
        """See to it that every picture that these chunks read has features; each is encoded once, all in one batch."""
        beside = self._pictures is not None
        spans = [span for chunk in chunks for span in _spans_to_encode(chunk, beside)]
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

    def _show(self, pictures: PictureCache, chunk: Chunk) -> None:
        """Bring its pictures to the slot of a prompt that begins here; one that goes on, or reuses, has them there."""
        if chunk.start > 0:
            return
        pictures.clear(chunk.sequence.slot)
        project = self._decoder.project
        for place, span in enumerate(chunk.sequence.prompt.spans):
            if span.features is not None and project is not None:
                pictures.write(chunk.sequence.slot, place, project(span.features))

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
        if self._pictures is not None:
            for chunk in chunks:
                self._show(self._pictures, chunk)
            window.sight = self._pictures.look(window.slots, [_seen_in(chunk) for chunk in chunks], longest)
        hidden = self._decoder.forward(embeds, positions.to(device), window.mask(device), window)
        last = hidden[torch.arange(len(chunks), device=device), torch.tensor(counts, device=device) - 1]
        return self._decoder.logits(last)

    def decode(self, sequences: Rows[Sequence]) -> torch.Tensor:
        """Read each sequence's last token (ascending slots); the logits after it, [sequences, vocab_rows]."""
        torch.set_num_threads(self._decode_threads)
        device = self._decoder.device
        lengths = [sequence.computed for sequence in sequences]
        window = DecodeWindow(self._cache, [sequence.slot for sequence in sequences], lengths, device)
        if self._pictures is not None:
            seen = {sequence.slot: sequence.prompt.seen for sequence in sequences}
            rows = [seen.get(slot) for slot in range(window.first, window.stop)]
            last = [None if one is None else one[-1:] for one in rows]
            window.sight = self._pictures.look(slice(window.first, window.stop), last, 1)
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


def _spans_to_encode(chunk: Chunk, beside: bool) -> list[Span]:
    """Pictures with features inside the chunk that have none yet.

    `beside`: they are seen by cross-attention, and all at once: words before a picture depend on it too.
    """
    if beside:
        return [span for span in chunk.sequence.prompt.spans if chunk.start == 0 and span.features is None]
    spans = []
    for span in chunk.sequence.prompt.spans:
        first, stop = span.places_in(chunk.start, chunk.stop)
        if first < stop and span.features is None:
            spans.append(span)
    return spans


def _seen_in(chunk: Chunk) -> torch.Tensor | None:
    """[the chunk's tokens, tiles]; see `Prompt.seen`."""
    seen = chunk.sequence.prompt.seen
    return None if seen is None else seen[chunk.start : chunk.stop]


def _put_features(embeds: torch.Tensor, chunk: Chunk) -> None:
    """Overwrite the places of pictures in `embeds` [tokens, hidden] with their features."""
    for span in chunk.sequence.prompt.spans:
        first, stop = span.places_in(chunk.start, chunk.stop)
        if first < stop and span.features is not None:
            places = torch.tensor(span.places[first:stop], device=embeds.device) - chunk.start
            embeds[places] = span.features[first:stop].to(embeds.dtype)
