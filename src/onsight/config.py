"""Settings: defaults < file < environment < flags. The only reader of the environment, and the only list of options.

The command line makes its flags out of these fields (`onsight.cli.options`), the environment's names are
`ONSIGHT_` and the field's name in capitals, and a settings file is TOML with the same names, where
`[media] max_pixels` is `media_max_pixels`. Names that other servers' set-ups use are read too (docs/compat.md).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from onsight.core.errors import StartError
from onsight.models.hub import use_cache

PREFIX = "ONSIGHT_"
MEGABYTE = 1 << 20

_SECRETS = ("api_key", "upstream_key", "qdrant_key")
_SHA256 = r"^[0-9A-Fa-f]{64}$"

BORROWED = (
    ("MODEL_NAME", "model"),
    ("SMOLVLM2_MODEL_ID", "model"),
    ("MODEL_DEVICE", "device"),
    ("PORT", "port"),
    ("APP_PORT", "port"),
    ("N_THREADS", "threads"),
    ("CLIP_MODEL_NAME", "mmproj"),
)
"""Other servers' names in the environment, and our options that they set."""

_FOLDER_AND_NAME = "MODEL_PATH with MODEL_NAME"
_USUAL_FILE = "llama-3.2-11b-vision-instruct-q4_k_m.gguf"
"""What MODEL_NAME is where it is not set, for the service that has MODEL_PATH."""

