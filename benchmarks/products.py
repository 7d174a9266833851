"""One core: the products of a decode step of Peek's decoder, and one large product with weights of few bits.

python -m benchmarks.products [--large]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from onsight.engines.torch_engine.families.product import BlockedLinear, RowLinear
from onsight.engines.torch_engine.quantize import Int4Linear, Int8Linear

LAYER = ((512, 256), (256, 256), (1536, 256), (256, 768))
"""(out, in) of the four products of one of its layers, fused."""
SHAPES = LAYER * 4 + ((2048, 256),)
"""All 17: four layers and the output head, 13 MB of float32; as in a real step none is in the nearest caches."""
ROWS = (1, 2, 4, 8, 90, 256)
_RUNS = 60
LARGE = 4096
LARGE_ROWS = (1, 2, 4, 8, 16, 64, 256, 511, 512, 1024)


def median_ms(run: Callable[[], object], runs: int = _RUNS) -> float:
    """Milliseconds of processor time of one run, the median of `runs` after a few that do not count.

    Not of the clock: others may share the core.
    """
    for _ in range(min(5, runs)):
        run()
    spent = []
    for _ in range(runs):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return statistics.median(spent) * 1000


def step(products: Sequence[nn.Module], values: dict[int, torch.Tensor]) -> None:
    """Every product once."""
    for (_, inputs), product in zip(SHAPES, products, strict=True):
        product(values[inputs])


def large() -> None:
    """Print the table of one product of `LARGE` x `LARGE`: float32 in blocks, 8 bits, 4 bits."""
    weight = torch.randn(LARGE, LARGE) * 0.02
    layouts: dict[str, nn.Module] = {"float32": BlockedLinear(weight, None)}
    for name, kind in (("int8", Int8Linear), ("int4", Int4Linear)):
        made = kind({"one": LARGE}, LARGE, None)
        made.take("one", weight)
        made.settle()
        layouts[name] = made
    print("| rows | " + " | ".join(f"{name}, ms" for name in layouts) + " |", "| ---: " * 4 + "|", sep="\n")
    with torch.inference_mode():
        for rows in LARGE_ROWS:
            values = torch.randn(rows, LARGE)
            spent = [median_ms(lambda layout=layout, v=values: layout(v), 5) for layout in layouts.values()]
            print(f"| {rows} | {' | '.join(f'{one:.2f}' for one in spent)} |", flush=True)


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the large product instead of Peek's")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if parser.parse_args().large:
        large()
    else:
        small()


def small() -> None:
    """Print the table of Peek's products, in rows and in blocks."""
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
