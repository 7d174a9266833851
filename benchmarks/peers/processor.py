"""A SmolVLM checkpoint's processor without torchvision, which transformers' own needs for videos."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, SmolVLMConfig
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil


def load_processor(folder: Path) -> Idefics3Processor:
    """The processor for the checkpoint in `folder`.

    Idefics3's is SmolVLM's without the video half: the same template, the same text around a picture, the same pixels.
    """
    config = SmolVLMConfig.from_pretrained(folder)
    vision = config.vision_config
    features = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = SmolVLMImageProcessorPil.from_pretrained(folder)
    return Idefics3Processor(pictures, tokenizer, image_seq_len=features, chat_template=tokenizer.chat_template)