RETRIEVER = "leaf"
"""The bundled model that makes vectors."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


def _split(value: object) -> object:
    """One text with commas is a list too, since environments and flags hold texts."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Ports = Annotated[tuple[int, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """Every option of the server; each has its unit in its name or in its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field("peek", description="Model to serve: 'peek' (bundled), a folder, a Hub id, or a GGUF file.")
    revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of a Hub id; its main branch if unset."
    )
    served_model_name: Names = Field(
        (), description="Names that clients use for the model; the first one is in answers."
    )
    embed_model: str | None = Field(
        None, min_length=1, description="Model beside it that makes vectors; 'leaf' (bundled) where `serve` names none."
    )
    embed_revision: str | None = Field(None, min_length=1, description="As --revision, for the model beside it.")
    served_embed_name: Names = Field((), description="As --served-model-name, for the model beside it.")
    qdrant: str | None = Field(
        None, min_length=1, description="Index of pages: a folder, or the URL of a Qdrant server; see docs/search.md."
    )
    qdrant_collection: str = Field("pages", min_length=1, description="Name of the collection of pages in it.")
    qdrant_key: str | None = Field(None, min_length=1, description="Key for that server.")
    engine: Literal["auto", "torch", "llama", "vllm", "upstream", "fake"] = Field(
        "auto", description="Who runs the model: 'auto' picks by its files; 'fake' is no model, for tests."
    )
    device: Literal["auto", "cpu", "cuda", "mps", "cuda-or-cpu"] = Field(
        "auto", description="Where the model runs; without a GPU 'cuda' does not start, 'cuda-or-cpu' warns."
    )
    wants_gpu: bool = Field(
        False, description="With device 'auto', PyTorch's models do not start without a GPU; the GPU images set it."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Number type of the weights.")
    quantize: Literal["auto", "none", "int4", "int8"] = Field(
        "auto",
        description="Bits of the language model's weights; 'auto' is int4 on a CPU where they would not fit well.",
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Most tokens of prompt and answer together, or of a query or page to embed."
    )
    max_num_seqs: int = Field(
        8, ge=1, le=1024, description="Most requests that are answered at the same time; vllm, upstream: 256."
    )
    max_queue: int = Field(
        64, ge=1, description="Most requests that run and wait; one more is answered 429. vllm, upstream: 512."
    )
    max_queue_caller: int | None = Field(
        None,
        ge=1,
        description="Most of one caller, and its share of pixels; if unset three quarters with --keys-file, else all.",
    )
    max_queue_pixels: int = Field(
        600_000_000, ge=1, description="Most pixels of all requests that run and wait; one more is answered 429."
    )
    max_queue_tokens: int | None = Field(
        None,
        ge=1,
        description="Most prompt tokens prepared at once, others wait; if unset four times the key-value cache's.",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, description="Longest time for an answer, in seconds; of a stream of vectors, for each of them."
    )
    stall_timeout_s: float = Field(
        300.0,
        gt=0,
        description="After how many seconds without a step, or an answer of its server, an engine is not ready.",
    )
    max_inputs: int = Field(1024, ge=1, description="Most queries and pages in one request for vectors or scores.")
    kv_cache_tokens: int | None = Field(
        None, ge=16, description="Tokens in the key-value cache; from free memory if unset."
    )
    image_cache_mb: int = Field(
        256, ge=0, description="Megabytes (2**20 bytes) of picture features kept for reuse; GGUF: of prompts."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the model; PyTorch's own choice if unset.")

    mmproj: str | None = Field(
        None, description="GGUF: the part that sees; that beside the model if unset; 'none': no pictures."
    )
    model_sha256: str | None = Field(None, pattern=_SHA256, description="GGUF: SHA-256 that the file must have.")
    mmproj_sha256: str | None = Field(None, pattern=_SHA256, description="GGUF: SHA-256 that the mmproj must have.")
    image_min_tokens: int | None = Field(None, ge=1, description="GGUF: least tokens of a picture, where sizes vary.")
    image_max_tokens: int | None = Field(None, ge=1, description="GGUF: most tokens of a picture, where sizes vary.")
    llama_server: str | None = Field(
        None, min_length=1, description="GGUF: your own llama-server, as a program's path or a running one's URL."
    )
    vllm: str | None = Field(None, min_length=1, description="Path of the program `vllm`, for the engine vllm.")
    vllm_args: str = Field("", description="More arguments for `vllm serve`, in one text.")
    upstream: str | None = Field(
        None, pattern=r"^https?://", description="URL of a running server of OpenAI's API that has the model."
    )
    upstream_key: str | None = Field(None, min_length=1, description="Key for that server.")

    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs a key or --no-auth.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key: str | None = Field(None, min_length=1, description="Key that clients send as 'Authorization: Bearer KEY'.")
    keys_file: Path | None = Field(
        None, description="Keys with names, scopes and ends, as `onsight keys` writes them; read again when it changes."
    )
    no_auth: bool = Field(False, description="Listen beyond loopback without a key.")
    open_docs: bool = Field(False, description="With a key: /docs and /openapi.json need none.")
    open_metrics: bool = Field(False, description="With a key: /metrics needs none.")
    allowed_hosts: Names = Field(
        (), description="Host names that requests may use; on loopback without a key only loopback's own names."
    )
    cors_origins: Names = Field(
        (), description="Web pages (https://name) that may call besides the server's own; '*' for all."
    )
    trusted_proxies: Names = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For and -Proto are believed."
    )
    requests_per_min_key: int | None = Field(None, ge=1, description="Most requests a minute with one key.")
    requests_per_min_address: int | None = Field(None, ge=1, description="Most requests a minute from one address.")
    max_connections: int = Field(1000, ge=1, description="Most open connections.")
    head_timeout_s: float = Field(10.0, gt=0, description="Longest time for the head of a request, in seconds.")
    keep_alive_s: int = Field(30, ge=1, description="How long a silent connection is kept for more, in seconds.")
    send_timeout_s: float = Field(60.0, ge=1, description="Longest time for a client to take what is sent, in seconds.")
    max_body_mb: int = Field(64, ge=1, description="Largest request body, in megabytes (2**20 bytes).")
    body_timeout_s: float = Field(30.0, gt=0, description="Longest pause of a body, in seconds; 128 KiB make up one.")
    drain_timeout_s: float = Field(
        30.0, ge=0, description="After SIGTERM, how long running answers may go on, in seconds."
    )

    media_remote: Literal["public", "off", "allow-list"] = Field(
        "public", description="Which http(s) media are fetched: those of public addresses, none, or of listed hosts."
    )
    media_allowed_hosts: Names = Field((), description="Hosts that may be fetched from under 'allow-list'.")
    media_allowed_ports: Ports = Field((80, 443), description="Ports that may be fetched from.")
    media_max_mb: int = Field(20, ge=1, description="Largest encoded picture, in megabytes (2**20 bytes).")
    media_max_pixels: int = Field(40_000_000, ge=1, description="Largest picture, in pixels, read from its header.")
    media_max_request_pixels: int = Field(120_000_000, ge=1, description="Most pixels in the pictures of one request.")
    media_max_images: int = Field(32, ge=0, description="Most pictures, pages of PDFs among them, in one request.")
    media_max_videos: int = Field(4, ge=0, description="Most videos in one request.")
    media_max_video_mb: int = Field(40, ge=1, description="Largest encoded video, in megabytes (2**20 bytes).")
    media_max_video_s: float = Field(3600.0, gt=0, description="Longest video, in seconds.")
    media_max_video_frames: int = Field(128, ge=1, description="Most frames that are looked at in one video.")
    media_max_video_pixels: int = Field(
        150_000_000, ge=1, description="Most pixels in all frames that are looked at in one request."
    )
    media_video_decode_s: float = Field(
        20.0, gt=0, description="Longest processor time to decode one video, in seconds."
    )
    media_pdf_dpi: int = Field(
        180, ge=36, le=600, description="Pixels an inch that pages of PDFs are drawn at; fewer where limits ask for it."
    )
    media_pdf_draw_s: float = Field(
        20.0, gt=0, description="Longest processor time to draw the pages of one PDF, in seconds."
    )
    media_fetch_timeout_s: float = Field(
        15.0, gt=0, description="Longest time to fetch a request's pictures, and its videos, in seconds."
    )
    media_cache_mb: int = Field(
        128, ge=0, description="Megabytes (2**20 bytes) of decoded pictures kept, 3 bytes a pixel."
    )
    media_workers: int = Field(2, ge=1, description="Threads that decode pictures and videos.")

    ui: bool | None = Field(None, description="Serve the page at /ui; if unset, where the extra `ui` is installed.")

    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="OpenTelemetry collector's URL for traces, as http://host:4318/v1/traces.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines as text or as JSON.")

    _taken: list[str] = PrivateAttr(default_factory=list)

    @property
    def taken(self) -> tuple[str, ...]:
        """What other servers' names in the environment set here, a sentence each, for the log."""
        return tuple(self._taken)

    @property
    def with_retriever(self) -> Settings:
        """These, with the bundled retriever beside the bundled model that answers, where no model is named at all."""
        named = "model" in self.model_fields_set or self.embed_model is not None or self.upstream is not None
        if named or self.engine not in ("auto", "torch"):
            return self
        made = self.model_copy(update={"embed_model": RETRIEVER})
        made._taken = self._taken
        return made

    @property
    def torch_device(self) -> Literal["auto", "cpu", "gpu", "cuda", "mps", "cuda-or-cpu"]:
        """`device` as the torch engine is told it: "gpu", of whatever kind, where one is wanted and no more is said."""
        return "gpu" if self.wants_gpu and self.device == "auto" else self.device

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        """Without a key the server listens on loopback alone, unless told otherwise in so many words."""
        guarded = self.api_key is not None or self.keys_file is not None
        if not guarded and not self.no_auth and self.host not in LOOPBACK_HOSTS:
            raise ValueError(
                f"host {self.host} can be reached by others and no key is set: set ONSIGHT_API_KEY or"
                " ONSIGHT_KEYS_FILE, or pass --no-auth"
            )
        if self.embed_model is None and (self.embed_revision is not None or self.served_embed_name):
            raise ValueError("embed_revision and served_embed_name speak of embed_model, which is not set: name it")
        if self.media_remote == "allow-list" and not self.media_allowed_hosts:
            raise ValueError("media_remote is 'allow-list' but media_allowed_hosts is empty: name the hosts")
        return self


