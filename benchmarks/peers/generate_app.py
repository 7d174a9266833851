"""The service that everybody writes: one file, FastAPI, `model.generate` for each request, the whole answer at the end.

    python -m benchmarks.peers.generate_app FOLDER PORT [--dtype NAME]

It does what such services do: it decodes the picture, builds the prompt and generates, one request after the other,
since one `generate` already uses every core.
"""

from __future__ import annotations

import argparse
import base64
import io
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from transformers import SmolVLMForConditionalGeneration

from benchmarks.peers.processor import load_processor


def create_app(folder: Path, dtype: str) -> FastAPI:
    """The app with the model in `folder`, loaded with numbers of type `dtype`."""
    app = FastAPI()
    model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    processor = load_processor(folder)
    one_at_a_time = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        messages = [
            {"role": message["role"], "content": [_part(part) for part in message["content"]]}
            for message in body["messages"]
        ]
        with one_at_a_time, torch.inference_mode():
            inputs = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            made = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False)
        prompt_tokens = inputs["input_ids"].shape[1]
        answer = made[0, prompt_tokens:]
        return {
            "choices": [{"message": {"content": processor.decode(answer, skip_special_tokens=True)}}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(answer)},
        }

    return app


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """One of OpenAI's content parts as the processor wants it."""
    if part["type"] == "text":
        return part
    encoded = part["image_url"]["url"].partition(",")[2]
    return {"type": "image", "image": Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--dtype", default="auto", help="number type of the weights; 'auto' is the checkpoint's")
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(arguments.folder, arguments.dtype), host="127.0.0.1", port=arguments.port, log_level="warning"
    )


if __name__ == "__main__":
    main()
