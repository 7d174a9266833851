"""Whether the engine computes what transformers' own class computes, on a real checkpoint: ids, pixels, logits."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import psutil
import torch

from onsight.core.engine import Progress
from onsight.core.errors import StartError
from onsight.core.generation import Sampling
from onsight.core.messages import Image, Message, Text
from onsight.engines.torch_engine import kv_cache, loading
from onsight.engines.torch_engine.chat_template import ChatTemplate, find_template
from onsight.engines.torch_engine.cores import Cores
from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.eye import Eye
from onsight.engines.torch_engine.families import load_family
from onsight.engines.torch_engine.families.family import Family
from onsight.engines.torch_engine.feature_cache import FeatureCache
from onsight.engines.torch_engine.memory import require_room
from onsight.engines.torch_engine.prompt import Prompt, lay_out
from onsight.engines.torch_engine.reference import Answer, load_reference
from onsight.engines.torch_engine.runner import Runner
from onsight.engines.torch_engine.sequence import Chunk
from onsight.engines.torch_engine.sequence import Sequence as Request
from onsight.engines.torch_engine.settings import TorchSettings
from onsight.engines.torch_engine.vocabulary import Vocabulary
from onsight.models.card import ModelCard

POSITIONS = 16
"""Logits are compared at the prompt's end and after so many tokens of the answer."""
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-1}
"""Largest difference of a logit: both do the same sums, but not always in the same order, and round in between."""
PIXEL_TOLERANCE = 1e-5
_WATCH_S = 0.01


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt on both sides. `pixel_difference` is None without a picture, infinite where shapes differ."""

    name: str
    prompt_tokens: int
    same_ids: bool
    pixel_difference: float | None
    logit_difference: float
    same_tokens: int
    positions: int


@dataclass(frozen=True, slots=True)
class Side:
    """What one side cost: tokens/s one by one, and the most bytes that were in use: the GPU's, or the process's."""

    tokens_per_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; `ours` and `theirs` are None, and nothing is compared, where transformers has no class."""

    tensors: int
    device: str
    dtype: str
    tolerance: float
    compared: tuple[Compared, ...] = ()
    ours: Side | None = None
    theirs: Side | None = None

    @property
    def passed(self) -> bool:
        """Whether every comparison is within its tolerance; tokens then differ only where two are as likely."""
        return all(
            one.same_ids
            and (one.pixel_difference is None or one.pixel_difference <= PIXEL_TOLERANCE)
            and one.logit_difference <= self.tolerance
            for one in self.compared
        )


def verify(folder: Path, card: ModelCard, settings: TorchSettings, progress: Progress | None = None) -> Report:
    """Check every tensor, then run the same prompts on both sides, one side after the other. Raises StartError."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loading.check_folder(folder, card.replaces_code)
    scheme = loading.saved_scheme(folder)
    if scheme is not None:
        raise StartError(f"{folder} holds {scheme} weights, which transformers cannot read: verify the plain model")
    device = loading.pick_device(settings.device)
    dtype = loading.pick_dtype(settings.dtype, device)
    vocabulary = Vocabulary(folder)
    # Without numbers first: what does not fit the configuration is told before gigabytes are read.
    outline = load_family(card.family, loading.Checkpoint(folder, torch.device("meta"), dtype), vocabulary)
    tensors = loading.require_finite(folder)
    require_room(folder, device, dtype)
    report = Report(tensors, device.type, str(dtype).removeprefix("torch."), TOLERANCES[dtype])
    checkpoint = loading.Checkpoint(folder, device, dtype, progress)
    with _Watch(device) as watch:
        answers = _ask_reference(checkpoint, card, outline)
    if answers is None:
        return report
    theirs = Side(_speed(answers), watch.peak_bytes)
    gc.collect()
    with _Watch(device) as watch:
        ours = _ask_ours(checkpoint, card, vocabulary, answers)
    compared = tuple(_compare(name, *both) for (name, _), *both in zip(prompts(), ours, answers, strict=True))
    return Report(
        report.tensors, report.device, report.dtype, report.tolerance, compared,
        Side(_speed(ours), watch.peak_bytes), theirs,
    )  # fmt: skip


def prompts() -> tuple[tuple[str, tuple[Message, ...]], ...]:
    """(name, messages) of what both sides are asked: about a drawn picture, and without one."""
    return (
        ("a picture", (Message("user", (draw_shapes(), Text("What shapes and colours do you see?"))),)),
        ("text only", (Message("user", (Text("Name three colours and a shape."),)),)),
    )


def draw_shapes() -> Image:
    """Solid shapes: noise would leave many models' answers as they are without a picture."""
    picture = PIL.Image.new("RGB", (640, 480), "white")
    pen = PIL.ImageDraw.Draw(picture)
    pen.rectangle((60, 60, 260, 220), fill=(200, 30, 30))
    pen.ellipse((340, 80, 580, 320), fill=(30, 60, 200))
    pen.polygon(((120, 440), (220, 270), (320, 440)), fill=(20, 150, 60))
    return Image.of(picture.tobytes(), picture.width, picture.height)


