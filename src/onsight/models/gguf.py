"""A model as GGUF files, for llama.cpp: where they are, whether the two belong together, and the card for them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onsight.core.errors import StartError
from onsight.models.card import Capability, ModelCard, card_of_name, cards
from onsight.models.gguf_header import GgufHeader, is_gguf, read_header
from onsight.models.gguf_mllama import ARCHITECTURE as MLLAMA
from onsight.models.hub import cached_files, fetch_files

log = logging.getLogger(__name__)

_KEY_VALUE_BYTES = 2
"""Of one number in llama.cpp's cache, which holds half floats."""
_CONTROL = 3
"""Type of the tokens that mark turns and pictures."""
_NO_PROGRAM = {
    "mllama": (
        "Llama 3.2 Vision was never part of llama.cpp; the torch engine reads Ollama's file by its path, without"
        " --engine llama, and the safetensors files of meta-llama/Llama-3.2-11B-Vision-Instruct"
    ),
    "phi3v": (
        "Phi-3-vision was never part of llama.cpp: serve microsoft/Phi-3.5-vision-instruct, its safetensors files, on"
        " the torch engine"
    ),
}
_PROJECTORS = {
    "idefics3": "SmolVLMForConditionalGeneration",
    "qwen2.5vl_merger": "Qwen2_5_VLForConditionalGeneration",
}
"""What a mmproj calls its way from picture to words -> the architecture in config.json of the same model."""
_MADE_FOR = {
    "idefics3": ("llama", "granite"),
    "qwen2vl_merger": ("qwen2vl",),
    "qwen2.5vl_merger": ("qwen2vl",),
    "gemma3": ("gemma3",),
    "llama4": ("llama4",),
}
"""The same -> the architectures of the models that read it, where it is made for these alone."""
_PREFERRED = ("f16", "bf16", "f32", "q8_0")
"""Which of several mmproj files is taken, by what is in its name."""


@dataclass(frozen=True, slots=True)
class GgufModel:
    """Files that llama.cpp can load together. `special_texts`: what it would not read as plain words.

    `token_bytes`: keys and values of one token. `calls_tools`: its chat template can be told of tools.
    """

    path: Path
    mmproj: Path | None
    name: str
    architecture: str
    projector: str
    context_tokens: int
    token_bytes: int
    special_texts: frozenset[str]
    calls_tools: bool


def is_mllama(model: str) -> bool:
    """Whether `model` is the path of a Llama 3.2 Vision as Ollama wrote it, which the torch engine reads."""
    path = Path(model).expanduser()
    return is_gguf(path) and read_header(path).text("general.architecture") == MLLAMA


def names_gguf(model: str) -> bool:
    """Whether `model` names a GGUF file, or one on the Hub, as owner/name:Q4_K_M does."""
    owner, colon, tag = model.rpartition(":")
    return names_file(model) or (bool(colon) and owner.count("/") == 1 and bool(tag) and "/" not in tag)


def names_file(model: str) -> bool:
    """Whether `model` is the path of a GGUF file, by its ending or, where it has none, by what the file begins with."""
    return model.endswith(".gguf") or is_gguf(Path(model).expanduser())


def locate_gguf(model: str, mmproj: str | None, revision: str | None) -> tuple[Path, Path | None]:
    """The files of `model` (a path or owner/name:TAG, cached or downloaded) and of its mmproj, if it has one; `mmproj`
    "none" leaves that out. Raises StartError."""
    if names_file(model):
        if revision is not None:
            raise StartError(f"revision is {revision!r}, but {model} is a file: only Hub ids have revisions")
        return _with_mmproj(Path(model).expanduser(), mmproj)
    repository, _, tag = model.rpartition(":")
    folder, names = fetch_files(
        repository,
        revision,
        lambda listed: _of_tag(listed, tag),
        lambda chosen: mmproj is not None or any(map(_is_mmproj, chosen)),
    )
    return _with_mmproj(folder / names[0], mmproj)


