"""Nothing outside the media door opens a file, a URL or a socket, but a few modules named here, for our own files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "onsight"

# Modules that may open files or sockets of our own (settings, weights, cards, key files, an engine's own server, what
# the operator names on the command line), never anything that a client of the server supplied.
ALLOWED = {
    "media/*.py": "the door itself",
    "config.py": "the settings file",
    "serve.py": "the listening socket",
    "api/not_yet.py": "the same one, while a model is downloaded",
    "cli/*.py": "the operator's own files and servers",
    "hosts/*.py": "the server in this process, or the operator's own",
    "models/card.py": "the cards in the package",
    "models/hub.py": "downloads of weights, and what an adapter says of its base",
    "engines/torch_engine/loading.py": "checkpoints",
    "engines/torch_engine/gguf_weights.py": "checkpoints",
    "models/gguf_mllama.py": "the operator's GGUF file, and a folder in the cache for what goes with it",
    "engines/torch_engine/saving.py": "the folder that the operator has weights written to",
    "engines/machine.py": "the container's limits",
    "engines/torch_engine/vocabulary.py": "the checkpoint's tokenizer",
    "engines/torch_engine/chat_template.py": "the checkpoint's chat template",
    "engines/torch_engine/families/*.py": "the checkpoint's own json files",
    "models/gguf.py": "GGUF files, to check their digests",
    "models/gguf_header.py": "the headers of GGUF files",
    "engines/upstream_engine/llama.py": "what the processor can do",
    "engines/upstream_engine/connection.py": "an engine's own server",
    "api/keys.py": "the operator's key file",
    "api/docs.py": "the page's script in the package",
    "ui/packaged.py": "the page's words, style and script in the package",
}

NETWORK_MODULES = {
    "aiohttp", "ftplib", "http.client", "httpcore", "httpx", "pycurl", "requests", "smtplib", "socket",
    "urllib.request", "urllib3", "websockets",
}  # fmt: skip
OPENING_METHODS = {
    "open_connection", "create_connection", "open_unix_connection", "read_bytes", "read_text", "write_bytes",
    "write_text", "urlopen", "urlretrieve", "fromfile", "memmap",
}  # fmt: skip
# `Image.open`, `Path.open`, `os.open` and their like open what they are given; a door or a valve is only called so.
OPENING_OWNERS = {
    "Image",
    "Pillow",
    "Path",
    "os",
    "io",
    "path",
    "file",
    "gzip",
    "zipfile",
    "tarfile",
    "webbrowser",
    "av",
}


def openings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a module that can open a file, a URL or a socket."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names if _is_network(name.name)]
            case ast.ImportFrom(module=str(module), names=names):
                full = [module, *(f"{module}.{name.name}" for name in names)]
                found = [name for name in full if _is_network(name)][:1]
            case ast.Call(func=ast.Name(id="open")):
                found = ["open()"]
            case ast.Call(func=ast.Attribute(attr="open", value=ast.Name(id=owner))) if owner in OPENING_OWNERS:
                found = [f"{owner}.open()"]
            case ast.Call(func=ast.Attribute(attr="open", value=ast.Call() | ast.BinOp())):
                found = ["(...).open()"]
            case ast.Call(func=ast.Attribute(attr=method)) if method in OPENING_METHODS:
                found = [f".{method}()"]
            case _:
                found = []
        for what in found:
            yield node.lineno, what


def _is_network(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in NETWORK_MODULES)


def test_nothing_outside_the_door_opens_what_a_client_supplied() -> None:
    strangers = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in ALLOWED):
            strangers += [f"{name}:{line} {what}" for line, what in openings(ast.parse(path.read_text("utf-8")))]
    assert strangers == []


def test_no_engine_and_no_verb_fetches_even_where_it_may_read_files() -> None:
    fetching = []
    for path in [
        *SOURCE.glob("tasks/**/*.py"),
        *SOURCE.glob("core/**/*.py"),
        *SOURCE.glob("engines/torch_engine/**/*.py"),
    ]:
        found = [what for _, what in openings(ast.parse(path.read_text("utf-8"))) if _is_network(what)]
        fetching += [f"{path.name} {what}" for what in found]
    assert fetching == []


@pytest.mark.parametrize(
    "line",
    [
        "import httpx",
        "import urllib.request as u",
        "from urllib import request",
        "from urllib.request import urlopen",
        "from socket import socket",
        "import requests.sessions",
        "open(x)",
        "Image.open(x)",
        "Path(x).open()",
        "Path(x).read_bytes()",
        "(folder / x).open()",
        "x.read_text()",
        "asyncio.open_connection(x, 1)",
    ],
)
def test_the_check_sees_each_way_of_opening(line: str) -> None:
    assert list(openings(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["door.open(refs)", "import urllib.parse", "from urllib.parse import quote", "opened(x)"]
)
def test_the_check_leaves_the_rest_alone(line: str) -> None:
    assert not list(openings(ast.parse(line)))
