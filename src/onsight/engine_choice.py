"""Which engine runs the model that the settings name, and why: by the kind of file, its family and the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onsight.config import Settings
from onsight.core.engine import ChatEngine, Progress
from onsight.core.errors import StartError
from onsight.engines.fake_engine import FakeEngine
from onsight.engines.upstream_engine import (
    Address,
    Child,
    ChildCommand,
    Patience,
    UpstreamEngine,
    UpstreamSettings,
    Watch,
    llama,
    vllm,
)
from onsight.models.card import ModelCard, card_of_name, find_card
from onsight.models.gguf import (
    GgufModel,
    card_of_gguf,
    check_digest,
    is_mllama,
    locate_gguf,
    names_file,
    names_gguf,
    read_gguf,
    without_sizes,
)
from onsight.models.hub import find_local, is_for_torch, local_folder
from onsight.tasks.roster import Loaded, Roster
from onsight.torch_models import roster_beside, torch_roster

log = logging.getLogger("onsight")

Other = Literal["llama", "vllm", "upstream", "fake"]
Kind = Literal["torch"] | Other

FAKE_CARD = ModelCard(
    name="fake",
    title="The fake engine",
    family="fake",
    licence="Apache-2.0",
    description="No model at all: answers are made up by a rule, for tests.",
    capabilities=("chat", "tools"),
)

_READ_BY: Mapping[str, tuple[Kind | Literal["embed"], ...]] = {
    "mmproj": ("llama",),
    "model_sha256": ("llama",),
    "mmproj_sha256": ("llama",),
    "image_min_tokens": ("llama",),
    "image_max_tokens": ("llama",),
    "llama_server": ("llama",),
    "vllm_args": ("vllm",),
    "upstream": ("upstream",),
    "upstream_key": ("upstream", "llama"),
    "device": ("torch", "llama", "vllm", "embed"),
    "dtype": ("torch", "embed"),
    "quantize": ("torch",),
    "kv_cache_tokens": ("torch",),
    "threads": ("torch", "llama", "embed"),
    "max_queue_tokens": ("torch",),
    "image_cache_mb": ("torch", "llama"),
    "revision": ("torch", "llama", "vllm"),
}
"""Options that not every engine heeds, and those that do ("embed": the model that makes vectors beside one that chats).
Given to another one they stop the start."""

_ROOM = {"max_num_seqs": 256, "max_queue": 512}
"""What is not set of these, in front of a server that batches on GPUs of its own: 256 is vLLM's own bound. The usual
defaults suit one model in this process."""

_CHILD_ONLY = ("threads", "image_cache_mb", "image_min_tokens", "image_max_tokens")
"""What can be told to a llama.cpp only when it is started."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine that is not started yet, the card of its model, and the model's name for clients."""

    engine: ChatEngine
    card: ModelCard
    name: str


def build_roster(settings: Settings, progress: Progress | None) -> Roster:
    """The models that are served, none of them loaded yet; one line of the log says which engine and why.

    Raises StartError.
    """
    kind, reason = choose_kind(settings)
    if kind != "fake":
        readers = {kind, "embed"} if settings.embed_model is not None else {kind}
        unheeded = [option for option, heeding in _READ_BY.items() if readers.isdisjoint(heeding)]
        _refuse(settings, unheeded, f"the engine {kind} ({reason})")
    roster = torch_roster(settings, progress) if kind == "torch" else _other_roster(kind, settings, progress)
    log.info("engine %s: %s", kind, reason)
    return roster


def with_room(settings: Settings) -> Settings:
    """These, with room for as many requests as the engine takes, where they say nothing of it. Raises StartError."""
    if choose_kind(settings)[0] not in ("vllm", "upstream"):
        return settings
    unset = {option: count for option, count in _ROOM.items() if option not in settings.model_fields_set}
    return settings.model_copy(update=unset)


