"""`onsight doctor`: can this machine serve with these settings? A row for each thing, and what mends a failed one."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import psutil
import typer
from packaging.requirements import Requirement
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onsight import __version__
from onsight.cli.models import GIGABYTE, size_text
from onsight.config import Settings, let_waiting_threads_sleep, takes_runpod_jobs
from onsight.core.errors import StartError
from onsight.engines.machine import free_memory
from onsight.models.card import ModelCard, find_card

State = Literal["ok", "off", "failed"]

_STYLES = {"ok": "green", "off": "dim", "failed": "bold red"}
_EXTRAS = {
    "llama": "runs GGUF models",
    "ui": "the page at /ui",
    "search": "the index of pages, Parquet files",
    "otel": "traces for OpenTelemetry",
    "runpod": "RunPod serverless",
    "ray": "Ray clusters",
}
_LEAST_FREE = 1 * GIGABYTE
"""Hardly a published model is smaller."""
_OTHER_MODEL = "onsight models"


@dataclass(frozen=True, slots=True)
class Row:
    """What was looked at and found. `off`: not there, and not needed. `mend`: the command that changes that."""

    check: str
    state: State
    found: str
    mend: str = ""


def doctor(
    settings: Settings, as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False
) -> None:
    """Look whether this machine can serve with these settings; exit code 1, and the mending command, where not."""
    rows = examine(settings.with_retriever)
    passed = all(row.state != "failed" for row in rows)
    if as_json:
        report = {"onsight": __version__, "passed": passed, "checks": [asdict(row) for row in rows]}
        typer.echo(json.dumps(report, indent=2))
    else:
        Console().print(_table(rows))
    if not passed:
        raise typer.Exit(1)


def examine(settings: Settings) -> list[Row]:
    """All rows; nothing is downloaded, loaded or changed."""
    rows = [Row("Python", "ok", f"{platform.python_version()} on {platform.machine()}, {sys.executable}")]
    rows += _packages(settings)
    torch = _load_torch()
    if isinstance(torch, Row):
        rows.append(torch)
    else:
        rows.append(Row("PyTorch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"))
        gpu = _gpu(settings, torch)
        rows += [gpu, _cpu(settings, torch)]
    model, here = _model(settings)
    rows.append(model)
    temporary = _temporary()
    vectors = settings.embed_model
    if vectors is not None:
        rows.append(_found("vectors", vectors, settings.embed_revision)[0])
    needs_room = any(row.state == "off" for row in rows if row.check in ("model", "vectors"))
    can_load = not isinstance(torch, Row) and gpu.state != "failed" and temporary.state == "ok"
    rows += [_memory(settings, here if can_load else None), temporary]
    rows += _places(needs_room=needs_room)
    return [*rows, _port(settings), _keys(settings)]


def _table(rows: Sequence[Row]) -> Table:
    table = Table("", "", "found", "mended by", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        # Texts, since Rich would take the brackets of onsight[ui] for its own.
        words = (Text(row.check, no_wrap=True), Text(row.state, _STYLES[row.state]), Text(row.found), Text(row.mend))
        table.add_row(*words)
    return table


def _packages(settings: Settings) -> Iterator[Row]:
    """What every command needs, then each extra."""
    try:
        needed = [Requirement(text) for text in metadata.requires("onsight") or []]
    except metadata.PackageNotFoundError:
        yield Row(
            "packages", "failed", "onsight runs from its sources and is not installed", "pip install --editable ."
        )
        return
    always = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    yield _package_row("packages", always, "pip install --upgrade onsight")
    asked = {"ui": settings.ui, "search": settings.qdrant is not None, "otel": settings.otlp_endpoint is not None}
    for extra, purpose in _EXTRAS.items():
        members = [one for one in needed if one not in always and one.marker and one.marker.evaluate({"extra": extra})]
        row = _package_row(f"extra {extra}", members, f"pip install 'onsight[{extra}]'")
        if all(_version(one.name) is None for one in members) and not asked.get(extra):
            row = Row(row.check, "off", f"not installed: {purpose}", row.mend)
        yield row


def _package_row(check: str, needed: Sequence[Requirement], mend: str) -> Row:
    """Whether all of `needed` is installed, in versions that fit."""
    faults = []
    for one in needed:
        version = _version(one.name)
        if version is None:
            faults.append(f"{one.name} is not installed")
        elif not one.specifier.contains(version, prereleases=True):
            faults.append(f"{one.name} is {version}, but {one.specifier} is needed")
    if faults:
        return Row(check, "failed", "; ".join(faults), mend)
    if check == "packages":
        return Row(check, "ok", f"onsight {__version__} and the {len(needed)} packages that it needs")
    return Row(check, "ok", ", ".join(f"{one.name} {_version(one.name)}" for one in needed))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _load_torch() -> ModuleType | Row:
    let_waiting_threads_sleep()
    try:
        # Imported here: it takes a second or two, and where it is broken the other rows are still wanted.
        import torch
    except (ImportError, OSError) as error:
        return Row("PyTorch", "failed", f"cannot be loaded: {error}", "pip install --force-reinstall torch")
    return torch


def _gpu(settings: Settings, torch: ModuleType) -> Row:
    present = ["mps"] if torch.backends.mps.is_available() else []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        present.append(f"cuda:{index} {facts.name}, {size_text(facts.total_memory)}")
    return gpu_row(_device(settings), present, torch.version.cuda, has_driver=Path("/dev/nvidiactl").exists())


def _device(settings: Settings) -> str:
    """What the engine is told; a GPU may be wanted of the torch engine alone."""
    from onsight.engine_choice import choose_kind

    try:
        return settings.torch_device if choose_kind(settings)[0] == "torch" else settings.device
    except StartError:  # the model's row tells
        return settings.device


def gpu_row(device: str, present: Sequence[str], cuda_build: str | None, *, has_driver: bool) -> Row:
    """`present`: what PyTorch can use, each beginning with its kind. `cuda_build`: the CUDA that PyTorch is built for,
    if any. `has_driver`: whether NVIDIA's is loaded on this machine."""
    if device == "gpu" and not present:
        fault = "a GPU is wanted (wants_gpu), but PyTorch finds none"
    elif device in ("cuda", "mps") and not any(one.startswith(device) for one in present):
        fault = f"device is {device}, but PyTorch finds none"
    elif device == "auto" and has_driver and not present:
        fault = "there is an NVIDIA driver, but PyTorch finds no GPU"
    else:
        return Row("GPU", "ok" if present else "off", "; ".join(present) or "none: models run on the CPU")
    if has_driver and cuda_build is None:
        return Row("GPU", "failed", f"{fault}: it is built for CPUs alone", "pip install --force-reinstall torch")
    if has_driver:
        return Row("GPU", "failed", f"{fault}: it is built for CUDA {cuda_build}; is the driver as new?", "nvidia-smi")
    return Row("GPU", "failed", f"{fault}; a container sees one with `--gpus all`", "onsight serve --device cpu")


