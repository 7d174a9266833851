"""From logits to tokens, each sequence by its own rules."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from onsight.engines.torch_engine.sequence import Sequence

_COLDEST = 1e-5
"""A temperature below this is greedy: dividing by it would overflow."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of one sequence; where asked for, its log-probability and those of the likeliest tokens."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses tokens on the device of the logits; everything is sized by the rows of the output head."""

    def __init__(self, vocab_rows: int, forbidden: frozenset[int], vocabulary_size: int, device: torch.device) -> None:
        """`forbidden` ids and those that have no text (`vocabulary_size` and above) are never chosen."""
        self._bias = torch.zeros(vocab_rows, device=device)
        self._bias[[token for token in forbidden if token < vocab_rows]] = -torch.inf
        self._bias[vocabulary_size:] = -torch.inf

    def choose(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Choice]:
        """One choice a row of `logits` [rows, vocab_rows], float32, which stays as it is."""
        scores = logits + self._bias
        for row, sequence in enumerate(sequences):
            _penalize(scores[row], sequence)
            if sequence.grammar is not None:
                allowed = sequence.grammar.allowed(scores.shape[-1]).to(scores.device)
                scores[row].masked_fill_(~allowed, -torch.inf)
        chosen = scores.argmax(dim=-1)
        drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature >= _COLDEST]
        if drawn:
            chosen[drawn] = _draw(scores[drawn], [sequences[row] for row in drawn])
        tokens: list[int] = chosen.tolist()
        reports = _report(logits, chosen, sequences)
        return [reports.get(row) or Choice(token) for row, token in enumerate(tokens)]


def _penalize(scores: torch.Tensor, sequence: Sequence) -> None:
    """OpenAI's penalties over the answer so far: a constant for having come at all, a multiple for each time."""
    presence, frequency = sequence.sampling.presence_penalty, sequence.sampling.frequency_penalty
    if not sequence.counts or not (presence or frequency):
        return
    tokens = torch.tensor(list(sequence.counts), device=scores.device)
    times = torch.tensor(list(sequence.counts.values()), device=scores.device, dtype=scores.dtype)
    scores[tokens] -= presence + frequency * times


def _draw(scores: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """One token a row, drawn with temperature, then top_k, then top_p, each sequence with its own dice."""
    rules = [sequence.sampling for sequence in sequences]
    device, vocab_rows = scores.device, scores.shape[-1]
    temperatures = torch.tensor([rule.temperature for rule in rules], device=device)
    probs = torch.softmax(scores / temperatures[:, None], dim=-1)
    order = None
    if any(rule.top_k or rule.top_p < 1 for rule in rules):
        probs, order = probs.sort(dim=-1, descending=True)
        ranks = torch.arange(vocab_rows, device=device)
        most = torch.tensor([min(rule.top_k or vocab_rows, vocab_rows) for rule in rules], device=device)
        probs = probs * (ranks < most[:, None])
        mass = torch.tensor([rule.top_p for rule in rules], device=device)[:, None] * probs.sum(dim=-1, keepdim=True)
        # A token stays while those before it do not fill top_p yet; the first always stays, as top_p may round to 0.
        probs = probs * ((probs.cumsum(dim=-1) - probs < mass) | (mass >= 1) | (ranks == 0))
    heights = probs.cumsum(dim=-1)
    total = heights[:, -1:]
    dice = torch.tensor([[sequence.roll()] for sequence in sequences], device=device, dtype=heights.dtype)
    # Strictly below the total, else rounding could land on a token without any probability.
    aim = torch.minimum(dice * total, torch.nextafter(total, torch.zeros_like(total)))
    places = torch.searchsorted(heights, aim, right=True).clamp(max=vocab_rows - 1)  # [rows, 1]
    # A GPU adds up in parts, so its heights may fall by a rounding: what that hits without probability is not drawn.
    places = torch.where(probs.gather(-1, places) > 0, places, probs.argmax(dim=-1, keepdim=True))
    if order is not None:
        places = order.gather(-1, places)
    return places[:, 0]


def _report(logits: torch.Tensor, chosen: torch.Tensor, sequences: Rows[Sequence]) -> dict[int, Choice]:
    """Log-probabilities of the model's own distribution (temperature 1, no penalty, no schema), where asked for."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs]
    if not rows:
        return {}
    logprobs = torch.log_softmax(logits[rows], dim=-1)
    own = logprobs.gather(-1, chosen[rows, None])[:, 0].tolist()
    most = max(sequences[row].sampling.top_logprobs for row in rows)
    top, ids = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    tokens = chosen[rows].tolist()
    table = zip(rows, tokens, own, ids.tolist(), top.tolist(), strict=True)
    return {
        row: Choice(token, logprob, tuple(zip(best, values, strict=True))[: sequences[row].sampling.top_logprobs])
        for row, token, logprob, best, values in table
    }
