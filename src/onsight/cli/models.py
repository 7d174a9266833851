"""`onsight models`: the families that run here, the models that are on this machine, and the facts of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from onsight.config import Settings, let_waiting_threads_sleep
from onsight.core.engine import PICTURE_PX
from onsight.core.errors import StartError
from onsight.models.card import ModelCard, PixelBudget, card_of_name, cards, find_card

if TYPE_CHECKING:
    from onsight.engines.torch_engine.memory import Survey
    from onsight.models.hub import CachedModel

GIGABYTE, MEGABYTE, KILOBYTE = 1 << 30, 1 << 20, 1 << 10
_ANSWER_TOKENS = 4096
"""Length of the requests in the estimate of what serving takes."""


def models(
    settings: Settings,
    model: Annotated[
        str | None, typer.Argument(help="Show one: 'peek', a folder, a Hub id, or a family's name.")
    ] = None,
) -> None:
    """List the families that run here and the models on this machine, or show one with what it takes in memory."""
    console = Console()
    if model is None:
        _list(console)
    else:
        _show(console, model, settings)


def _list(console: Console) -> None:
    from onsight.models.hub import bundled_models, cached_models

    families = _table("Families", "family", "models", "tasks", "licence")
    for card in cards():
        names = "\n".join(card.published or card.models)
        families.add_row(card.name, names, " ".join(card.capabilities), card.licence)
    console.print(families)
    here = _table("On this machine", "family", "models", "on disk", "state")
    for name in bundled_models():
        here.add_row(name, name, "in the package", "ready")
    others = 0
    for cached in cached_models():
        found = _card_of(cached)
        if found is None:
            others += 1
            continue
        state = "ready" if cached.whole else "not whole: serve it with the network on"
        here.add_row(found.name, cached.name, size_text(cached.disk_bytes), state)
    console.print(here)
    if others:
        console.print(f"{others} more in the cache are of families that do not run here.")


def _table(title: str, *columns: str) -> Table:
    """An empty table whose names are never cut: they are there to be copied."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=name in ("family", "models"))
    return table


def _card_of(cached: CachedModel) -> ModelCard | None:
    """The card of a model in the cache, which holds those of other programs too."""
    try:
        return find_card(cached.name, cached.folder)
    except StartError:
        return None


def _show(console: Console, model: str, settings: Settings) -> None:
    """What the card says, and what the files say if they are here; nothing is downloaded. Raises StartError."""
    from onsight.models.hub import bundled_models, find_local

    card = card_of_name(model)
    folder = None
    if card is None or model != card.name or model in bundled_models():
        folder = find_local(model, settings.revision)
    if folder is None and card is None:
        known = ", ".join(one.name for one in cards())
        raise StartError(f"{model} is not on this machine and no card names it; known families are {known}")
    if card is None or folder is not None:
        card = find_card(model, folder or Path())
    facts = Table.grid(padding=(0, 2))
    for name, value in _card_facts(card):
        facts.add_row(name, value)
    if folder is None:
        facts.add_row("memory", "known once its files are here: `onsight serve` downloads them")
    else:
        for name, value in _file_facts(folder, card, settings):
            facts.add_row(name, value)
    console.print(facts)


def _card_facts(card: ModelCard) -> list[tuple[str, str]]:
    """Names and values of what the card says."""
    budgets = [f"{task} {_pixels(budget)}" for task, budget in (card.pixels or {}).items()]
    sampling = [
        f"{name} {value:g}"
        for name, value in (("temperature", card.defaults.temperature), ("top_p", card.defaults.top_p))
        if value is not None
    ]
    return [
        ("title", card.title),
        ("family", f"{card.name} ({card.family})"),
        ("about", card.description),
        ("licence", card.licence),
        ("tasks", ", ".join(card.capabilities)),
        ("points in", card.convention or "none: not trained to point"),
        ("pictures", ", ".join(budgets) or "as the checkpoint says"),
        ("defaults", ", ".join(sampling) or "the server's"),
        *((f"prompt: {task}", prompt.text) for task, prompt in (card.prompts or {}).items()),
    ]


def _file_facts(folder: Path, card: ModelCard, settings: Settings) -> list[tuple[str, str]]:
    """Names and values of what a checkpoint's files say. Raises StartError for one that cannot be loaded."""
    let_waiting_threads_sleep()
    # Imported here: PyTorch takes a second or two, which the list should not pay.
    from onsight.engines.torch_engine.memory import survey
    from onsight.engines.torch_engine.settings import TorchSettings

    found = survey(
        folder, card, TorchSettings(device=settings.device, dtype=settings.dtype, quantize=settings.quantize)
    )
    memory, (width, height) = found.memory, PICTURE_PX
    return [
        ("files", str(folder)),
        ("tensors", f"{found.tensors}, all accounted for"),
        ("context", f"{found.context_tokens:,} tokens"),
        ("weights", f"{size_text(memory.weights_bytes)} as {found.dtype}, the choice for {found.device}"),
        ("a token", f"{size_text(memory.token_bytes)} of keys and values"),
        (f"{width}x{height} px", f"{memory.picture_tokens:,} tokens, {size_text(memory.picture_bytes)}"),
        ("serving", _serving(found, settings)),
    ]


def _serving(found: Survey, settings: Settings) -> str:
    """The sum for the requests that the settings let run at once."""
    tokens = min(_ANSWER_TOKENS, found.context_tokens)
    aside = found.memory.picture_bytes - found.memory.picture_tokens * found.memory.token_bytes
    each = tokens * found.memory.token_bytes + aside
    total = found.memory.weights_bytes + settings.max_num_seqs * each
    return (
        f"{size_text(total)} with {settings.max_num_seqs} requests of {tokens:,} tokens,"
        " and the working memory of a forward"
    )


def _pixels(budget: PixelBudget) -> str:
    bounds = [("from", budget.min_pixels), ("up to", budget.max_pixels)]
    return " ".join(f"{word} {bound:,} px" for word, bound in bounds if bound is not None)


def size_text(count: int) -> str:
    """Bytes for people."""
    for unit, name in ((GIGABYTE, "GiB"), (MEGABYTE, "MiB"), (KILOBYTE, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}" if unit == GIGABYTE else f"{count / unit:.1f} {name}"
    return f"{count} B"