def _cpu(settings: Settings, torch: ModuleType) -> Row:
    from onsight.engines.torch_engine.quantize import int8_is_exact

    adds_bytes = int8_is_exact()
    flags = f"{torch.backends.cpu.get_cpu_capability()}{', VNNI' if adds_bytes else ''}"
    found = f"{psutil.cpu_count(logical=False)} cores, {psutil.cpu_count()} threads, {flags}"
    if settings.quantize == "int8" and not adds_bytes:
        return Row("CPU", "failed", f"{found}: int8 weights need VNNI", "onsight serve --quantize int4")
    return Row("CPU", "ok", found)


_Here = tuple[Path, ModelCard]
"""The files of a model that the torch engine runs, and their card."""


def _model(settings: Settings) -> tuple[Row, _Here | None]:
    """Whether the model can be served, as far as its files' headers tell."""
    from onsight.engine_choice import choose_kind
    from onsight.engines.upstream_engine import llama, vllm
    from onsight.models.gguf import find_gguf, read_gguf

    mend = _OTHER_MODEL
    try:
        kind, reason = choose_kind(settings)
        if kind == "torch":
            return _found("model", settings.model, settings.revision)
        if kind == "vllm":
            mend = "ONSIGHT_VLLM=/path/to/vllm onsight serve --engine vllm"
            vllm.find_program(settings.vllm)
        if kind == "llama" and settings.llama_server is None:
            is_here = find_spec("xllamacpp") is not None
            mend = "onsight serve --llama-server PATH" if is_here else "pip install 'onsight[llama]'"
            llama.require_library()
        mend = _OTHER_MODEL
        if kind == "llama":
            files = find_gguf(settings.model, settings.mmproj, settings.revision)
            if files is None:
                return _absent("model", settings.model, settings.revision), None
            read_gguf(*files)
    except StartError as error:
        return Row("model", "failed", str(error), mend), None
    return Row("model", "ok", f"{settings.model}, engine {kind}: {reason}"), None


def _found(check: str, model: str, revision: str | None) -> tuple[Row, _Here | None]:
    """The same for safetensors files."""
    from onsight.models.hub import find_local

    try:
        folder = find_local(model, revision)
        if folder is not None:
            card = find_card(model, folder)
            return Row(check, "ok", f"{model} ({card.title}) in {folder}"), (folder, card)
    except StartError as error:
        return Row(check, "failed", str(error), _OTHER_MODEL), None
    return _absent(check, model, revision), None


