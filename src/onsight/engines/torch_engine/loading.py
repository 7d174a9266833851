"""From a folder to a model in memory: files checked, configuration read, every tensor accounted for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.initialization import no_init_weights

from onsight.core.engine import Progress
from onsight.core.errors import StartError
from onsight.engines.torch_engine.gguf_weights import open_gguf
from onsight.engines.torch_engine.narrowing import (
    HALVES,
    HEAD,
    PACKED,
    SCALES,
    WORDS,
    Narrowed,
    as_stored,
    by_rule,
    narrow,
)
from onsight.engines.torch_engine.quantize import INT8_BESIDE, ON_GPU, Scheme, int8_is_exact, packed_bytes
from onsight.engines.torch_engine.settings import DeviceChoice, DtypeChoice
from onsight.models.hub import ADAPTER_CONFIG, QUANT_METHOD

log = logging.getLogger(__name__)

JsonObject = dict[str, object]

_REMOTE_CODE_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
"""Where a checkpoint in several files says which tensor is in which."""
_FORGETTABLE = (".rotary_emb.inv_freq", ".position_ids")
"""Buffers that old checkpoints store though they are computed, not learned."""
_PLAIN_KINDS = ("F64", "F32", "F16", "BF16")
"""How safetensors calls the number formats that hold weights as they are; all others are quantised."""
_STORED_BYTES = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}
"""A number's, in the formats that are kept as they are stored."""
_NAMED = 3
"""So many tensors of each fault are named in a refusal."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that was checked, and how its model is to stand in memory.

    On torch's "meta" device tensors have shapes and no numbers: what is stored is then checked, and nothing is read.
    `scheme`: the few bits in which the decoder's products stand, None for `dtype`. `keep` is handed the model when it
    is whole, before any part is laid out for the processor.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    progress: Progress | None = None
    scheme: Scheme | None = None
    keep: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header of the safetensors file `path` says of one tensor; `kind` is its number format, like "BF16"."""

    name: str
    path: Path
    shape: tuple[int, ...]
    kind: str

    @property
    def numbers(self) -> int:
        """How many there are."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`. Raises StartError when it is missing or something else."""
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StartError(f"{path.parent} holds no {path.name}, so it is no complete model folder") from None
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(table, dict):
        raise StartError(f"{path} holds no JSON object")
    return table


def read_optional_json(path: Path) -> JsonObject:
    """As `read_json`, but a missing file is an empty object."""
    return read_json(path) if path.exists() else {}


def check_folder(folder: Path, replaces_code: bool = False) -> None:
    """Refuse what can never be loaded: no folder, no config.json, remote code, weights that are not safetensors.

    `replaces_code`: the family does without the code that the checkpoint names, so it may name some.
    """
    if not folder.is_dir():
        raise StartError(f"{folder} is no folder")
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        raise StartError(f"{folder} holds an adapter, not a whole model: merge it into its base model first")
    read_json(folder / "config.json")
    if not replaces_code:
        refuse_code(folder)
    if not weight_files(folder):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {', '.join(pickles)}, which can hide code" if pickles else "none"
        raise StartError(f"{folder} must hold its weights as .safetensors files; found {found}")


def refuse_code(folder: Path) -> None:
    """Raise StartError when a file in `folder` names code that comes with the model."""
    for name in _REMOTE_CODE_FILES:
        if "auto_map" in read_optional_json(folder / name):
            raise StartError(
                f"{folder / name} asks for code that comes with the model (auto_map), which is never run here"
            )


