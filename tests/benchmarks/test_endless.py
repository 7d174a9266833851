"""The copy of a model folder in which no token ends an answer."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.endless import END_TOKEN, endless_copy


def test_the_copy_has_the_same_weights_and_ids_but_names_no_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text(
        json.dumps({"eos_token_id": 6, "text_config": {"eos_token_id": 6, "layers": 4}})
    )
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 6, "content": END_TOKEN}]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_TOKEN, "bos_token": "<|im_start|>"}))
    (folder / "chat_template.jinja").write_text("{{ text }}" + END_TOKEN)

    copy = endless_copy(folder, tmp_path / "copy")

    assert (copy / "model.safetensors").read_bytes() == b"weights"
    assert (copy / "model.safetensors").is_symlink()
    assert json.loads((copy / "config.json").read_text()) == {
        "eos_token_id": None,
        "text_config": {"eos_token_id": None, "layers": 4},
    }
    renamed = json.loads((copy / "tokenizer.json").read_text())["added_tokens"][0]
    assert renamed["id"] == 6
    assert renamed["content"] != END_TOKEN
    assert (copy / "chat_template.jinja").read_text() == "{{ text }}" + renamed["content"]
    assert json.loads((copy / "tokenizer_config.json").read_text()) == {"eos_token": None, "bos_token": "<|im_start|>"}
