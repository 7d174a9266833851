"""Where a model's files are: in the package, in a folder, in the Hugging Face cache, or on the Hub (local first).

`HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean here what they mean to every tool of Hugging Face.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.errors import HTTPError as BrokenConnection  # type: ignore[attr-defined]  # its HTTP client's own

import onsight
from onsight.core.errors import StartError
from onsight.models.gguf_header import is_gguf
from onsight.models.gguf_mllama import folder_of_mllama

log = logging.getLogger("onsight.models")

BUNDLED = Path(onsight.__file__).parent / "bundled"

# Weights in safetensors and what goes with them; no pickles and no code are ever downloaded.
WANTED = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")
# Folders hold the same weights for other programs, and "consolidated" files do too.
UNWANTED = ("*/*", "consolidated*")

ADAPTER_CONFIG = "adapter_config.json"
"""A folder with this file holds changes to another model's weights, not a model."""

QUANT_METHOD = "onsight"
"""What config.json says of weights that `onsight quantize` wrote."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_TIMEOUT_S = 20.0
_WHOLE = ("config.json", "tokenizer.json")
"""What every model has besides weights."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the Hugging Face cache: its Hub id, the commit, its files' folder and their size.

    `whole` is False where a download was broken off or brought no safetensors.
    """

    name: str
    commit: str
    folder: Path
    disk_bytes: int
    whole: bool


def use_cache(folder: str) -> None:
    """Keep and look for models of the Hub in `folder` from now on, for the whole process."""
    constants.HF_HUB_CACHE = folder


@cache
def bundled_models() -> tuple[str, ...]:
    """Names of the models that ship in the package."""
    return tuple(sorted(path.parent.name for path in BUNDLED.glob("*/config.json")))


def cached_models() -> tuple[CachedModel, ...]:
    """The models in the Hugging Face cache by name, each at its main branch, else at what was used last."""
    from huggingface_hub import scan_cache_dir  # slow to import, and only needed here

    try:
        cached = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return ()
    repos = [repo for repo in cached if repo.repo_type == "model" and repo.revisions]
    found = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id.lower()):
        chosen = max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
        folder = chosen.snapshot_path
        found.append(CachedModel(repo.repo_id, chosen.commit_hash, folder, chosen.size_on_disk, is_whole(folder)))
    return tuple(found)


def locate_model(model: str, revision: str | None = None) -> Path:
    """The folder with the files of `model`: a bundled name, a folder's path, or a Hub id, cached or downloaded.

    `revision`: the branch, tag or commit of a Hub id; None is its main branch. Raises StartError with one sentence that
    says what was looked for and what to do.
    """
    found = find_local(model, revision)
    return _download(model, revision) if found is None else found


def find_local(model: str, revision: str | None = None) -> Path | None:
    """As `locate_model`, but asks nobody: None for a Hub id that is not in the cache, or not all of it."""
    folder = local_folder(model)
    if folder is not None:
        if revision is not None:
            raise StartError(f"revision is {revision!r}, but {model} is on this machine: only Hub ids have revisions")
        return folder
    if not _HUB_ID.fullmatch(model):
        hint = "; a revision is given with --revision" if "@" in model else ""
        raise StartError(
            f"there is no model {model!r}: it is not bundled ({', '.join(bundled_models())}), not a folder,"
            f" and not a Hub id like owner/name{hint}"
        )
    return _cached_folder(model, revision)


def local_folder(model: str) -> Path | None:
    """The folder of a bundled name or a path; None for what may be a Hub id. Raises StartError."""
    if model in bundled_models():
        return BUNDLED / model
    path = Path(model).expanduser()
    try:
        if not path.is_dir():
            if is_gguf(path):
                return folder_of_mllama(path)
            if path.exists():
                raise StartError(f"{model} is a file; give the folder that holds config.json and the safetensors files")
            return None
    except OSError as error:
        raise StartError(f"{model} cannot be looked at: {error.strerror}") from None
    try:
        # Listing needs one permission and entering another.
        os.listdir(path)
        (path / "config.json").exists()
    except PermissionError:
        raise StartError(
            f"folder {model} cannot be read by this user: allow it to (chmod), or run as one who may"
        ) from None
    return path


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


def is_for_torch(folder: Path) -> bool:
    """Whether the model in `folder` is one that the torch engine alone reads: an adapter, or of `onsight quantize`."""
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    try:
        table = json.loads((folder / "config.json").read_text("utf-8"))
        return bool(table["quantization_config"]["quant_method"] == QUANT_METHOD)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def locate_base(folder: Path, base: str) -> Path:
    """As `locate_model`, for the model that the adapter in `folder` was made for."""
    try:
        return locate_model(base)
    except StartError as error:
        raise StartError(
            f"{folder} holds an adapter only; it needs its base model {base!r} beside it, and {error}"
        ) from None


def is_whole(folder: Path) -> bool:
    """Whether a snapshot has configuration, tokenizer and all weights that it names, as a broken download has not.

    An adapter may leave the first two to its base.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return any(folder.glob("*.safetensors"))
    if not all((folder / name).is_file() for name in _WHOLE):
        return False
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
        return all((folder / name).is_file() for name in set(index["weight_map"].values()))
    except FileNotFoundError:
        return any(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _cached_folder(model: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, if it is there and whole; asks nobody."""
    try:
        folder = Path(_snapshot(model, revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise StartError(f"{model!r} is no Hub id: {error}") from None
    return folder if is_whole(folder) else None


def _download(model: str, revision: str | None) -> Path:
    """Fetch what is missing of the snapshot, with progress bars on a terminal. Raises StartError."""
    from huggingface_hub import model_info  # slow to import, and only needed here

    try:
        listed = model_info(model, revision=revision, timeout=_HUB_TIMEOUT_S).siblings or []
        names = [one.rfilename for one in listed if "/" not in one.rfilename]
        if not any(name.endswith(".safetensors") for name in names):
            pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
            found = f"only {', '.join(pickles)}, which can hide code" if pickles else "none"
            raise StartError(f"{model} must have its weights as .safetensors files on the Hub; found {found}")
        log.info("%s is not in the cache, or not all of it; downloading", model)
        return Path(_snapshot(model, revision, local_files_only=False))
    except (OfflineModeIsEnabled, BrokenConnection, XetDownloadError, OSError) as error:
        raise StartError(_reason(model, revision, error)) from None


def fetch_files(
    model: str,
    revision: str | None,
    choose: Callable[[Sequence[str]], list[str]],
    suffices: Callable[[Sequence[str]], bool],
) -> tuple[Path, list[str]]:
    """The folder and the names of those files of a Hub id that `choose` picks out of all names; cached ones first.

    The Hub is asked unless what was picked of the cache `suffices`; where it cannot be, that is taken with a warning.
    Raises StartError, as `choose` may when nothing fits.
    """
    from huggingface_hub import model_info  # slow to import, and only needed here

    here = cached_files(model, revision, choose)
    if here is not None and suffices(here[1]):
        return here
    try:
        listed = model_info(model, revision=revision, timeout=_HUB_TIMEOUT_S).siblings or []
        names = choose([one.rfilename for one in listed if "/" not in one.rfilename])
        return Path(snapshot_download(model, revision=revision, allow_patterns=names)), names
    except HFValidationError as error:
        raise StartError(f"{model!r} is no Hub id: {error}") from None
    except (OfflineModeIsEnabled, BrokenConnection, XetDownloadError, OSError) as error:
        reason = _reason(model, revision, error)
        if here is None:
            raise StartError(reason) from None
        log.warning("%s; serving what is there: %s", reason, ", ".join(here[1]))
        return here


def cached_files(
    model: str, revision: str | None, choose: Callable[[Sequence[str]], list[str]]
) -> tuple[Path, list[str]] | None:
    """As `fetch_files`, but asks nobody: None where the cache has nothing that `choose` would take."""
    folder = _cached_snapshot(model, revision or "main")
    if folder is None:
        return None
    try:
        return folder, choose([path.name for path in folder.iterdir()])
    except StartError:
        log.info("that part of %s is not in the cache", model)
        return None


def _cached_snapshot(model: str, revision: str) -> Path | None:
    """The folder of what is cached of a Hub id at a branch, tag or commit, whole or not."""
    from huggingface_hub import scan_cache_dir  # slow to import, and only needed here

    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_id == model]
    except CacheNotFound:
        return None
    found = (one for repo in repos for one in repo.revisions if revision in (*one.refs, one.commit_hash))
    return next((one.snapshot_path for one in found), None)


def _snapshot(model: str, revision: str | None, *, local_files_only: bool) -> str:
    return snapshot_download(
        model,
        revision=revision,
        local_files_only=local_files_only,
        allow_patterns=list(WANTED),
        ignore_patterns=list(UNWANTED),
    )


def _reason(model: str, revision: str | None, error: Exception) -> str:
    """Why `model` could not be had, and what to do, in one sentence."""
    page = f"{constants.ENDPOINT}/{model}"
    what = model if revision is None else f"{model} at revision {revision!r}"
    match error:
        case OfflineModeIsEnabled():
            return (
                f"{what} is not in the local cache, or not all of it, and HF_HUB_OFFLINE is set: download it once with"
                " the network on, or give a folder"
            )
        case GatedRepoError():
            return f"{model} is gated: accept its terms on {page}, and set HF_TOKEN to a token of the account that did"
        case RevisionNotFoundError():
            return f"{model} has no revision {revision!r}: give a branch, a tag or a whole commit hash of {page}"
        case RepositoryNotFoundError():
            return f"{page} does not exist or is private: check the name, and set HF_TOKEN for a private model"
        case HfHubHTTPError():
            status = error.response.status_code
            return f"{constants.ENDPOINT} answered {status} for {what}: check HF_TOKEN, or try again later"
        case LocalEntryNotFoundError(__cause__=FileMetadataError()):
            return f"{constants.ENDPOINT} does not answer as a Hub does: check HF_ENDPOINT, or give a folder"
        case LocalEntryNotFoundError() | BrokenConnection() | XetDownloadError() | ConnectionError():
            return (
                f"{what} is not in the local cache, or not all of it, and {constants.ENDPOINT} cannot be reached or"
                " broke off: start again to go on, or give a folder"
            )
        case OSError(strerror=str(reason)):
            return f"{what} cannot be stored under {constants.HF_HUB_CACHE}: {reason}"
        case _:
            return f"{what} did not come whole ({' '.join(str(error).split())}): start again to go on"
