"""`onsight quantize`: weights brought into 4 or 8 bits once, so that later starts need not read the plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onsight.config import Settings, let_waiting_threads_sleep
from onsight.core.errors import StartError


def quantize(
    settings: Settings, out: Annotated[Path, typer.Option(help="New folder for the model that is written.")]
) -> None:
    """Write a model whose language model has weights of 4 bits (or --quantize int8) into a folder to be served."""
    from onsight.models.card import find_card
    from onsight.models.hub import locate_model

    if settings.quantize == "none":
        raise StartError("quantize is none, so there is nothing to write: choose int4 or int8")
    folder = locate_model(settings.model, settings.revision)
    card = find_card(settings.model, folder)
    let_waiting_threads_sleep()
    # Imported here: PyTorch takes a second or two, which no other command should pay.
    from onsight.engines.torch_engine.loading import weight_files
    from onsight.engines.torch_engine.saving import save_quantised
    from onsight.serve import loading_bar

    scheme = "int4" if settings.quantize == "auto" else settings.quantize
    with loading_bar() as progress:
        save_quantised(folder, card, scheme, out, progress)
    before, after = (sum(path.stat().st_size for path in weight_files(one)) for one in (folder, out))
    typer.echo(
        f"{out}: {after / (1 << 20):,.1f} MiB of weights, from {before / (1 << 20):,.1f} MiB; what {scheme} costs in"
        f" answers stands in docs/results/int4.md. Serve it: onsight serve {out}"
    )