def pick_device(choice: DeviceChoice) -> torch.device:
    """The device to run on; a GPU that PyTorch was built for and that is not there is a warning. Raises StartError for
    `cuda` or `mps` on a machine without one, and for `gpu` without either."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice == "auto":
        if torch.version.cuda is not None and not present["cuda"]:
            log.warning("torch %s is built for GPUs and finds none; running on the CPU", torch.__version__)
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if choice == "gpu":
        if not present["cuda"] and not present["mps"]:
            raise StartError(
                f"a GPU is wanted (wants_gpu), but there is none that torch {torch.__version__} can use: a container"
                " gets one with `docker run --gpus all`, its driver is shown by `nvidia-smi`; or pass --device cpu"
            )
        return torch.device("cuda" if present["cuda"] else "mps")
    if choice == "cuda-or-cpu":
        if not present["cuda"]:
            log.warning("this machine has no GPU that torch %s can use; running on the CPU", torch.__version__)
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present[choice]:
        raise StartError(
            f"device is {choice}, but this machine has none that torch {torch.__version__} can use: pass --device cpu,"
            " or auto; a container sees NVIDIA's GPUs with `docker run --gpus all`"
        )
    return torch.device(choice)


def pick_dtype(choice: DtypeChoice, device: torch.device) -> torch.dtype:
    """The number format to run with on `device`; see `dtype_for`."""
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype_for(choice, device.type, native)


def dtype_for(choice: DtypeChoice, device_type: str, native_bfloat16: bool) -> torch.dtype:
    """ "auto" is float32 on a CPU, bfloat16 on CUDA where the GPU has it, else float16 as on Apple's GPUs.

    Raises StartError for bfloat16 on a GPU that would only emulate it.
    """
    if choice == "bfloat16" and not native_bfloat16:
        raise StartError("dtype is bfloat16, which this GPU does not have: choose float16 or float32")
    cuda = "bfloat16" if native_bfloat16 else "float16"
    chosen = {"cpu": "float32", "cuda": cuda, "mps": "float16"}[device_type] if choice == "auto" else choice
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[chosen]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those that the index names, if there is one. Raises StartError."""
    index = read_optional_json(folder / INDEX)
    if not index:
        return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf"))
    table = index.get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    # A name with a path in it would have us open a file outside the folder.
    if not names or any(Path(name).name != name for name in names):
        raise StartError(f"{folder / INDEX} does not say which file holds which tensor (weight_map)")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise StartError(
            f"{folder / INDEX} names {_listed(missing)}, which the folder does not hold: download the model again"
        )
    return [folder / name for name in names]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor that `folder` holds by name, read from the files' headers alone.

    Raises StartError for a file that is cut short or damaged, and for a tensor that is in two files.
    """
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        with _opened(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name in stored:
                    raise StartError(
                        f"{folder}: tensor {name} is both in {stored[name].path.name} and in {path.name}: keep one of"
                        f" them, or say which in {INDEX}"
                    )
                part = file.get_slice(name)
                stored[name] = StoredTensor(name, path, tuple(part.get_shape()), str(part.get_dtype()))
    return stored


def weight_bytes(folder: Path, dtype: torch.dtype, scheme: Scheme | None = None) -> int:
    """What the weights take in memory as `dtype`, with the decoder's products in `scheme`.

    Raises StartError as `stored_tensors` does.
    """
    stored = stored_tensors(folder)
    if scheme is None:
        return dtype.itemsize * sum(one.numbers for one in stored.values())
    saved = packed_as(folder) is not None
    tables = [one for one in stored.values() if one.name.endswith(f"{WORDS}.weight")]
    tied = not saved and not any(f"{HEAD}.weight" in name for name in stored)
    head = sum(_bytes_of(replace(one, name=f"{HEAD}.weight"), dtype, scheme) for one in tables[:1] if tied)
    return head + sum(_bytes_of(one, dtype, None if saved else scheme) for one in stored.values())


def _bytes_of(one: StoredTensor, dtype: torch.dtype, scheme: Scheme | None) -> int:
    """What a tensor takes beside products of few bits; `scheme`: None where it is stored as it will stand."""
    name, plain = one.name.removesuffix(".weight"), len(one.shape) == 2 and one.name.endswith(".weight")
    few = by_rule(scheme)(name, one.shape[1]) if scheme is not None and plain else None
    if few is not None:
        return packed_bytes(few, *one.shape)
    half = plain and one.kind in HALVES and dtype == torch.float32
    as_stored = half or one.name.endswith((PACKED, SCALES))
    if one.kind == "I8" and not int8_is_exact():
        return 4 * one.numbers  # made wide
    laid_out = one.shape[0] * INT8_BESIDE if one.name.endswith(PACKED) and one.kind == "I8" else 0
    return one.numbers * (_STORED_BYTES[one.kind] if as_stored else dtype.itemsize) + laid_out


@contextmanager
def _opened(path: Path, framework: Literal["pt", "np"]) -> Iterator[Any]:
    """`path` as safetensors opens it: an object without types of its own. For "pt" the system reserves its memory."""
    if path.suffix == ".gguf":
        yield open_gguf(path)
        return
    try:
        with safe_open(path, framework=framework, device="cpu") as file:
            yield file
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise StartError(f"{path} is cut short or no safetensors file ({error}): download it again") from None


def empty_model(kind: Any, config: Any, checkpoint: Checkpoint) -> Any:
    """A model of transformers' class `kind` as `checkpoint` is to stand in memory, for `load_weights` to fill."""
    with no_init_weights(), torch.device(checkpoint.device):
        return kind._from_config(config, dtype=checkpoint.dtype, attn_implementation="sdpa").eval()


