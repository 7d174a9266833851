"""What every family's model reads, spelled out: turns, separators, the system's words, where pictures stand.

The published templates cannot be downloaded here. The tiny checkpoints carry their texts (Llama's is the family's own,
see there); the strings below were checked against public copies:

- SmolVLM: huggingface/transformers, tests/models/smolvlm/test_processing_smolvlm.py (`test_apply_chat_template`, whose
  conversation is one of those here) and src/transformers/models/smolvlm/processing_smolvlm.py.
- Qwen2.5-VL: sgl-project/sglang, python/sglang/srt/conversation.py ("qwen2-vl"), and copies of the template itself in
  public code: "You are a helpful assistant." comes when the first turn is no system turn, and `Picture 1:` only under
  `add_vision_id`, which is off.
- Llama 3.2: meta-llama/llama-models, models/llama3_2/vision_prompt_format.md; huggingface/transformers,
  tests/models/mllama/test_processing_mllama.py (`test_apply_chat_template`, two of those here). The published Jinja
  template refuses a system turn with pictures ("Prompting with images is incompatible with system messages.") and puts
  today's date before text without them; ours does neither.
- Phi-3.5-vision: the template in microsoft/onnxruntime-extensions (`PHI_VISION_CHAT_TEMPLATE`). That each stretch of
  text begins with <s>: huggingface/transformers' unmerged tests/models/phi3_v/test_processor_phi3_v.py (`append(1)`),
  and `_convert_images_texts_to_inputs` of the published processing_phi3_v.py.
"""

from __future__ import annotations

import pytest

from onsight.core.messages import Image, Message
from onsight.engines.torch_engine.chat_template import TemplateText
from tests.engines.fidelity import FAMILIES, Tiny
from tests.engines.torch_engine.asking import turn
from tests.engines.torch_engine.conftest import GetTiny
from tests.tiny_models import draw

pytestmark = pytest.mark.model

RED, BLUE = draw((200, 0, 0)), draw((0, 0, 220), 96, 40)

CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "text alone": (turn("Hi"),),
    "picture first": (turn(RED, "What?"),),
    "picture last": (turn("What is ", RED),),
    "two pictures": (turn(RED, BLUE, "Compare."),),
    "system": (turn("Be brief.", role="system"), turn(RED, "What?")),
    "several turns": (turn(RED, "What?"), turn("A box.", role="assistant"), turn("And ", BLUE, "?")),
    "transformers' own for SmolVLM": (
        turn("What do these images show?", RED, BLUE),
        turn("The first image shows the statue of Liberty in New York.", role="assistant"),
        turn("And who is that?"),
    ),
    "transformers' own for Llama": (
        turn(RED, BLUE, "What do these images show?"),
        turn("The first image shows the statue of Liberty in New York.", role="assistant"),
        turn("And who is that?"),
    ),
    "transformers' own for Llama, between": (
        turn("Describe this image in two sentences", RED, " Test sentence   ", BLUE, "ok\n"),
    ),
}
COMMON = [name for name in CONVERSATIONS if "own" not in name]
"""Those that every family has a string for."""

