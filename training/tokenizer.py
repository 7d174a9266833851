"""Peek's tokenizer: byte-level BPE in SmolLM's manner, with single digits, "\\n\\n" as one token, known words whole."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.draw import COLOURS, Style, draw_screen
from training.questions import KIND_NAMES, ask_describe, ask_questions
from training.words import KNOWN_WORDS, made_up_word

VOCABULARY_SIZE = 2048
UNKNOWN, START, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FAKE, IMAGE, GLOBAL, END = "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"
ROWS_AND_COLUMNS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
SPECIAL_TOKENS = (UNKNOWN, START, PAD, FAKE, IMAGE, GLOBAL, END, *ROWS_AND_COLUMNS)

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}"
    "{% else %}{% if message['content'] and message['content'][0]['type'] == 'image' %}{{ ':' }}"
    "{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_GENERAL_TEXT = """
You are a helpful assistant. Answer with one word. Reply in JSON. Please describe what the picture shows.
Hello, what can you do? I can look at screens: buttons, fields, labels, check boxes, menus and tabs.
Is there a button in this picture? yes no true false null name value type text colour color point box
""".strip().splitlines()


def train_tokenizer() -> Tokenizer:
    """Train on our own phrases; every known word becomes one token, with and without the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus() -> list[str]:
    """Texts to train the tokenizer on: words far more often than phrases, so that they end up whole."""
    rng = random.Random(1)
    lines = _GENERAL_TEXT * 40 + ["User", "Assistant", "System"] * 1000
    for word in KNOWN_WORDS:
        lines += [word, f" {word}"] * 400
        lines += [f" {word.lower()}"] * 300
    lines += [f" {name}" for name in (*COLOURS, *KIND_NAMES.values())] * 400
    lines += [made_up_word(rng) for _ in range(4000)] + [f" {made_up_word(rng)}" for _ in range(4000)]
    for seed in range(300):
        screen = draw_screen(seed, Style(sides=(128, 200)))
        for question in (*ask_questions(screen, rng, 8), ask_describe(screen, rng)):
            lines += [question.text, f" {question.answer}"]
    lines += ["\n\n"] * 2000 + ["\n"] * 2000
    return lines


def save_tokenizer(folder: Path) -> None:
    """Train the tokenizer and write its files (the chat template too) into ``folder``."""
    named = {"bos_token": START, "eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    extra = {
        "fake_image_token": FAKE,
        "image_token": IMAGE,
        "global_image_token": GLOBAL,
        "end_of_utterance_token": END,
    }
    settings = {
        "processor_class": "SmolVLMProcessor",
        "model_max_length": 2048,
        "add_prefix_space": False,
        "extra_special_tokens": extra,
        **extra,
    }
    write_tokenizer(folder, train_tokenizer(), SPECIAL_TOKENS, named, settings)
    special = {**named, "additional_special_tokens": [FAKE, IMAGE, GLOBAL, END]}
    write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, specials: Sequence[str], named: dict[str, str], settings: dict[str, Any]
) -> None:
    """Write tokenizer.json and tokenizer_config.json; ``named``: those ``specials`` that transformers asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", {**common, **settings, **named})


def write_json(path: Path, value: object) -> None:
    """Write a configuration file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