def find_gguf(model: str, mmproj: str | None, revision: str | None) -> tuple[Path, Path | None] | None:
    """As `locate_gguf`, but asks nobody: None for a Hub id that is not in the cache."""
    if names_file(model):
        return locate_gguf(model, mmproj, revision)
    repository, _, tag = model.rpartition(":")
    here = cached_files(repository, revision, lambda listed: _of_tag(listed, tag))
    return None if here is None else _with_mmproj(here[0] / here[1][0], mmproj)


def _with_mmproj(path: Path, mmproj: str | None) -> tuple[Path, Path | None]:
    if not path.is_file():
        raise StartError(f"there is no file {path}: give the path of a .gguf file, or a Hub id like owner/name:Q4_K_M")
    if mmproj == "none":
        return path, None
    if mmproj is None:
        beside = [one.name for one in path.parent.glob("*mmproj*.gguf") if one != path]
        chosen = _choose_mmproj(beside, path.stem)
        return path, None if chosen is None else path.with_name(chosen)
    given = Path(mmproj).expanduser()
    # As other servers' settings give it: a name in the model's folder.
    found = given if given.is_file() else path.parent / mmproj
    if not found.is_file():
        raise StartError(f"there is no mmproj file {mmproj}, neither by itself nor beside {path.name}")
    return path, found


def _of_tag(listed: Sequence[str], tag: str) -> list[str]:
    """The model's files of that quantisation, the first part first, then its mmproj. Raises StartError."""
    files = sorted(name for name in listed if name.endswith(".gguf"))
    models = [name for name in files if not _is_mmproj(name)]
    chosen = [name for name in models if _has_word(name, tag)]
    if not chosen:
        raise StartError(f"there is no GGUF file for {tag!r}; there are {', '.join(models) or 'none'}")
    mmproj = _choose_mmproj([name for name in files if name not in models], Path(chosen[0]).stem)
    return chosen if mmproj is None else [*chosen, mmproj]


def _has_word(name: str, word: str) -> bool:
    """Whether that is a word of the name: F16 is none of BF16's, and Q4_K none of Q4_K_M's."""
    return re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9_])", name.lower()) is not None


def _is_mmproj(name: str) -> bool:
    return "mmproj" in name.lower()


def _choose_mmproj(names: Sequence[str], stem: str) -> str | None:
    """The one named after the model, else the first one by precision; None where there is none."""
    named = [name for name in names if stem in name]
    for precision in _PREFERRED:
        named += sorted(name for name in names if _has_word(name, precision))
    return next(iter([*named, *sorted(names)]), None)


def read_gguf(path: Path, mmproj: Path | None) -> GgufModel:
    """Look into both files. Raises StartError for those that are broken, foreign to llama.cpp or to each other."""
    header = read_header(path)
    architecture = header.text("general.architecture")
    if architecture in _NO_PROGRAM:
        raise StartError(f"{path} holds a model of architecture {architecture}: {_NO_PROGRAM[architecture]}")
    if architecture == "clip":
        raise StartError(
            f"{path} holds the part that sees (mmproj) only: give the model's own file, and this as --mmproj"
        )
    width = header.number(f"{architecture}.embedding_length")
    context = header.number(f"{architecture}.context_length")
    if not width or not context or not header.tensors:
        raise StartError(f"{path} holds no language model: general.architecture is {architecture!r}")
    return GgufModel(
        path,
        mmproj,
        header.text("general.name") or path.stem,
        architecture,
        "" if mmproj is None else _projector(path, header, mmproj),
        context,
        _token_bytes(header, architecture, width),
        _special_texts(header),
        "tools" in header.text("tokenizer.chat_template"),
    )