def _absent(check: str, model: str, revision: str | None) -> Row:
    """A Hub id that is not in the cache."""
    from huggingface_hub import constants

    pull = f"onsight pull {model}" + (f" --revision {revision}" if revision else "")
    if constants.HF_HUB_OFFLINE:
        offline = f"{model} is not here, or not all of it, and HF_HUB_OFFLINE is set"
        return Row(check, "failed", offline, f"HF_HUB_OFFLINE=0 {pull}")
    return Row(check, "off", f"{model} is not here, or not all of it: the server downloads it first", pull)


def _memory(settings: Settings, here: _Here | None) -> Row:
    """Free memory, and whether the weights of a model that chats fit."""
    if here is None or "chat" not in here[1].capabilities:
        return Row("memory", "ok", f"{size_text(free_memory())} free")
    import torch

    from onsight.engines.torch_engine.kv_cache import free_bytes
    from onsight.engines.torch_engine.memory import survey
    from onsight.engines.torch_engine.settings import TorchSettings

    chosen = TorchSettings(device=settings.device, dtype=settings.dtype, quantize=settings.quantize)
    try:
        found = survey(*here, chosen)
    except StartError as error:
        return Row("memory", "failed", str(error), _OTHER_MODEL)
    free, weights = free_bytes(torch.device(found.device)), found.memory.weights_bytes
    told = f"{size_text(free)} free for {found.device}; the weights take {size_text(weights)} as {found.dtype}"
    if weights <= free:
        return Row("memory", "ok", told)
    can_shrink = found.device == "cpu" and not found.dtype.startswith("int")
    return Row("memory", "failed", told, "onsight serve --quantize int4" if can_shrink else _OTHER_MODEL)


def _temporary() -> Row:
    from onsight.serve import temporary_folder

    try:
        return Row("temporary", "ok", f"files that do not last go to {temporary_folder()}")
    except StartError as error:
        return Row("temporary", "failed", str(error), "TMPDIR=/another/folder onsight serve")


def _places(*, needs_room: bool) -> Iterator[Row]:
    """The models' folder and its disk; they matter where a model has yet to come."""
    from huggingface_hub import constants

    from onsight.models.hub import cached_models

    folder = Path(constants.HF_HUB_CACHE)
    # Not Path.exists, which raises where a folder above may not be entered.
    there = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    is_open = there.is_dir() and os.access(there, os.R_OK | os.X_OK)
    other = "HF_HOME=/another/folder onsight serve"
    free = shutil.disk_usage(there).free
    short = needs_room and free < _LEAST_FREE
    yield Row("disk", "failed" if short else "ok", f"{size_text(free)} free for {folder}", other if short else "")
    if needs_room and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield Row("cache", "failed", f"{folder} cannot be written to by this user", other)
        return
    if not is_open and there.is_dir():
        yield Row("cache", "off", f"{there} cannot be read by this user: no model in {folder} can be served", other)
        return
    models = [one for one in cached_models() if one.whole] if there == folder else []
    total = size_text(sum(one.disk_bytes for one in models))
    yield Row("cache", "ok", f"{len(models)} whole models, {total}, in {folder}")


def _port(settings: Settings) -> Row:
    # Imported here, since it brings the web server along.
    from onsight.serve import listen_on

    try:
        with listen_on(settings) as listening:
            host, port = listening.getsockname()[:2]
    except StartError as error:
        return Row("port", "failed", str(error), "onsight serve --port 0")
    return Row("port", "ok", f"{host}:{port} is free")


def _keys(settings: Settings) -> Row:
    from onsight.api.keys import read_keys

    file = settings.keys_file
    if file is None and settings.api_key is None:
        if not settings.no_auth and _in_image() and "host" not in settings.model_fields_set:
            served = "none, and the image serves with --host 0.0.0.0: it ends at once"
            return Row("keys", "failed", served, "docker run --env ONSIGHT_API_KEY=KEY ...")
        who = "everybody (no_auth)" if settings.no_auth else "this machine alone"
        return Row("keys", "off", f"none: the server answers {who}", "onsight keys add NAME --keys-file FILE")
    add = f"onsight keys add NAME --keys-file {file}"
    try:
        keys = () if file is None else read_keys(file)
    except StartError as error:
        return Row("keys", "failed", str(error), f"mv {file} {file}.broken && {add}")
    good = sum(not key.expired for key in keys)
    if good == 0 and settings.api_key is None:
        return Row("keys", "failed", f"{file} has no key that has not ended: nobody may call", add)
    one = "one in the settings" if settings.api_key is not None else ""
    many = "" if file is None else f"{good} of {len(keys)} in {file} are good"
    return Row("keys", "ok", ", ".join(part for part in (one, many) if part))


def _in_image() -> bool:
    """Whether this is an image of deploy/Dockerfile, whose command adds --host; RunPod's takes jobs instead."""
    return sys.prefix == "/opt/onsight" and not takes_runpod_jobs()
