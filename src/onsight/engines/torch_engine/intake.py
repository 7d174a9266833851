"""From a request to a sequence that can run: media planned and prepared, the prompt laid out, the limits checked."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace

from onsight.core.errors import ContextTooLong, InvalidRequest, Unsupported
from onsight.core.generation import GenerateRequest
from onsight.core.messages import Image, Video
from onsight.engines.torch_engine.chat_template import ChatTemplate
from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.feature_cache import FeatureCache
from onsight.engines.torch_engine.grammar import Grammar, GrammarCompiler
from onsight.engines.torch_engine.prompt import ImagePlan, Pixels, Plan, Prompt, VideoPlan, lay_out
from onsight.engines.torch_engine.sequence import Sequence
from onsight.engines.torch_engine.tool_calls import CallReader
from onsight.engines.torch_engine.vocabulary import Vocabulary


class Intake:
    """Runs in the pool, on several threads at once: neither the event loop nor the model waits for it."""

    def __init__(
        self,
        family: Family,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        grammars: GrammarCompiler,
        features: FeatureCache,
        context_tokens: int,
    ) -> None:
        self._family = family
        self._vocabulary = vocabulary
        self._template = template
        self._grammars = grammars
        self._features = features
        self._context_tokens = context_tokens

    def read(self, request: GenerateRequest) -> Sequence:
        """Make the sequence. Raises InvalidRequest, Unsupported or ContextTooLong, before any pixel is touched."""
        media = [part for message in request.messages for part in message.media]
        images = sum(isinstance(part, Image) for part in media)
        plans = [self._plan(part, images) for part in media]
        watcher = self._family.watcher
        ids = {self._family.image_token_id, None if watcher is None else watcher.token_id}
        tools = request.tools
        offered = () if tools is None else tools.tools
        fits = sum(len(plan.token_ids) for plan in plans) < self._context_tokens
        # Media that do not fit are counted, not written: of some, a request says itself how many tokens they take.
        written = plans if fits else [replace(plan, token_ids=()) for plan in plans]
        prompt = lay_out(request.messages, self._template, self._vocabulary, written, ids, offered)
        limit = self._limit(prompt, plans, request.sampling.max_tokens)
        grammar = self._grammar(request)
        self._family.place(prompt)
        if tools is None:
            text, reader = TextStream(self._vocabulary, request.sampling.stop), None
        else:
            syntax = self._family.tool_syntax
            text, reader = TextStream(self._vocabulary, request.sampling.stop, syntax.opens), CallReader(syntax)
        return Sequence(prompt, request.sampling, limit, text, grammar, reader, request.caller)

    def _grammar(self, request: GenerateRequest) -> Grammar | None:
        """What the answer must keep to, if anything."""
        tools, syntax = request.tools, self._family.tool_syntax
        if tools is None:
            return None if request.schema is None else self._grammars.compile(request.schema)
        if tools.parallel and not syntax.parallel:
            raise Unsupported(
                "this model makes one call an answer; leave parallel_tool_calls out or send false",
                param="parallel_tool_calls",
            )
        return self._grammars.compile_calls(tools, syntax, request.schema)

    def _plan(self, part: Image | Video, images: int) -> Plan:
        if isinstance(part, Image):
            return self._family.plan(part, images)
        if self._family.watcher is None:
            raise Unsupported("this model does not see videos; send pictures of it", param="messages.video_url")
        return self._family.watcher.plan(part)

    def look(self, prompt: Prompt) -> None:
        """Find each picture's and video's features, or prepare its pixels; what comes twice is prepared once."""
        prepared: dict[str, Pixels] = {}
        for span in prompt.spans:
            span.features = self._features.find(span.plan.key)
            if span.features is None:
                key = span.plan.key
                if key not in prepared:
                    prepared[key] = self._prepare(span.plan)
                span.pixels = prepared[key]

    def _prepare(self, plan: Plan) -> Pixels:
        if isinstance(plan, VideoPlan) and self._family.watcher is not None:
            return self._family.watcher.prepare(plan)
        if isinstance(plan, ImagePlan):
            return self._family.prepare(plan)
        raise RuntimeError("a video was planned by a family that sees none")

    def _limit(self, prompt: Prompt, plans: Rows[Plan], max_tokens: int | None) -> int:
        """Most tokens to answer with: as asked, and no more than the context still holds."""
        if max_tokens is not None and max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {max_tokens}; it must be at least 1", param="max_tokens")
        text = len(prompt.token_ids) - prompt.image_tokens - prompt.video_tokens
        taken = text + sum(len(plan.token_ids) for plan in plans)
        room = self._context_tokens - taken
        if room >= 1:
            return min(max_tokens or room, room)
        videos = [plan for plan in plans if isinstance(plan, VideoPlan)]
        counts = [f"text {text}", *_counts("picture", [plan for plan in plans if isinstance(plan, ImagePlan)])]
        counts += _counts("video", videos)
        fewer = ", or fewer frames of a video (fps, max_frames)" if videos else ""
        raise ContextTooLong(
            f"the prompt takes {taken} tokens ({', '.join(counts)}) and an answer at least 1 more,"
            f" but the context holds {self._context_tokens}: shorten the text,"
            f" or send fewer or smaller pictures{fewer}",
            param="messages",
        )


def _counts(noun: str, plans: Rows[Plan]) -> list[str]:
    return [f"{noun} {number}: {len(plan.token_ids)}" for number, plan in enumerate(plans, 1)]