def _refuse(settings: Settings, options: Iterable[str], who: str) -> None:
    """Raises StartError when one of the options is set to more than its default, since it would change nothing."""
    given = settings.model_dump(include=settings.model_fields_set, exclude_defaults=True)
    for option in options:
        if option in given:
            raise StartError(f"option {option} is set, but {who} does not heed it: leave it out")


def _other_roster(kind: Other, settings: Settings, progress: Progress | None) -> Roster:
    if kind == "fake" and settings.embed_model is not None:
        raise StartError(f"the fake engine makes no vectors, but embed_model is {settings.embed_model!r}: drop one")
    chosen = _choose(kind, settings)
    names = settings.served_model_name or (chosen.name,)
    loaded = Loaded(names, chosen.card, chosen.engine, int(time.time()), kind)
    return roster_beside(settings, loaded, progress)


def _choose(kind: Other, settings: Settings) -> Chosen:
    match kind:
        case "fake":
            return Chosen(FakeEngine(), FAKE_CARD, settings.model)
        case "llama":
            return _llama(settings)
        case "vllm":
            return _vllm(settings)
        case "upstream":
            return _upstream(settings)


def choose_kind(settings: Settings) -> tuple[Kind, str]:
    """The engine and the reason. Raises StartError where file and engine do not fit."""
    gguf = names_gguf(settings.model)
    asked = settings.engine
    ollamas = gguf and is_mllama(settings.model)
    if asked in ("torch", "vllm") and gguf and not (ollamas and asked == "torch"):
        raise StartError(f"{settings.model} is a GGUF file, which only the engine llama runs: leave --engine out")
    if asked == "llama" and not gguf:
        raise StartError(
            f"engine is 'llama', but {settings.model} is no GGUF file (.gguf, or a Hub id owner/name:Q4_K_M)"
        )
    if asked != "auto":
        return asked, "as asked for"
    if ollamas:
        return "torch", f"{settings.model} is a Llama 3.2 Vision of Ollama's, which nothing else reads"
    if settings.upstream is not None:
        return "upstream", "--upstream names a server"
    if gguf:
        return "llama", f"{settings.model} is a GGUF file"
    family = _family_for_vllm(settings.model) if settings.vllm is not None and _has_gpu(settings) else None
    if family is not None:
        return "vllm", f"ONSIGHT_VLLM is set, there is a GPU, and vLLM runs the family {family}"
    return "torch", "the files are safetensors, and it runs every family on every device"


def _family_for_vllm(model: str) -> str | None:
    """The family, where vLLM runs such files; of a Hub id only its name is known here."""
    folder = local_folder(model)
    if folder is not None and is_for_torch(folder):
        return None
    card = card_of_name(model) if folder is None else find_card(model, folder)
    return card.family if card is not None and card.family in vllm.FAMILIES else None


def _has_gpu(settings: Settings) -> bool:
    """Without PyTorch, which takes seconds to load and is not needed where vLLM is."""
    return settings.device == "cuda" or (settings.device not in ("cpu", "mps") and Path("/dev/nvidiactl").exists())


def _llama(settings: Settings) -> Chosen:
    if settings.device in ("cuda", "mps"):
        raise StartError(
            f"device is {settings.device!r}, but the llama.cpp of the extra `llama` runs on the CPU: leave it out, and"
            " for a GPU pass --llama-server PATH of your own build"
        )
    files = locate_gguf(settings.model, settings.mmproj, settings.revision)
    for path, digest in zip(files, (settings.model_sha256, settings.mmproj_sha256), strict=True):
        if digest is not None:
            check_digest(path, digest)
    model = read_gguf(*files)
    upstream = replace(_upstream_settings(settings), reserved=model.special_texts, calls_tools=model.calls_tools)
    card = card_of_gguf(settings.model, model)
    name = model.path.stem if names_file(settings.model) else settings.model
    server = settings.llama_server
    if server is not None and server.startswith(("http://", "https://")):
        _refuse(settings, _CHILD_ONLY, "a llama-server that already runs")
        return Chosen(UpstreamEngine(_running(server, settings), Watch(server), upstream), card, name)
    _refuse(settings, ("upstream_key",), "a llama.cpp of our own")
    options = _llama_options(settings, model)
    upstream = replace(upstream, context_tokens=options.context_tokens, slots=options.slots, ours=True)
    if server is None:
        llama.require_library()
    address, command = llama.worker(options) if server is None else llama.own_server(server, options)
    return Chosen(UpstreamEngine(address, _child(settings, command), upstream), card, name)


