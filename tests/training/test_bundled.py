"""The bundled folder is whole, small, and what the training code says it is."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from training.dense import CHARACTERS, Namer, dense_labels
from training.draw import KINDS, draw_screen, to_square
from training.model import BUNDLED, IMAGE_TOKENS, load_model, load_tokenizer
from training.questions import KIND_NAMES, ask_questions, per_mille
from training.sequences import BY_PLACE, LOOK_FACTS, PICTURE, Writer, facts_of, text_tokens, turn
from training.words import KNOWN_WORDS

LIMIT = 16_000_000


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= LIMIT


def test_widths_are_multiples_of_128() -> None:
    config = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    for part in (config["text_config"], config["vision_config"]):
        assert part["hidden_size"] % 128 == 0
        assert part["intermediate_size"] % 128 == 0
    assert config["tie_word_embeddings"] is True


def test_weights_fit_the_architecture() -> None:
    model = load_model()
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_tokenizer_round_trips() -> None:
    tokenizer = load_tokenizer()
    for text in ('Where is "Save"? (412, 87)', "two\n\nlines\n", " über naïve 世界 🙂", "a  b\tc"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_single_tokens() -> None:
    tokenizer = load_tokenizer()
    for text in ("\n\n", "\n", *KNOWN_WORDS, *(f" {word}" for word in KNOWN_WORDS), "<end_of_utterance>", "<image>"):
        assert len(tokenizer.encode(text, add_special_tokens=False)) == 1, text
    assert tokenizer.tokenize("1024") == list("1024")


def test_chat_template_writes_what_training_reads() -> None:
    tokenizer = load_tokenizer()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the screen."}]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.replace("<image>", PICTURE) == turn("Read the screen.", True)
    assert PICTURE.count("<image>") == IMAGE_TOKENS
    messages += [
        {"role": "assistant", "content": [{"type": "text", "text": "Save"}]},
        {"role": "user", "content": [{"type": "text", "text": "Where is Save?"}]},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.endswith("Assistant: Save<end_of_utterance>\n" + turn("Where is Save?", False))


def test_training_sees_what_the_image_processor_gives() -> None:
    processor = SmolVLMImageProcessorPil.from_pretrained(BUNDLED)
    for seed in range(12):
        image = draw_screen(seed).image
        given = processor(images=[image], return_tensors="np")["pixel_values"][0, 0]
        trained = np.asarray(to_square(image), np.float32).transpose(2, 0, 1) / 127.5 - 1
        assert np.abs(given - trained).max() < 1e-5


def test_dense_labels_agree_with_the_screen() -> None:
    name = Namer(load_tokenizer())
    for seed in range(12):
        screen = draw_screen(seed)
        labels = dense_labels(screen, name)
        kinds = {KINDS[number - 1] for number in labels.kind if number}
        assert kinds <= {widget.kind for widget in screen.widgets}
        drawn = "".join(sorted("".join(widget.text for widget in screen.widgets)))
        found = sorted(CHARACTERS[number - 1] for number in labels.characters.ravel() if number)
        # Narrow neighbours may share a slot, so a few characters may be missing; none may be made up.
        assert len(found) >= 0.85 * len(drawn)
        assert set(found) <= set(drawn)


def test_looks_point_at_the_word_and_its_picture() -> None:
    tokenizer = load_tokenizer()
    writer, found = Writer(tokenizer), 0
    for seed in range(12):
        screen, rng = draw_screen(seed), random.Random(seed)
        ids, weights, looks = writer.conversation(screen, ask_questions(screen, rng, 8), rng)
        assert len(ids) == len(weights)
        for place, first, last, heads, *told in looks:
            facts, flags = told[:LOOK_FACTS], told[LOOK_FACTS:]
            index = next(n for n, widget in enumerate(screen.widgets) if facts_of(screen, n) == facts)
            assert flags == text_tokens(screen, index)
            assert 1 <= sum(flags) <= IMAGE_TOKENS // 8
            said = tokenizer.decode([ids[place]]).strip().lower()
            if heads == BY_PLACE:
                assert said == str(per_mille(screen, *screen.widgets[index].box[2:])[1])[-1]
            else:
                widget = screen.widgets[index]
                assert widget.text.lower().startswith(said) or KIND_NAMES[widget.kind].endswith(said)
            assert place < first <= last
            assert weights[first] == 0
            assert all(weights[place] > 0 for place in range(first + 1, last + 2))
            found += 1
    assert found > 60