def load_weights(model: nn.Module, checkpoint: Checkpoint, rename: Callable[[str], str | None]) -> None:
    """Copy every tensor of `checkpoint` into `model`, casting to the model's number format on the way.

    `rename` maps a checkpoint's tensor name to the model's, or to None when the model knows it and does without.
    Raises StartError that names the tensors that are missing, unexpected, mis-shaped or there twice, before any of them
    is read; computed buffers and tied output weights may be absent or present.
    """
    stored = stored_tensors(checkpoint.folder)
    order = packed_as(checkpoint.folder)
    narrowed = _narrow(model, checkpoint, stored, rename)
    targets: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    if order is None:
        targets = narrowed.targets(targets)
    places = _account(checkpoint.folder, stored, targets, rename)
    if checkpoint.device.type == "meta":
        return
    done = 0
    for path in sorted({one.path for one in stored.values()}):
        with _opened(path, "pt") as file, torch.no_grad():
            for name in [name for name in places if stored[name].path == path]:
                tensor, place = file.get_tensor(name), places[name]
                if order is None and place in narrowed.parts:
                    linear, part = narrowed.parts[place]
                    linear.take(part, tensor)
                elif order is not None and targets[place].dtype == tensor.dtype:
                    targets[place].data = tensor  # stays in the file until it is read
                else:
                    targets[place].copy_(tensor)
                done += 1
                if checkpoint.progress is not None:
                    checkpoint.progress(done, len(places))
    narrowed.finish(targets, order)
    if checkpoint.keep is not None:
        checkpoint.keep(model)
    narrowed.settle()


def _narrow(
    model: nn.Module, checkpoint: Checkpoint, stored: dict[str, StoredTensor], rename: Callable[[str], str | None]
) -> Narrowed:
    """Make room in `model` for what is to be held in few bits; none where `checkpoint` has no scheme."""
    if checkpoint.scheme is None:
        return Narrowed()
    kinds = {place: one.kind for name, one in stored.items() if (place := rename(name)) is not None}
    saved = packed_as(checkpoint.folder) is not None
    with torch.device(checkpoint.device):
        return narrow(model, as_stored(kinds) if saved else by_rule(checkpoint.scheme), kinds, checkpoint.dtype)


