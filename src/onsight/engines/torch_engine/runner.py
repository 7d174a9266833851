"""The forwards: pictures to features, prompts to first logits, tokens to next logits."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from onsight.core.messages import Image, ImageOptions
from onsight.engines.torch_engine.cores import Cores
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.kv_cache import DecodeWindow, KeyValueCache, PrefillWindow
from onsight.engines.torch_engine.picture_cache import PictureCache
from onsight.engines.torch_engine.prefix import Claim
from onsight.engines.torch_engine.sequence import Chunk, Sequence


class Runner:
    """Runs on the model's thread, under `torch.inference_mode`."""

    def __init__(self, family: Family, cache: KeyValueCache, cores: Cores) -> None:
        self._family = family
        self._decoder = family.decoder
        self._cache = cache
        self._pictures = cache.pictures
        self._cores = cores

    def copy_prefixes(self, claims: Rows[Claim]) -> None:
        """Bring what is reused into the slots that reuse it, before anything overwrites it."""
        for claim in claims:
            if claim.tokens and claim.source != claim.slot:
                self._cache.copy(claim.source, claim.slot, claim.tokens)

    def place_again(self, sequence: Sequence) -> None:
        """Let the family place an outgrown sequence, prompt and answer together; nothing of it is computed then."""
        sequence.read_again()
        self._family.place(sequence.prompt)

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
        self._cores.to_read()
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
        self._cores.to_write()
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

    def rest(self) -> None:
        """There is nothing to run for now."""
        self._cores.rest()

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