GOLDEN: dict[str, dict[str, str]] = {
    "smolvlm": {
        "text alone": "<|im_start|>User: Hi<end_of_utterance>\nAssistant:",
        "picture first": "<|im_start|>User:[1]What?<end_of_utterance>\nAssistant:",
        "picture last": "<|im_start|>User: What is [1]<end_of_utterance>\nAssistant:",
        "two pictures": "<|im_start|>User:[1][2]Compare.<end_of_utterance>\nAssistant:",
        "system": "<|im_start|>System: Be brief.<end_of_utterance>\nUser:[1]What?<end_of_utterance>\nAssistant:",
        "several turns": (
            "<|im_start|>User:[1]What?<end_of_utterance>\nAssistant: A box.<end_of_utterance>\n"
            "User: And [2]?<end_of_utterance>\nAssistant:"
        ),
        "transformers' own for SmolVLM": (
            "<|im_start|>User: What do these images show?[1][2]<end_of_utterance>\n"
            "Assistant: The first image shows the statue of Liberty in New York.<end_of_utterance>\n"
            "User: And who is that?<end_of_utterance>\nAssistant:"
        ),
    },
    "qwen": {
        "text alone": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        ),
        "picture first": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>[1]<|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
        ),
        "picture last": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWhat is <|vision_start|>[1]<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
        ),
        "two pictures": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>[1]<|vision_end|><|vision_start|>[2]<|vision_end|>Compare.<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        "system": (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>[1]<|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
        ),
        "several turns": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>[1]<|vision_end|>What?<|im_end|>\n"
            "<|im_start|>assistant\nA box.<|im_end|>\n"
            "<|im_start|>user\nAnd <|vision_start|>[2]<|vision_end|>?<|im_end|>\n<|im_start|>assistant\n"
        ),
    },
    "mllama": {
        "text alone": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "picture first": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n[1]What?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "picture last": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is [1]<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "two pictures": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n[1][2]Compare.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "system": (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n[1]What?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "several turns": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n[1]What?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA box.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nAnd [2]?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "transformers' own for Llama": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n[1][2]What do these images show?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
            "The first image shows the statue of Liberty in New York.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nAnd who is that?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "transformers' own for Llama, between": (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
            "Describe this image in two sentences[1] Test sentence   [2]ok\n<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    },
    "phi3": {
        "text alone": "<s><|user|>\nHi<|end|>\n<|assistant|>\n",
        "picture first": "<s><|user|>\n[1]<s>\nWhat?<|end|>\n<|assistant|>\n",
        "picture last": "<s><|user|>\nWhat is [1]<s>\n<|end|>\n<|assistant|>\n",
        "two pictures": "<s><|user|>\n[1]<s>\n[2]<s>\nCompare.<|end|>\n<|assistant|>\n",
        "system": "<s><|system|>\nBe brief.<|end|>\n<|user|>\n[1]<s>\nWhat?<|end|>\n<|assistant|>\n",
        "several turns": (
            "<s><|user|>\n[1]<s>\nWhat?<|end|>\n<|assistant|>\nA box.<|end|>\n"
            "<|user|>\nAnd [2]<s>\n?<|end|>\n<|assistant|>\n"
        ),
    },
}


def rendered(tiny: Tiny, messages: tuple[Message, ...]) -> str:
    """The whole prompt, pictures as [1], [2] in the order in which they are read."""
    pictures = [image for message in messages for image in message.images]
    pieces = tiny.template.render(messages)
    assert [piece for piece in pieces if isinstance(piece, Image)] == pictures
    numbers = iter(range(1, len(pictures) + 1))
    return "".join(f"[{next(numbers)}]" if isinstance(piece, Image) else piece.text for piece in pieces)


@pytest.mark.parametrize(("name", "conversation"), [(name, each) for name in FAMILIES for each in GOLDEN[name]])
def test_the_prompt_is_as_published(name: str, conversation: str, tiny: GetTiny) -> None:
    assert rendered(tiny(name), CONVERSATIONS[conversation]) == GOLDEN[name][conversation]


def test_every_family_has_its_golden_strings() -> None:
    assert set(GOLDEN) == set(FAMILIES)
    assert all(set(COMMON) <= set(strings) for strings in GOLDEN.values())


def test_the_prompts_ids_are_the_references(family: Tiny) -> None:
    """By the reference's own rendering and tokenising, whatever the strings above say."""
    for messages in CONVERSATIONS.values():
        expected = family.reference.generate(messages, 1).prompt
        made = family.lay_out(*messages).token_ids
        assert len(made) == len(expected)
        assert all(ours == theirs for ours, theirs in zip(made, expected, strict=True) if theirs >= 0)


def test_the_beginning_comes_once(family: Tiny) -> None:
    """Once in all; for Phi once a stretch of text; Qwen has none, but opens every turn alike."""
    opening = {"qwen": "<|im_start|>", "smolvlm": "<|im_start|>", "mllama": "<|begin_of_text|>", "phi3": "<s>"}
    token = family.vocabulary.require(opening[family.name])
    for messages in CONVERSATIONS.values():
        made_up = messages[0].role != "system"
        expected = {
            "qwen": len(messages) + 1 + made_up,
            "phi3": 1 + sum(len(message.images) for message in messages),
        }
        ids = family.lay_out(*messages).token_ids
        assert ids[0] == token
        assert ids.count(token) == expected.get(family.name, 1)


def test_only_the_template_may_write_special_tokens(family: Tiny) -> None:
    for messages in CONVERSATIONS.values():
        trusted = [piece.text for piece in family.template.render(messages) if isinstance(piece, TemplateText)]
        said = {part.text for message in messages for part in message.parts if not isinstance(part, Image)}
        assert not said & set(trusted)
