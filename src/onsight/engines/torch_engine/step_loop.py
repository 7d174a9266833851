"""The loop that owns the model: takes requests in, runs step after step, and posts what each one brought."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from queue import Empty, SimpleQueue

import torch

from onsight.core.engine import EngineStatus
from onsight.core.errors import EngineFailed, RequestError
from onsight.core.generation import Candidate, Event, Finished, FinishReason, TextDelta, TokenLogprob
from onsight.engines.torch_engine.eye import Eye, Seen
from onsight.engines.torch_engine.runner import Runner
from onsight.engines.torch_engine.sampling import Choice, Sampler
from onsight.engines.torch_engine.scheduler import Batch, Scheduler
from onsight.engines.torch_engine.sequence import Chunk, Sequence
from onsight.engines.torch_engine.vocabulary import Vocabulary

log = logging.getLogger(__name__)

FAILED = "the engine failed on this request; the server's log says why"

Outbox = list[tuple[Sequence, Event | RequestError]]
"""What one step has to say, and to whom."""


class StepLoop:
    """`submit`, `wake` and `stop` may be called from any thread; `run` and all the rest happen on the model's own."""

    def __init__(
        self,
        eye: Eye,
        runner: Runner,
        sampler: Sampler,
        scheduler: Scheduler,
        vocabulary: Vocabulary,
        end_token_ids: frozenset[int],
    ) -> None:
        self._eye = eye
        self._runner = runner
        self._sampler = sampler
        self._scheduler = scheduler
        self._vocabulary = vocabulary
        self._ends = end_token_ids
        self._features = eye.features
        self._inbox: SimpleQueue[Sequence | Seen | None] = SimpleQueue()
        self._outbox: Outbox = []
        self._stopping = False
        self._steps = self._prompt_tokens = self._cached_tokens = 0
        self.status = EngineStatus("ready", "")

    def submit(self, sequence: Sequence) -> None:
        self._inbox.put(sequence)

    def wake(self) -> None:
        """Look again: a sequence was cancelled."""
        self._inbox.put(None)

    def stop(self) -> None:
        """Return from `run` after the step in progress."""
        self._stopping = True
        self.wake()

    def run(self, post: Callable[[Outbox], object]) -> None:
        """Step until stopped; `post` is called after each half of a step that has something to say."""
        self._eye.open(self._inbox.put)
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._take_in()
                    self._step(self._scheduler.schedule(), post)
        finally:
            self._eye.close()

    def _take_in(self) -> None:
        """Take in what is new, and whose pictures were seen; wait for it when there is nothing else to do."""
        idle = self._scheduler.idle
        if idle:
            self._runner.rest()
        try:
            self._take(self._inbox.get(block=idle))
            while True:
                self._take(self._inbox.get_nowait())
        except Empty:
            self._scheduler.drop_cancelled()

    def _take(self, found: Sequence | Seen | None) -> None:
        if isinstance(found, Sequence):
            self._scheduler.add(found)
        elif found is not None:
            found.sequence.looking = False
            if found.broken and found.sequence in self._scheduler.running:
                self._fail([found.sequence])

    def _step(self, batch: Batch, post: Callable[[Outbox], object]) -> None:
        for claim in batch.claims:
            self._cached_tokens += claim.tokens
        self._runner.copy_prefixes(batch.claims)
        if batch.look:
            self._eye.look(batch.look)
        if batch.prefill:
            self._prefill(batch.prefill)
            # A first token leaves at once and does not wait for the other answers' next ones.
            self._publish(post)
        if batch.decode:
            self._decode(batch.decode)
        self._steps += bool(batch.prefill or batch.decode)
        self._publish(post)

    def _publish(self, post: Callable[[Outbox], object]) -> None:
        self.status = self._look()
        if self._outbox:
            post(self._outbox)
            self._outbox = []

    def _prefill(self, chunks: Rows[Chunk]) -> None:
        said = [len(chunk.sequence.answer) for chunk in chunks]
        try:
            logits = self._runner.prefill(chunks)
            for chunk in chunks:
                self._scheduler.computed(chunk.sequence, chunk.stop)
            ended = [row for row, chunk in enumerate(chunks) if chunk.last]
            self._advance([chunks[row].sequence for row in ended], logits[ended])
        except Exception:  # the engine's boundary: whatever breaks concerns these requests only
            if len(chunks) == 1:
                log.exception("a prompt could not be read; its request fails with it")
                self._fail([chunks[0].sequence])
                return
            # One prompt must not take its neighbours with it: find the culprit by reading each alone.
            log.warning("reading %d prompts together failed; reading each alone", len(chunks), exc_info=True)
            for chunk, count in zip(chunks, said, strict=True):
                if len(chunk.sequence.answer) == count:
                    self._prefill([chunk])

    def _decode(self, sequences: Rows[Sequence]) -> None:
        for sequence in [one for one in sequences if one.outgrown]:
            self._runner.place_again(sequence)
            self._scheduler.computed(sequence, 0)
        sequences = [one for one in sequences if one.prefilled]
        if not sequences:
            return
        try:
            logits = self._runner.decode(sequences)
            for sequence in sequences:
                self._scheduler.computed(sequence, sequence.computed + 1)
            self._advance(sequences, logits)
        except Exception:  # the engine's boundary: whatever breaks concerns these requests only
            log.exception("a step failed; %d request(s) with it", len(sequences))
            self._fail([sequence for sequence in sequences if sequence in self._scheduler.running])

    def _fail(self, sequences: Rows[Sequence]) -> None:
        for sequence in sequences:
            self._scheduler.retire(sequence)
            self._outbox.append((sequence, EngineFailed(FAILED)))

    def _advance(self, sequences: Rows[Sequence], logits: torch.Tensor) -> None:
        """Choose each sequence's next token from `logits` [sequences, vocab_rows] and tell its caller."""
        if not sequences:
            return
        for sequence, choice in zip(sequences, self._sampler.choose(logits, sequences), strict=True):
            if not sequence.answer:
                self._prompt_tokens += sequence.prompt_tokens
            text, reason = self._append(sequence, choice.token_id)
            logprobs = () if choice.logprob is None or choice.token_id in self._ends else (self._name(choice),)
            if text or logprobs:
                self._outbox.append((sequence, TextDelta(text, logprobs)))
            if reason is not None:
                self._scheduler.retire(sequence)
                self._outbox.append((sequence, Finished(reason, sequence.usage(), sequence.views())))

    def _append(self, sequence: Sequence, token_id: int) -> tuple[str, FinishReason | None]:
        """Append a token; the text that became ready, and why the answer ends here, if it does."""
        sequence.append(token_id)
        if token_id in self._ends:
            return sequence.text.finish(), "stop"
        text = sequence.text.push(token_id)
        if sequence.grammar is not None:
            sequence.grammar.accept(token_id)
        if sequence.text.stopped:
            return text, "stop"
        if sequence.grammar is not None and sequence.grammar.complete:
            return text + sequence.text.finish(), "stop"
        if len(sequence.answer) >= sequence.limit:
            return text + sequence.text.finish(), "length"
        return text, None

    def _name(self, choice: Choice) -> TokenLogprob:
        """Token ids to texts and bytes."""
        chosen = self._candidate(choice.token_id, choice.logprob or 0.0)
        return TokenLogprob(chosen, tuple(self._candidate(token, logprob) for token, logprob in choice.top))

    def _candidate(self, token_id: int, logprob: float) -> Candidate:
        data = self._vocabulary.label(token_id)
        return Candidate(data.decode("utf-8", "replace"), data, logprob)

    def _look(self) -> EngineStatus:
        """What `status` says until the next step."""
        running = self._scheduler.running
        return EngineStatus(
            state="ready",
            device="",
            running=len(running),
            waiting=len(self._scheduler.waiting),
            kv_used_tokens=sum(sequence.computed for sequence in running),
            image_cache_bytes=self._features.bytes,
            image_cache_hits_total=self._features.hits,
            image_cache_misses_total=self._features.misses,
            prefix_cached_tokens_total=self._cached_tokens,
            prompt_tokens_total=self._prompt_tokens,
            steps_total=self._steps,
        )
