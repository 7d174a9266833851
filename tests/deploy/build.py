"""Build a Dockerfile's target without a container engine: `python -m tests.deploy.build DOCKERFILE TARGET FOLDER`.

Each stage is a copy-on-write view (overlayfs, in a mount namespace of its own) of a Debian bookworm with Python, which
stands for the base image; COPY, RUN, USER, WORKDIR, ARG and ENV are done in it as they stand. Needs root on Linux.
`--base DIR` is such a system ("/" if unset), `--arg NAME=VALUE` a build argument; `--try "COMMAND"` runs in the result.
`--start NAME=VALUE` (or `--start ""`) starts the image as an engine would, with that in its environment, until its
HEALTHCHECK is content.
A stage whose folder is there from before is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One FROM and what follows: its name, what it stands on, and (word, rest) of each instruction."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class State:
    """What a stage has come to: the folder of all that differs from the base, and what RUN is run with."""

    files: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    starts: Mapping[str, list[str]] = field(default_factory=dict)
    """The arguments of ENTRYPOINT, CMD and HEALTHCHECK."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(word, rest) of each instruction; continued lines are joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), " ".join(rest.split()) if word.upper() != "HEALTHCHECK" else rest.strip()


def read(path: Path) -> tuple[dict[str, str], dict[str, Stage]]:
    """The global build arguments, and the stages by name."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(path.read_text("utf-8")):
        if word == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", rest)
            assert match, f"FROM {rest}: name every stage"
            stage = stages[match[2]] = Stage(match[2], match[1])
        elif stage is None:
            assert word == "ARG", word
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            stage.steps.append((word, rest))
    return arguments, stages


def expand(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda match: values.get(match[1] or match[2], ""), text)


class Builder:
    """Builds stages into `folder`, each at most once."""

    def __init__(self, dockerfile: Path, folder: Path, base: Path, arguments: Mapping[str, str]) -> None:
        self._given = dict(arguments)
        _, self.stages = read(dockerfile)
        self._folder = folder
        self._base = base
        self._done: dict[str, State] = {}

    def build(self, name: str) -> State:
        """The stage, after its parents and those that it copies from. Raises CalledProcessError of a failing RUN."""
        if name not in self.stages:
            return State(self._base, {"PATH": os.environ["PATH"]})
        if name not in self._done:
            stage = self.stages[name]
            below = self.build(stage.parent)
            state = State(self._folder / name, below.environment, {}, below.user, below.folder, below.starts)
            built = state.files.exists()
            state.files.mkdir(parents=True, exist_ok=True)
            if not built and stage.parent in self.stages:
                subprocess.run(["cp", "--archive", "--link", f"{below.files}/.", state.files], check=True)
            for word, rest in stage.steps:
                if not built or word not in ("COPY", "RUN"):
                    self._step(word, rest, state)
            self._done[name] = state
        return self._done[name]

    def _step(self, word: str, rest: str, state: State) -> None:
        values = {**state.arguments, **state.environment}
        match word:
            case "ARG":
                name, _, default = rest.partition("=")
                state.arguments = {**state.arguments, name: self._given.get(name, default)}
            case "ENV":
                pairs = re.findall(r"(\w+)=(\S*)", rest)
                state.environment = {**state.environment, **{name: expand(value, values) for name, value in pairs}}
            case "WORKDIR":
                state.folder = rest
                (state.files / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                state.user = rest
            case "COPY":
                self._copy(rest.split(), state)
            case "RUN":
                print(f"RUN {rest}", flush=True)
                self.run(re.sub(r"--mount=\S+ ", "", rest), state)
            case "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                state.starts = {**state.starts, word: json.loads(rest[rest.index("[") :])}
            case "EXPOSE":
                pass
            case _:
                raise AssertionError(f"{word} is not known here")

    def _copy(self, words: list[str], state: State) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source = self.build(words.pop(0).removeprefix("--from=")).files
        *names, target = words
        place = state.files / Path(state.folder, target).as_posix().lstrip("/")
        for name in names:
            found = source / name.lstrip("/")
            if found.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)

    def run(self, command: str, state: State, *, read_only: bool = False) -> str:
        """What `command` prints in the stage, as its user and with nothing but its environment. `read_only`: the file
        system is, but for a /tmp in memory."""
        room = self._folder / ".room"
        for name in ("work", "root"):
            (room / name).mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={self._base},upperdir={state.files},workdir={room / 'work'}"
        # How pip reaches its index is this machine's business, not the image's.
        ours = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        # An index that this machine cannot reach is passed over at once.
        home = "/root" if state.user == "0:0" else "/home/onsight"
        environment = {"HOME": home, "PIP_RETRIES": "0", **ours, **state.environment, **state.arguments}
        inside = ["setpriv", f"--reuid={state.user.split(':')[0]}", f"--regid={state.user.split(':')[-1]}"]
        inside += ["--clear-groups", "sh", "-c", f"cd {state.folder} && {command}"]
        script = (
            'mount -t overlay overlay -o "$1" "$2" && mount -t proc proc "$2/proc" && mount --rbind /dev "$2/dev"'
            # This machine's Python may lie in root's home, which the image's user may pass through then.
            + ' && chmod a+x "$2/root"'
            + (' && mount -o remount,ro "$2" && mount -t tmpfs -o mode=1777 tmpfs "$2/tmp"' if read_only else "")
            + ' && root=$2 && shift 2 && exec chroot "$root" "$@"'
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", options, str(room / "root"), *inside],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def start(self, state: State, environment: Mapping[str, str]) -> str:
        """Run ENTRYPOINT with CMD on a read-only file system, until HEALTHCHECK's command is content or two minutes are
        over; then stop it. What it said. Raises CalledProcessError."""
        server = shlex.join([*state.starts.get("ENTRYPOINT", []), *state.starts.get("CMD", [])])
        script = (
            f"{server} & server=$!; tries=0; until {shlex.join(state.starts['HEALTHCHECK'])} 2>/dev/null; do"
            " tries=$((tries + 1)); kill -0 $server && test $tries -lt 120 || exit 1; sleep 1; done;"
            " echo healthy after $tries tries; kill $server; wait $server; echo ended with $?"
        )
        given = replace(state, environment={**state.environment, **environment})
        return self.run(f"{{ {script}; }} 2>&1", given, read_only=True)


def size_mb(folder: Path) -> float:
    """What a stage adds to its base, before compression."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return round(sum(path.lstat().st_size for path in files) / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, default=Path("/"))
    parser.add_argument("--arg", action="append", default=[])
    parser.add_argument("--try", dest="commands", action="append", default=[])
    parser.add_argument("--start", dest="starts", action="append", default=[])
    given = parser.parse_args()
    arguments = dict(one.split("=", 1) for one in given.arg)
    builder = Builder(given.dockerfile, given.folder.resolve(), given.base, arguments)
    state = builder.build(given.target)
    for command in given.commands:
        print(f"TRY {command}\n{builder.run(command, state, read_only=True)}", flush=True)
    for pair in given.starts:
        name, _, value = pair.partition("=")
        print(f"START {pair}\n{builder.start(state, {name: value} if name else {})}", flush=True)
    print(json.dumps({"target": given.target, "added_mb": size_mb(state.files)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