def load_settings(
    flags: Mapping[str, object], *, file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Merge the four sources. `flags` holds only what was given; `environment` defaults to the process's own.

    Raises StartError that names the option and its value.
    """
    environ = os.environ if environment is None else environment
    merged: dict[str, object] = {}
    merged.update(_from_file(file) if file is not None else {})
    merged.update(_from_environment(environ))
    given = [one for one in _given_by_others(environ) if one.option not in flags]
    _check_agreement(given, environ)
    merged.update({one.option: one.value for one in given})
    merged.update(flags)
    for one in given:
        if one.name == _FOLDER_AND_NAME:
            merged.setdefault("served_model_name", environ.get("MODEL_NAME") or _USUAL_FILE)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        sources = {one.option: one.name for one in given}
        raise StartError(
            "; ".join(_sentence(item["loc"], item["msg"], item["input"], sources) for item in error.errors())
        ) from None
    settings._taken.extend(f"{one.option} {one.value!r} is taken from {one.name}" for one in given)
    settings._taken.extend(_use_cache_folder(environ))
    return settings


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a RunPod worker is told. `forward_to`: the address of a server that answers in place of the one inside."""

    server: Settings
    forward_to: str | None


def takes_runpod_jobs(environment: Mapping[str, str] | None = None) -> bool:
    """Whether RunPod hands jobs to this process, by what it sets itself; else one job is answered for a test."""
    return "RUNPOD_WEBHOOK_GET_JOB" in (os.environ if environment is None else environment)


def load_worker_settings(environment: Mapping[str, str] | None = None) -> WorkerSettings:
    """The server's settings and API_BASE_URL. Raises StartError."""
    environ = os.environ if environment is None else environment
    address = environ.get("API_BASE_URL", "").rstrip("/").removesuffix("/v1") or None
    if address is not None and not address.startswith(("http://", "https://")):
        raise StartError(f"API_BASE_URL is {address!r}: set it to an address like http://127.0.0.1:8000, or unset it")
    return WorkerSettings(load_settings({}, environment=environ), address)


def let_waiting_threads_sleep() -> None:
    """Ask OpenMP, which PyTorch computes with on a CPU, to let waiting threads sleep, unless the user chose otherwise.

    By default they spin, and take the processor from those they wait for as soon as anything else runs. OpenMP reads it
    once, when PyTorch is loaded, so this must be called before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def tell_gradio(uploads: Path) -> None:
    """Tell Gradio, which reads the environment, where uploads go and that nobody is to be told of it.

    This must be called before it is loaded.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ALLOWED_PATHS"] = ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    return {
        name: environ[PREFIX + name.upper()] for name in Settings.model_fields if environ.get(PREFIX + name.upper())
    }


