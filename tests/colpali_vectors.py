"""Writes what colpali_engine makes of the tiny ColQwen2.5, as the vectors that our own must equal.

colpali_engine cannot be a development dependency: it needs torchvision, whose wheels do not load beside a CPU build of
torch, and an older peft than the current one. So it is run by hand, when the tiny model or the reference changes:

    pip install --no-deps --target DIR colpali_engine==0.3.18 peft==0.20.0 scipy requests urllib3 charset-normalizer
    PYTHONPATH=src:.:DIR python -m tests.colpali_vectors

The modules of torchvision that it imports are stood in for by empty ones: its PIL path calls nothing of them. What it
prints is how far the plain reference in `colqwen_reference.py` is from colpali_engine, which was 0.0 everywhere.
"""

from __future__ import annotations

import sys
import tempfile
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.engines.torch_engine.colqwen_reference import ColQwenReference
from tests.tiny_colqwen import write_colqwen
from tests.tiny_models import draw

VECTORS = Path(__file__).parent / "engines" / "torch_engine" / "colpali_vectors.safetensors"
QUERIES = ("What colour?", "Where is the red button? Describe the screen.")
PAGES = (draw((200, 0, 0), 84, 56), draw((0, 0, 220), 308, 56))
"""Of sizes that are seen as they are: resampling differs between releases of Pillow."""


SIZES = (
    (1, 1), (13, 13), (14, 14), (27, 29), (28, 28), (41, 43), (42, 70), (56, 57), (70, 42), (98, 126), (100, 1),
    (1, 100), (199, 1), (3, 600), (600, 3), (224, 224), (223, 225), (225, 223), (256, 196), (300, 200), (200, 301),
    (333, 77), (77, 333), (511, 513), (512, 512), (640, 480), (800, 33), (1024, 768), (1000, 999), (1920, 1080),
    (2, 400), (400, 2), (15, 27), (29, 55), (84, 56), (308, 56), (210, 297), (297, 210), (595, 842), (842, 595),
    (620, 877), (768, 1024), (1240, 1754), (1654, 2339), (2480, 3508), (3508, 2480), (4000, 3000), (6000, 31),
    (31, 6000), (9999, 9999),
)  # fmt: skip
"""Of pages, (width, height) px, whose patches are counted."""


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import_colpali() -> types.ModuleType:
    """colpali_engine.models, after the stand-ins; whatever else asks whether torchvision is there has asked before."""
    for name in ("", ".io", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional"):
        module = _Empty("torchvision" + name)
        module.__spec__, module.__path__ = ModuleSpec(module.__name__, None), []
        sys.modules[module.__name__] = module
    import colpali_engine.models

    return colpali_engine.models


def _processor(models: Any, folder: Path) -> Any:
    class Processor(models.ColQwen2_5_Processor):
        def check_argument_for_proper_class(self, *_: object) -> None:
            """Let it do without a video processor, which needs torchvision."""

    return Processor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        video_processor=None,
    )


def main() -> None:
    models = _import_colpali()
    with tempfile.TemporaryDirectory() as folder:
        whole = write_colqwen(Path(folder) / "model", layout="current")
        model = models.ColQwen2_5.from_pretrained(whole).eval()
        processor = _processor(models, whole)
        opened = [PIL.Image.frombytes("RGB", (page.width, page.height), page.pixels) for page in PAGES]
        asked, shown = processor.process_queries(list(QUERIES)), processor.process_images(opened)
        with torch.inference_mode():
            made = {"query": model(**asked), "page": model(**shown)}
        # What ColQwen2.5 was trained with; the tiny model's own bounds are smaller.
        processor.image_processor.size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 768 * 28 * 28}
        patches = [processor.get_n_patches(size, model.spatial_merge_size) for size in SIZES]
        reference = ColQwenReference(whole)
        plain = {"query": reference.queries(QUERIES), "page": reference.pages(PAGES)}
    tensors: dict[str, torch.Tensor] = {}
    for kind, inputs in (("query", asked), ("page", shown)):
        for number, (rows, kept) in enumerate(zip(made[kind], inputs["attention_mask"].bool(), strict=True)):
            tensors[f"{kind}_{number}"] = rows[kept].contiguous()
            tensors[f"{kind}_{number}_ids"] = inputs["input_ids"][number][kept].contiguous()
            print(f"{kind} {number}: {(rows[kept] - plain[kind][number]).abs().max():.1e}")
    # One page at a time: in a batch it pads pages with zeros, which win over every vector that points away.
    tensors["scores"] = torch.cat(
        [
            processor.score_multi_vector(
                [tensors[f"query_{query}"] for query in range(len(QUERIES))], [tensors[f"page_{page}"]], device="cpu"
            )
            for page in range(len(PAGES))
        ],
        dim=1,
    )
    tensors["patches"] = torch.tensor(patches)
    save_file(tensors, VECTORS, metadata={"made by": "colpali_engine 0.3.18, transformers 5.23.0, torch 2.13.0"})


if __name__ == "__main__":
    main()