def _projector(path: Path, model: GgufHeader, mmproj: Path) -> str:
    """How the mmproj's pictures become the model's tokens. Raises StartError when it was made for another model."""
    header = read_header(mmproj)
    if header.text("general.architecture") != "clip":
        raise StartError(f"{mmproj} is no mmproj: general.architecture is {header.text('general.architecture')!r}")
    architecture = model.text("general.architecture")
    width = model.number(f"{architecture}.embedding_length")
    projector = header.text("clip.vision.projector_type") or header.text("clip.projector_type")
    families = _MADE_FOR.get(projector, (architecture,))
    made_for = header.number("clip.vision.projection_dim")
    # Of other projectors this may be anything: MiniCPM-V's files have 0, old LLaVA's the width of what sees.
    if projector in _MADE_FOR and made_for not in (0, width):
        raise StartError(
            f"{mmproj} belongs to another model: it makes vectors of {made_for} numbers, and {path.name} reads {width};"
            " give the mmproj that came with the model"
        )
    if architecture not in families:
        raise StartError(
            f"{mmproj} belongs to another model: its {projector} makes pictures for {' or '.join(families)}, and"
            f" {path.name} is {architecture}; give the mmproj that came with the model"
        )
    names = [one.text("general.basename") for one in (header, model)]
    if all(names) and names[0] != names[1]:
        log.warning("%s calls its model %r, and %s %r: do they belong together?", mmproj, names[0], path, names[1])
    return projector


def _token_bytes(header: GgufHeader, architecture: str, width: int) -> int:
    heads = header.number(f"{architecture}.attention.head_count", 1)
    shared = header.number(f"{architecture}.attention.head_count_kv", heads)
    size = width // max(heads, 1)
    sizes = (header.number(f"{architecture}.attention.{side}_length", size) for side in ("key", "value"))
    return header.number(f"{architecture}.block_count", 1) * shared * sum(sizes) * _KEY_VALUE_BYTES


def _special_texts(header: GgufHeader) -> frozenset[str]:
    tokens, kinds = header.items("tokenizer.ggml.tokens"), header.items("tokenizer.ggml.token_type")
    pairs = zip(tokens, kinds, strict=False)
    return frozenset(token for token, kind in pairs if kind == _CONTROL and isinstance(token, str) and token)


def card_of_gguf(asked: str, model: GgufModel) -> ModelCard:
    """The card for a GGUF model: its family's where that is known, less what llama.cpp cannot do for it."""
    name = asked.rpartition(":")[0] if not names_file(asked) else model.name
    family = card_of_name(name) or card_of_name(model.name)
    if family is None:
        wanted = _PROJECTORS.get(model.projector)
        family = next((card for card in cards() if wanted in card.architectures), None)
    sees = model.mmproj is not None
    if family is None or not sees:
        tools: tuple[Capability, ...] = ("tools",) if model.calls_tools else ()
        return ModelCard(
            "gguf",
            model.name,
            model.architecture,
            "see its source",
            f"{model.name}, a GGUF file.",
            ("chat", *tools),
            sees=sees,
        )
    return without_sizes(family, tools=model.calls_tools)


def without_sizes(card: ModelCard, *, tools: bool) -> ModelCard:
    """`card` for an engine that cannot say how large its model saw a picture, is shown no videos, and honours no
    bounds on pixels."""
    lost = {"video", *(() if tools else ("tools",)), *(("locate",) if card.convention == "resized_pixels" else ())}
    left = tuple(one for one in card.capabilities if one not in lost)
    prompts = {
        name: prompt for name, prompt in (card.prompts or {}).items() if "locate" in left or prompt.notation is None
    }
    convention = card.convention if "locate" in left else None
    return replace(card, capabilities=left, prompts=prompts, convention=convention, frames=None, pixels=None)


def check_digest(path: Path | None, expected: str) -> None:
    """Raises StartError unless there is a file and its SHA-256 is `expected` (hex)."""
    if path is None:
        raise StartError(f"the SHA-256 of an mmproj is pinned ({expected}), but the model has none: give --mmproj")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise StartError(
            f"{path} has the SHA-256 {found}, not {expected}: it is another file than the one that was pinned"
        )
