"""The training loop of both stages: optimiser, schedule by the clock, checkpoints, exact resume."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """Learning rate: warm-up over ``warmup`` steps, constant, then linear decay in the last ``decay`` of the time."""

    peak: float
    warmup: int
    minutes: float
    decay: float

    def rate(self, step: int, elapsed_minutes: float) -> float:
        """The rate at ``step`` (from 0) after ``elapsed_minutes`` of training, earlier runs' counted in."""
        left = max(self.minutes - elapsed_minutes, 0.0) / max(self.minutes * self.decay, 1e-9)
        return self.peak * min((step + 1) / self.warmup, 1.0) * max(min(left, 1.0), 0.02)


def add_loop_arguments(parser: argparse.ArgumentParser, batch: int, rate: float) -> None:
    """The arguments that both stages share."""
    parser.add_argument("--out", required=True, help="folder of this run's checkpoint and log")
    parser.add_argument("--warm", help="a model folder, or another run, whose weights to start from")
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the whole run")
    parser.add_argument("--decay", type=float, default=0.25, help="share of the run over which the rate falls")
    parser.add_argument("--batch", type=int, default=batch, help="screens in a step")
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps of warm-up")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--threads", type=int, default=2, help="threads that compute, on a CPU")
    parser.add_argument("--beside", help="folder of a like run that goes on at the same time: see average_with")
    parser.add_argument("--first", type=int, default=0, help="number of the first screen; another one for a run beside")
    parser.add_argument("--save-every", type=float, default=3.0, help="minutes between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run_loop(
    arguments: argparse.Namespace,
    modules: dict[str, nn.Module],
    groups: list[tuple[list[nn.Parameter], float]],
    batches: Callable[[int], Iterable[Batch]],
    step: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
    schedule: Schedule,
) -> None:
    """Train until the schedule's minutes are over; goes on from ``arguments.out`` where it holds a checkpoint.

    ``groups`` are (parameters, factor on the rate); ``batches(n)`` gives batches from the n-th screen on.
    """
    out, device = Path(arguments.out), torch.device(arguments.device)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    for module in modules.values():
        module.to(device).train()
    optimisers = make_optimisers(modules, groups)
    state = {"steps": 0, "screens": 0, "minutes": 0.0}
    if (out / "checkpoint.pt").exists():
        state = load_checkpoint(out, modules, optimisers)
    started, before, saved, log = time.monotonic(), state["minutes"], time.monotonic(), _Log(out)
    for batch in batches(arguments.first + state["screens"]):
        rate = schedule.rate(state["steps"], state["minutes"])
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = rate * group["factor"]
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16):
            loss, shares = step(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for parameters, _ in groups for p in parameters], 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        state["steps"] += 1
        state["screens"] += arguments.batch
        state["minutes"] = before + (time.monotonic() - started) / 60
        log.add(state, rate, {"loss": loss, "norm": norm, **shares})
        over = state["minutes"] >= schedule.minutes
        if over or time.monotonic() - saved > 60 * arguments.save_every:
            if arguments.beside:
                average_with(Path(arguments.beside), modules, newer_than=out)
            save_checkpoint(out, modules, optimisers, state)
            saved = time.monotonic()
        if over:
            break


Optimisers = tuple[torch.optim.Optimizer, ...]

_INNER = (".layers.", ".blocks.", "modality_projection", ".merger.")
"""What the names of matrices inside the layers and the connectors of Peek and Leaf have in them."""


def make_optimisers(modules: dict[str, nn.Module], groups: list[tuple[list[nn.Parameter], float]]) -> Optimisers:
    """Muon for the matrices inside the layers and the connector, AdamW for all else (embeddings, norms, heads)."""
    named = {id(p): name for module in modules.values() for name, p in module.named_parameters()}

    def inner(parameter: nn.Parameter) -> bool:
        name = named[id(parameter)]
        return parameter.ndim == 2 and any(part in name for part in _INNER)

    matrices = [{"params": [p for p in ps if inner(p)], "factor": 2 * factor} for ps, factor in groups]
    others = [{"params": [p for p in ps if not inner(p)], "factor": factor} for ps, factor in groups]
    return (
        torch.optim.Muon([g for g in matrices if g["params"]], adjust_lr_fn="match_rms_adamw", weight_decay=0.02),
        torch.optim.AdamW([g for g in others if g["params"]], betas=(0.9, 0.98), weight_decay=0.02, fused=True),
    )


def save_checkpoint(out: Path, modules: dict[str, nn.Module], optimisers: Optimisers, state: dict) -> None:
    """Write everything that an exact resume needs, in one step."""
    content = {"state": state, "optimisers": [optimiser.state_dict() for optimiser in optimisers]}
    content |= {name: module.state_dict() for name, module in modules.items()}
    torch.save(content, out / "checkpoint.tmp")
    (out / "checkpoint.tmp").replace(out / "checkpoint.pt")


@torch.no_grad()
def average_with(other: Path, modules: dict[str, nn.Module], newer_than: Path) -> None:
    """Take the mean of ``modules`` and what ``other`` stored last, where it did since the run ``newer_than`` did.

    Two processes that each have a core of their own, meet every few minutes and never wait for each other, learn
    faster than one (local SGD, Stich 2019), however unlike their speeds.
    """
    theirs, ours = other / "checkpoint.pt", newer_than / "checkpoint.pt"
    if not theirs.exists() or (ours.exists() and theirs.stat().st_mtime <= ours.stat().st_mtime):
        return
    content = torch.load(theirs, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        for key, parameter in module.named_parameters():  # each once, also where two names share one
            parameter.lerp_(content[name][key].to(parameter.device), 0.5)


def load_checkpoint(out: Path, modules: dict[str, nn.Module], optimisers: Optimisers = ()) -> dict:
    """Read a checkpoint into ``modules`` (those it has) and the optimisers; gives the counts of the run."""
    content = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    for name, module in modules.items():
        if name in content:
            module.load_state_dict(content[name])
    for optimiser, state in zip(optimisers, content["optimisers"], strict=False):
        optimiser.load_state_dict(state)
    return content["state"]


class _Log:
    """Means over every 25 steps, printed and kept as JSON lines in the run's folder."""

    def __init__(self, out: Path):
        self.path, self.sums, self.count = out / "log.jsonl", {}, 0
        self.since, self.screens = time.monotonic(), None

    def add(self, state: dict, rate: float, values: dict[str, Tensor]) -> None:
        """Take in one step's figures."""
        if self.screens is None:
            self.screens = state["screens"]
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value.detach())
        self.count += 1
        if self.count < 25:
            return
        speed = (state["screens"] - self.screens) / (time.monotonic() - self.since)
        line = {key: round(value / self.count, 4) for key, value in self.sums.items()}
        line = {**state, "minutes": round(state["minutes"], 2), "rate": rate, "per_s": round(speed, 1), **line}
        print(json.dumps(line), flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums, self.count, self.since, self.screens = {}, 0, time.monotonic(), state["screens"]