def _llama_options(settings: Settings, model: GgufModel) -> llama.LlamaOptions:
    plan = llama.plan_cache(model.context_tokens, model.token_bytes, settings.max_model_len, settings.max_num_seqs)
    threads = llama.pick_threads(settings.threads)
    log.info(
        "llama.cpp: %s%s, %d slots of %d tokens, %d threads",
        model.path.name,
        "" if model.mmproj is None else f" with {model.mmproj.name}",
        plan.slots,
        plan.context_tokens,
        threads,
    )
    return llama.LlamaOptions(
        str(model.path),
        None if model.mmproj is None else str(model.mmproj),
        plan.context_tokens,
        plan.slots,
        threads,
        (settings.image_min_tokens, settings.image_max_tokens),
        settings.image_cache_mb,
    )


def _vllm(settings: Settings) -> Chosen:
    if settings.device in ("cpu", "mps"):
        raise StartError(
            f"device is {settings.device!r}, which is not asked of vLLM: its own build decides; leave it out"
        )
    slots = settings.max_num_seqs if "max_num_seqs" in settings.model_fields_set else None
    # What is bundled has a name that vLLM does not know.
    files = str(local_folder(settings.model) or settings.model)
    options = vllm.VllmOptions(
        files, settings.model, settings.revision, settings.max_model_len, slots, settings.vllm_args
    )
    address, command = vllm.vllm_server(settings.vllm, options)
    tools = "--enable-auto-tool-choice" in settings.vllm_args
    upstream = replace(_upstream_settings(settings), calls_tools=tools, ours=True)
    card = _card_of_others(settings.model, tools=tools)
    return Chosen(UpstreamEngine(address, _child(settings, command), upstream), card, settings.model)


def _upstream(settings: Settings) -> Chosen:
    url = settings.upstream
    if url is None:
        raise StartError("the engine upstream needs the URL of a server: pass --upstream URL")
    # A name that nobody gave is the bundled model's, which is not what that server has.
    named = settings.model if "model" in settings.model_fields_set else None
    upstream = replace(_upstream_settings(settings), model=named)
    card = _card_of_others(named or "upstream", tools=True)
    return Chosen(UpstreamEngine(_running(url, settings), Watch(url), upstream), card, named or "upstream")


def _running(url: str, settings: Settings) -> Address:
    """Of somebody else's server, whose URL may end with /v1, as clients of OpenAI's API write it."""
    return Address(url.rstrip("/").removesuffix("/v1"), key=settings.upstream_key)


def _child(settings: Settings, command: ChildCommand) -> Child:
    return Child(command, Patience(stall_s=settings.stall_timeout_s))


def _upstream_settings(settings: Settings) -> UpstreamSettings:
    return UpstreamSettings(settings.max_model_len, with_room(settings).max_num_seqs, settings.stall_timeout_s)


def _card_of_others(model: str, *, tools: bool) -> ModelCard:
    """The card for a model whose files we may not have; one that chats, and no more, where nothing is known of it."""
    folder = find_local(model) if Path(model).is_dir() else None
    known = card_of_name(model) if folder is None else find_card(model, folder)
    if known is not None:
        return without_sizes(known, tools=tools)
    capabilities: tuple[Literal["chat", "tools"], ...] = ("chat", "tools") if tools else ("chat",)
    return ModelCard("upstream", model, "upstream", "see its source", "A model on another server.", capabilities)
