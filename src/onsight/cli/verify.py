"""`onsight verify`: does the engine compute what transformers itself computes, on these weights and this machine?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from onsight.config import Settings, let_waiting_threads_sleep

if TYPE_CHECKING:
    from onsight.engines.torch_engine.verify import Compared, Report


def verify(settings: Settings) -> None:
    """Check a model's tensors and compare its answers with transformers' own; exit code 1 when they differ."""
    from onsight.models.card import find_card
    from onsight.models.hub import locate_model

    folder = locate_model(settings.model, settings.revision)
    card = find_card(settings.model, folder)
    let_waiting_threads_sleep()
    # Imported here: PyTorch takes a second or two, which no other command should pay.
    from onsight.engines.torch_engine.settings import TorchSettings
    from onsight.engines.torch_engine.verify import verify as compare
    from onsight.serve import loading_bar

    with loading_bar() as progress:
        chosen = TorchSettings(device=settings.device, dtype=settings.dtype, threads=settings.threads)
        report = compare(folder, card, chosen, progress)
    console = Console()
    console.print(f"{settings.model}: {card.title} as {report.dtype} on {report.device}")
    console.print(f"{report.tensors} tensors: all accounted for, all finite")
    if report.ours is None:
        console.print(
            f"transformers has no class for {card.title}, so there is no reference on this machine: nothing but the"
            " tensors was compared"
        )
        return
    console.print(_table(report))
    console.print("passed" if report.passed else "FAILED: this machine does not compute what transformers does")
    if not report.passed:
        raise typer.Exit(1)


def _table(report: Report) -> Table:
    table = Table("", *(one.name for one in report.compared), "limit", box=box.SIMPLE_HEAD)
    rows = {
        "prompt": [f"{one.prompt_tokens} tokens" for one in report.compared],
        "token ids": ["equal" if one.same_ids else "DIFFERENT" for one in report.compared],
        "pixels differ by": [_number(one.pixel_difference) for one in report.compared],
        "logits differ by": [_number(one.logit_difference) for one in report.compared],
        "likeliest tokens": [_tokens(one) for one in report.compared],
    }
    from onsight.engines.torch_engine.verify import PIXEL_TOLERANCE

    limits = {
        "token ids": "equal",
        "pixels differ by": _number(PIXEL_TOLERANCE),
        "logits differ by": _number(report.tolerance),
    }
    for name, values in rows.items():
        table.add_row(name, *values, limits.get(name, ""))
    table.add_section()
    table.add_row("", "onsight", "transformers", "")
    if report.ours and report.theirs:
        table.add_row("tokens/s", f"{report.ours.tokens_per_s:.1f}", f"{report.theirs.tokens_per_s:.1f}")
        table.add_row("peak memory", _mebibytes(report.ours.peak_bytes), _mebibytes(report.theirs.peak_bytes))
    return table


def _tokens(one: Compared) -> str:
    return f"{one.same_tokens} of {one.positions} equal"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
