"""A model folder whose answers never end by themselves, so that every server writes equally many tokens.

No request field for this is common to the servers. So the end-of-answer token gets another name in a copy of the
folder, in the tokenizer and the chat template alike, and the configuration names no end. The weights are the same file,
prompts have the same ids, and the same tokens are chosen; only nobody stops at the end.
"""

from __future__ import annotations

import json
from pathlib import Path

END_TOKEN = "<end_of_utterance>"
_RENAMED = "<a_turn_ends_here>"
_END_IDS = ("eos_token_id", "eos_token")


def endless_copy(folder: Path, target: Path) -> Path:
    """Make the copy in the new folder `target` (weights are linked, not copied) and return it."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            (target / path.name).symlink_to(path.resolve())
        elif path.suffix in (".json", ".jinja", ".txt"):
            text = path.read_text("utf-8").replace(END_TOKEN, _RENAMED)
            if path.suffix == ".json" and path.name != "tokenizer.json":
                text = json.dumps(_without_end(json.loads(text)), indent=2)
            (target / path.name).write_text(text, "utf-8")
    return target


def _without_end(value: object) -> object:
    """The same JSON with every named end set to null: left out, configurations would fall back on a default."""
    if isinstance(value, dict):
        return {name: None if name in _END_IDS else _without_end(inner) for name, inner in value.items()}
    return value
