"""A checkpoint's tokens: text to ids, with special tokens only where the template wrote them, and ids back to bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from onsight.core.errors import StartError
from onsight.engines.torch_engine.loading import read_json, read_optional_json


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE (GPT-2) writes each byte as one printable character: itself, or one from U+0100 on."""
    shaped = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shaped]
    return {chr(byte): byte for byte in shaped} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class Vocabulary:
    """BPE as `tokenizer.json` describes it: byte-level, or sentencepiece's (with `▁` for a blank, `<0x0A>` for a byte).

    Two tokenizers stand behind it: one knows the special tokens, the other has never heard of them, so that a user who
    types `<image>` has typed seven plain characters.
    """

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json` in `folder`. Raises StartError when it is missing or of another kind."""
        self.path = folder / "tokenizer.json"
        table = read_json(self.path)
        kinds = _kinds(table.get("decoder"))
        if not kinds & {"ByteLevel", "ByteFallback"} or _prepends_once(table.get("pre_tokenizer")):
            raise StartError(
                f"{self.path} is neither a byte-level tokenizer nor sentencepiece's with a blank before every piece of"
                " text, the only kinds that this engine reads"
            )
        self._piece_bytes: Callable[[str], bytes] = _byte_level_bytes if "ByteLevel" in kinds else _sentencepiece_bytes
        self.drops_first_blank = "ByteLevel" not in kinds and bool(kinds & {"Strip", "Metaspace"})
        """Whether an answer's text begins without the blank that its first token carries."""
        self._full = Tokenizer.from_str(json.dumps(table))
        self._plain = Tokenizer.from_str(json.dumps(table | {"added_tokens": [], "post_processor": None}))
        self._added: dict[int, AddedToken] = dict(self._full.get_added_tokens_decoder())
        self._specials = _pattern(self._added.values())
        self._bytes: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """Ids at and past this have no text."""
        return int(self._full.get_vocab_size(with_added_tokens=True))

    def find(self, token: str) -> int | None:
        """The id of one token by its exact content."""
        found: int | None = self._full.token_to_id(token)
        return found

    def those_of(self, *tokens: str) -> frozenset[int]:
        """The ids of such of these tokens as there are."""
        return frozenset(found for token in tokens if (found := self.find(token)) is not None)

    def require(self, token: str) -> int:
        """The id of a token that the family cannot do without. Raises StartError."""
        found = self.find(token)
        if found is None:
            raise StartError(f"{self.path} has no token {token!r}, which this family needs")
        return found

    def encode(self, runs: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of neighbouring pieces of text, each with True where special tokens count (the template's own words).

        Plain text on both sides of a piece's border is tokenised together, as it would be in one string.
        """
        ids: list[int] = []
        plain = ""
        swallow = False
        for text, trusted in runs:
            for place, piece in enumerate(self._specials.split(text) if trusted else [text]):
                if place % 2 == 0:
                    # Blanks after a token that swallows them are nobody's, though they be the user's.
                    plain += piece.lstrip() if swallow and not plain else piece
                    continue
                ids += self._encode_plain(plain)
                ids.append(self.require(piece.strip()))
                plain, swallow = "", self._added[ids[-1]].rstrip
        return ids + self._encode_plain(plain)

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []

    def data(self, token_id: int) -> bytes:
        """The bytes that a token adds to an answer; none for special tokens and for ids without text."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._read_bytes(token_id)
        return known

    def _read_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return b"" if added.special else added.content.encode()
        token = self._full.id_to_token(token_id) or ""
        return self._piece_bytes(token)

    def label(self, token_id: int) -> bytes:
        """A token's bytes for people who read log-probabilities: special tokens by their names."""
        added = self._added.get(token_id)
        return self.data(token_id) if added is None else added.content.encode()


def _byte_level_bytes(token: str) -> bytes:
    return bytes(BYTE_OF_CHARACTER[character] for character in token if character in BYTE_OF_CHARACTER)


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _kinds(decoder: object) -> set[str]:
    """The types of a decoder and of all that it is made of."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*(_kinds(one) for one in decoder.get("decoders", [])))


def _prepends_once(pre_tokenizer: object) -> bool:
    """Whether sentencepiece's blank comes before the first piece only, which needs the whole prompt in one string."""
    if not isinstance(pre_tokenizer, dict):
        return False
    inner = pre_tokenizer.get("pretokenizers", [])
    return pre_tokenizer.get("prepend_scheme") == "first" or any(_prepends_once(one) for one in inner)


def _pattern(added: Iterable[AddedToken]) -> re.Pattern[str]:
    """One group that matches any special token, longest first, with the blanks that it swallows."""
    tokens = sorted(added, key=lambda token: -len(token.content))
    if not tokens:
        return re.compile(r"((?!))")
    return re.compile("(" + "|".join(_spelling(token) for token in tokens) + ")")


def _spelling(token: AddedToken) -> str:
    blanks_left = r"\s*" if token.lstrip else ""
    blanks_right = r"\s*" if token.rstrip else ""
    return blanks_left + re.escape(token.content) + blanks_right


def end_token_ids(folder: Path, vocabulary: Vocabulary) -> frozenset[int]:
    """The ids that end an answer: the generation config's (else the model config's) and the tokenizer's own."""
    config = read_optional_json(folder / "config.json")
    inner = config.get("text_config")
    ids: set[int] = set()
    for table in (
        read_optional_json(folder / "generation_config.json"),
        config,
        inner if isinstance(inner, dict) else {},
    ):
        found = table.get("eos_token_id")
        ids = {found} if isinstance(found, int) else set(found) if isinstance(found, list) else set()
        if ids:
            break
    token = read_optional_json(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    own = vocabulary.find(text) if isinstance(text, str) else None
    return frozenset(ids if own is None else ids | {own})