def saved_scheme(folder: Path) -> Scheme | None:
    """The few bits in which `onsight quantize` wrote `folder`; None for plain weights.

    Raises StartError for weights that another program quantised.
    """
    found = _quantisation(folder)
    if found is None:
        return None
    for scheme in ON_GPU:
        if (found.get("quant_method"), found.get("scheme")) == (QUANT_METHOD, scheme):
            return scheme
    raise StartError(
        f"{folder / 'config.json'} says that the weights are quantised by {found.get('quant_method')!r}, which is not"
        " read here: take the plain weights, and --quantize if memory is short"
    )


def packed_as(folder: Path) -> str | None:
    """The order of the bits in a folder that `onsight quantize` wrote; None for plain weights."""
    found = _quantisation(folder)
    return None if found is None or found.get("quant_method") != QUANT_METHOD else str(found.get("order"))


def _quantisation(folder: Path) -> JsonObject | None:
    found = read_optional_json(folder / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else None


def require_finite(folder: Path) -> int:
    """Read every stored tensor once; how many there are. Raises StartError that names one with NaN or infinity."""
    stored = stored_tensors(folder)
    for path in sorted({one.path for one in stored.values()}):
        with _opened(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if not bool(torch.isfinite(file.get_tensor(name)).all()):
                    raise StartError(f"{folder}: tensor {name} holds NaN or infinity: download the model again")
    return len(stored)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Everything in one safetensors file. Raises StartError for a file that cannot be read."""
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _account(
    folder: Path,
    stored: dict[str, StoredTensor],
    targets: dict[str, torch.Tensor],
    rename: Callable[[str], str | None],
) -> dict[str, str]:
    """Stored name -> the model's name, for all that is to be read. Raises StartError with everything that is wrong."""
    places: dict[str, str] = {}
    unexpected, faults = [], []
    for name, one in stored.items():
        place = rename(name)
        if place is None:
            continue
        if place not in targets:
            if not place.endswith(_FORGETTABLE):
                unexpected.append(name)
            continue
        wanted = targets[place]
        if one.shape != tuple(wanted.shape):
            faults.append(f"tensor {name} has shape {list(one.shape)}, but config.json asks for {list(wanted.shape)}")
        elif wanted.is_floating_point() and one.kind not in _PLAIN_KINDS:
            faults.append(f"tensor {name} is quantised ({one.kind}), and only plain weights are read here")
        elif place in places.values():
            first = next(one for one, used in places.items() if used == place)
            faults.append(f"tensors {first} and {name} are for the same place; keep one of them")
        places[name] = place
    # Tied weights are one tensor under several names, and stored under any of them.
    filled = {id(targets[place]) for place in places.values()}
    missing = sorted(name for name, target in targets.items() if id(target) not in filled)
    if missing:
        faults.insert(0, f"tensor {_listed(missing)} is missing from the weights")
    if unexpected:
        faults.append(f"unexpected tensor {_listed(sorted(unexpected))}; the model has no place for it")
    if faults:
        more = f"; and {len(faults) - _NAMED} more faults" if len(faults) > _NAMED else ""
        raise StartError(f"{folder}: {'; '.join(faults[:_NAMED])}{more}")
    return places


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def video_settings(folder: Path) -> JsonObject:
    """The video processor's settings, empty where the checkpoint has none of its own."""
    inner = read_optional_json(folder / "processor_config.json").get("video_processor")
    return inner if isinstance(inner, dict) else read_optional_json(folder / "video_preprocessor_config.json")


def image_settings(folder: Path) -> JsonObject:
    """The image processor's settings, from whichever file the checkpoint's age put them in."""
    table = read_optional_json(folder / "preprocessor_config.json")
    if not table:
        inner = read_optional_json(folder / "processor_config.json").get("image_processor")
        table = inner if isinstance(inner, dict) else {}
    if not table:
        raise StartError(f"{folder} holds no image settings (preprocessor_config.json or processor_config.json)")
    names = (
        "image_processor_type",
        "processor_class",
        "_processor_class",
        "feature_extractor_type",
        "return_row_col_info",
    )
    return {name: value for name, value in table.items() if name not in names}