def _ask_reference(checkpoint: loading.Checkpoint, card: ModelCard, outline: Family) -> list[Answer] | None:
    """transformers' answers, or None where it has no class for the family; its model is gone afterwards."""
    reference = load_reference(card.family, checkpoint)
    if reference is None:
        return None
    template = outline.chat_template or find_template(checkpoint.folder)
    banned = sorted(token for token in outline.media_token_ids if token < outline.decoder.vocab_rows)
    return [reference.answer(messages, template, POSITIONS + 1, banned) for _, messages in prompts()]


def _ask_ours(
    checkpoint: loading.Checkpoint, card: ModelCard, vocabulary: Vocabulary, answers: Sequence[Answer]
) -> list[Answer]:
    """Our answers to the same prompts, led along the tokens of `answers`, so that every position is comparable."""
    family = load_family(card.family, checkpoint, vocabulary)
    template = ChatTemplate(checkpoint.folder, family.image_text, family.chat_template)
    made = []
    for (_, messages), theirs in zip(prompts(), answers, strict=True):
        images = [image for message in messages for image in message.images]
        plans = [family.plan(image, len(images)) for image in images]
        prompt = lay_out(messages, template, vocabulary, plans, {family.image_token_id})
        family.place(prompt)
        for span, plan in zip(prompt.spans, plans, strict=True):
            span.pixels = family.prepare(plan)
        if len(prompt.token_ids) + len(theirs.tokens) > family.context_tokens:
            raise StartError(
                f"{checkpoint.folder}: the prompt takes {len(prompt.token_ids)} tokens and the answer"
                f" {len(theirs.tokens)}, but the model was made for {family.context_tokens}"
            )
        with torch.inference_mode():
            made.append(_answer(family, checkpoint, vocabulary, prompt, theirs.tokens))
    return made


def _answer(
    family: Family, checkpoint: loading.Checkpoint, vocabulary: Vocabulary, prompt: Prompt, tokens: list[int]
) -> Answer:
    """Read the prompt and then `tokens`, as the step loop does for a request of its own."""
    count = len(prompt.token_ids)
    size = kv_cache.KeyValueSize(1, count + len(tokens))
    cache = kv_cache.KeyValueCache(family.decoder.shape, size, checkpoint.device, checkpoint.dtype)
    cores = Cores(checkpoint.device, family.decoder.layer_weights)
    runner = Runner(family, cache, cores)
    pixels = [span.pixels.values for span in prompt.spans if span.pixels is not None]
    ids = list(prompt.token_ids)
    request = Request(prompt, Sampling(), len(tokens), TextStream(vocabulary, ()), slot=0)
    chunk = Chunk(request, 0, count)
    Eye(family, FeatureCache(0), cores).encode(request.unseen())
    logits = [runner.prefill([chunk]).cpu()]
    request.computed = count
    began_s = time.perf_counter()
    for token in tokens[:-1]:
        request.append(token)
        logits.append(runner.decode([request]).cpu())
        request.computed += 1
    decode_s = max(time.perf_counter() - began_s, 1e-9)
    return Answer(ids, torch.cat(pixels) if pixels else None, tokens, torch.cat(logits), decode_s)


def _compare(name: str, ours: Answer, theirs: Answer) -> Compared:
    return Compared(
        name=name,
        prompt_tokens=len(theirs.prompt),
        same_ids=ours.prompt == theirs.prompt,
        pixel_difference=None if theirs.pixels is None else _difference(ours.pixels, theirs.pixels),
        logit_difference=_difference(ours.logits, theirs.logits),
        same_tokens=int((ours.logits.argmax(-1) == theirs.logits.argmax(-1)).sum()),
        positions=len(theirs.tokens),
    )


def _difference(ours: torch.Tensor | None, theirs: torch.Tensor) -> float:
    """The largest one; infinite where there is not a number for each. Axes that count pictures may differ."""
    if ours is None or ours.numel() != theirs.numel():
        return float("inf")
    return float((ours.flatten() - theirs.flatten()).abs().max())


def _speed(answers: Sequence[Answer]) -> float:
    """Tokens/s of all answers, their first tokens aside."""
    return sum(len(one.tokens) - 1 for one in answers) / sum(one.decode_s for one in answers)


class _Watch:
    """Notes the most memory in use: a GPU's own count, or else what the process holds, looked at again and again."""

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes = 0
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="onsight-watch", daemon=True)

    def __enter__(self) -> _Watch:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self.peak_bytes = int(torch.cuda.max_memory_allocated(self._device))
            return
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, int(process.memory_info().rss))
            if self._done.wait(_WATCH_S):
                return
