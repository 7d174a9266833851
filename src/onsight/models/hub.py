"""Where a model's files are: in the package, in a folder, in the Hugging Face cache, or on the Hub (local first)."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

import onsight
from onsight.core.errors import StartError

log = logging.getLogger("onsight.models")

BUNDLED = Path(onsight.__file__).parent / "bundled"

# Weights in safetensors and what goes with them; no pickles and no code are ever downloaded.
WANTED = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")

ADAPTER_CONFIG = "adapter_config.json"
"""A folder with this file holds changes to another model's weights, not a model."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def bundled_models() -> tuple[str, ...]:
    """Names of the models that ship in the package."""
    return tuple(sorted(path.parent.name for path in BUNDLED.glob("*/config.json")))


def locate_model(model: str) -> Path:
    """The folder with the files of `model`: a bundled name, a folder's path, or a Hub id, cached or downloaded.

    Raises StartError with one sentence that says what was looked for and what to do.
    """
    if model in bundled_models():
        return BUNDLED / model
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise StartError(f"{model} is a file; give the folder that holds config.json and the safetensors files")
    if not _HUB_ID.fullmatch(model):
        raise StartError(
            f"there is no model {model!r}: it is not bundled ({', '.join(bundled_models())}), not a folder,"
            " and not a Hub id like owner/name"
        )
    return _from_hub(model)


def adapter_base(folder: Path) -> str | None:
    """The model that the adapter in `folder` was made for, as a name for `locate_model`; None for a whole model.

    Raises StartError when adapter_config.json is unreadable or names none.
    """
    path = folder / ADAPTER_CONFIG
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read as JSON: {error}") from None
    base = table.get("base_model_name_or_path") if isinstance(table, dict) else None
    if not isinstance(base, str) or not base:
        raise StartError(f"{path} does not say which model it adapts (base_model_name_or_path is {base!r})")
    return base


def locate_base(folder: Path, base: str) -> Path:
    """As `locate_model`, for the model that the adapter in `folder` was made for."""
    try:
        return locate_model(base)
    except StartError as error:
        raise StartError(
            f"{folder} holds an adapter only; it needs its base model {base!r} beside it, and {error}"
        ) from None


def _from_hub(model: str) -> Path:
    """The snapshot folder of a Hub id: the cache's if it is there, else downloaded (with progress bars)."""
    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=list(WANTED)))
    except LocalEntryNotFoundError:
        log.info("%s is not in the cache; downloading it", model)
    except HFValidationError as error:
        raise StartError(f"{model!r} is no Hub id: {error}") from None
    try:
        return Path(snapshot_download(model, allow_patterns=list(WANTED)))
    except OfflineModeIsEnabled:
        raise StartError(
            f"{model} is not in the local cache and HF_HUB_OFFLINE is set: download it once with the network on,"
            " or give a folder"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise StartError(
            f"the Hub answered {status} for {model}: check the name, and HF_TOKEN for a gated model"
        ) from None
    except (LocalEntryNotFoundError, OSError):
        raise StartError(
            f"{model} is not in the local cache and the Hub cannot be reached: connect once, or give a folder"
        ) from None
