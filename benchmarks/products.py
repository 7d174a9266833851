"""One core, the products of a decode step of Peek's decoder: weights in rows (PyTorch's own) beside oneDNN's blocks.

python -m benchmarks.products
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from onsight.engines.torch_engine.families.product import BlockedLinear, RowLinear

LAYER = ((512, 256), (256, 256), (1536, 256), (256, 768))
"""(out, in) of the four products of one of its layers, fused."""
SHAPES = LAYER * 4 + ((2048, 256),)
"""All 17: four layers and the output head, 13 MB of float32; as in a real step none is in the nearest caches."""
ROWS = (1, 2, 4, 8, 90, 256)
_RUNS = 60


def median_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one run, the median of `_RUNS` after a few that do not count."""
    for _ in range(5):
        run()
    spent = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1000


def step(products: Sequence[nn.Module], values: dict[int, torch.Tensor]) -> None:
    """Every product once."""
    for (_, inputs), product in zip(SHAPES, products, strict=True):
        product(values[inputs])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in SHAPES]
    layouts = {"rows": [RowLinear(weight, None) for weight in weights]}
    layouts["blocks"] = [BlockedLinear(weight, None) for weight in weights]
    work = 2 * sum(outputs * inputs for outputs, inputs in SHAPES)
    print(
        "| rows | in rows, ms | in blocks, ms | in rows, GFLOP/s | in blocks, GFLOP/s |",
        "| ---: | ---: | ---: | ---: | ---: |",
        sep="\n",
    )
    with torch.inference_mode():
        for rows in ROWS:
            values = {inputs: torch.randn(rows, inputs) for _, inputs in SHAPES}
            spent = [median_ms(lambda layout=layout, v=values: step(layout, v)) for layout in layouts.values()]
            speeds = (f"{rows * work / one / 1e6:.0f}" for one in spent)
            print(f"| {rows} | {' | '.join(f'{one:.2f}' for one in spent)} | {' | '.join(speeds)} |")


if __name__ == "__main__":
    main()
