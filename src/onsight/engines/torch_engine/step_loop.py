"""The loop that owns the model: takes requests in, runs step after step, and posts what each one brought.

What breaks is caught as BaseException: a panic in a library that is written in Rust (grammars, tokenizers) is no
Exception, and no signal reaches this thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from queue import Empty, SimpleQueue

import torch

from onsight.core.engine import EngineStatus
from onsight.core.errors import RequestError
from onsight.core.generation import Candidate, Event, Finished, FinishReason, TextDelta, TokenLogprob
from onsight.engines.torch_engine.eye import Eye, Seen
from onsight.engines.torch_engine.failures import failure_of
from onsight.engines.torch_engine.pulse import Pulse
from onsight.engines.torch_engine.runner import Runner
from onsight.engines.torch_engine.sampling import Choice, Sampler
from onsight.engines.torch_engine.scheduler import Batch, Scheduler
from onsight.engines.torch_engine.sequence import Chunk, Sequence
from onsight.engines.torch_engine.vocabulary import Vocabulary

log = logging.getLogger(__name__)

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
        self.pulse = Pulse()
        self._steps = self._step_requests = self._prompt_tokens = self._cached_tokens = 0
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
        # Who runs while there is nothing to do here has pictures that are looked at elsewhere.
        self.pulse.beat(busy=not idle or bool(self._scheduler.running))
        try:
            found = self._inbox.get(block=idle)
            self.pulse.beat()
            self._take(found)
            while True:
                self._take(self._inbox.get_nowait())
        except Empty:
            self._scheduler.drop_cancelled()

    def _take(self, found: Sequence | Seen | None) -> None:
        if isinstance(found, Sequence):
            self._scheduler.add(found)
        elif found is not None:
            found.sequence.looking = False
            if found.broken is not None and found.sequence in self._scheduler.running:
                self._fail(found.sequence, found.broken)

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
        self._step_requests += len(batch.prefill) + len(batch.decode)
        self._publish(post)

    def _publish(self, post: Callable[[Outbox], object]) -> None:
        self.status = self._look()
        if self._outbox:
            post(self._outbox)
            self._outbox = []

    def _prefill(self, chunks: Rows[Chunk]) -> None:
        try:
            logits = self._runner.prefill(chunks)
            rows = [row for row, chunk in enumerate(chunks) if chunk.last]
            ended = [chunks[row].sequence for row in rows]
            choices = self._sampler.choose(logits[rows], ended) if rows else []
        except BaseException as error:  # the engine's boundary: whatever breaks concerns these requests only
            if len(chunks) == 1:
                log.exception("a prompt could not be read; its request fails with it")
                self._fail(chunks[0].sequence, error)
                return
            # One prompt must not take its neighbours with it: find the culprit by reading each alone.
            log.warning("reading %d prompts together failed; reading each alone", len(chunks), exc_info=True)
        else:
            for chunk in chunks:
                self._scheduler.computed(chunk.sequence, chunk.stop)
            self._advance(ended, choices)
            return
        # Outside of the handler, which would keep alive whatever the failed forward held.
        for chunk in chunks:
            self._prefill([chunk])

    def _decode(self, sequences: Rows[Sequence]) -> None:
        for sequence in [one for one in sequences if one.outgrown]:
            self._runner.place_again(sequence)
            self._scheduler.computed(sequence, 0)
        sequences = [one for one in sequences if one.prefilled]
        if not sequences:
            return
        try:
            choices = self._sampler.choose(self._runner.decode(sequences), sequences)
        except BaseException as error:  # the engine's boundary: whatever breaks concerns these requests only
            if len(sequences) == 1:
                log.exception("a step failed; its request fails with it")
                self._fail(sequences[0], error)
                return
            log.warning("a step of %d answers failed; going on with each alone", len(sequences), exc_info=True)
        else:
            for sequence in sequences:
                self._scheduler.computed(sequence, sequence.computed + 1)
            self._advance(sequences, choices)
            return
        # Nothing of the failed step counts: its keys and values are written again, over the same places.
        for sequence in sequences:
            self._decode([sequence])

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        self._scheduler.retire(sequence)
        self._outbox.append((sequence, failure_of(error)))

    def _advance(self, sequences: Rows[Sequence], choices: Rows[Choice]) -> None:
        """Give each sequence its next token and tell its caller."""
        for sequence, choice in zip(sequences, choices, strict=True):
            if not sequence.answer:
                self._prompt_tokens += sequence.prompt_tokens
            try:
                text, reason = self._append(sequence, choice.token_id)
                logprobs = () if choice.logprob is None or choice.token_id in self._ends else (self._name(choice),)
            except BaseException as error:  # the engine's boundary: a grammar or a text concerns its own request only
                log.exception("a token could not be taken; its request fails with it")
                self._fail(sequence, error)
                continue
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
            step_requests_total=self._step_requests,
        )