class _Given(NamedTuple):
    """A value for an option, and the name in the environment that it stands under."""

    option: str
    name: str
    value: str


def _given_by_others(environ: Mapping[str, str]) -> list[_Given]:
    """What the names of `BORROWED` set."""
    given = [_Given(option, name, environ[name]) for name, option in BORROWED if environ.get(name)]
    # There, MODEL_NAME is a file or folder in MODEL_PATH.
    if folder := environ.get("MODEL_PATH"):
        named = [one for one in given if one.name == "MODEL_NAME"]
        given = [one for one in given if one.name != "MODEL_NAME"]
        within = named[0].value if named else _USUAL_FILE if (Path(folder) / _USUAL_FILE).is_file() else None
        name, path = (_FOLDER_AND_NAME, Path(folder) / within) if within else ("MODEL_PATH", Path(folder))
        given.insert(0, _Given("model", name, str(path)))
    # There, a GPU that is missing is a warning.
    if not environ.get(PREFIX + "DEVICE"):
        given = [one._replace(value="cuda-or-cpu") if one[1:] == ("MODEL_DEVICE", "cuda") else one for one in given]
    # 0 is their word for the library's own choice, which is our default.
    return [one for one in given if (one.name, one.value) != ("N_THREADS", "0")]


def _check_agreement(given: list[_Given], environ: Mapping[str, str]) -> None:
    """Raises StartError when two names in the environment give one option different values."""
    seen: dict[str, _Given] = {}
    for one in given:
        own = PREFIX + one.option.upper()
        first = seen.setdefault(one.option, _Given(one.option, own, environ[own]) if environ.get(own) else one)
        if first.value != one.value:
            raise StartError(
                f"{first.name} gives {first.value!r} and {one.name} gives {one.value!r} for the option {one.option}:"
                f" unset one of them, or pass --{one.option.replace('_', '-')}"
            )


def _use_cache_folder(environ: Mapping[str, str]) -> list[str]:
    """Look for models where TRANSFORMERS_CACHE says, if it is set, and say so. Raises StartError for two answers.

    Hugging Face's own library reads its other names; this one it no longer knows.
    """
    folder, other = environ.get("TRANSFORMERS_CACHE"), environ.get("HF_HUB_CACHE")
    if not folder:
        return []
    if other and other != folder:
        raise StartError(
            f"TRANSFORMERS_CACHE gives {folder!r} and HF_HUB_CACHE gives {other!r} for the folder of models:"
            " unset one of them"
        )
    use_cache(folder)
    return [f"the folder of models {folder!r} is taken from TRANSFORMERS_CACHE"]


def _from_file(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StartError(f"settings file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"settings file {path} is not TOML: {error}") from None
    flat: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat.update({f"{name}_{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[name] = value
    return flat


def _sentence(place: tuple[int | str, ...], message: str, value: object, sources: Mapping[str, str]) -> str:
    """One clear sentence for one wrong option; a key is never shown."""
    name = ".".join(str(part) for part in place)
    message = message.removeprefix("Value error, ")
    if not name:
        return message
    if name not in Settings.model_fields:
        return f"unknown option {name!r} in the settings file"
    shown = "" if name in _SECRETS else f" {value!r}"
    source = sources.get(name, PREFIX + name.upper())
    return f"option {name}{shown}: {message} (--{name.replace('_', '-')}, {source})"
