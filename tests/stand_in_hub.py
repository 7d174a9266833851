"""A Hub on a loopback port that speaks what huggingface_hub asks: listing, resolving, redirects, ranges, refusals."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TOKEN = "hf_of_the_account_that_accepted"


@dataclass
class Repo:
    """A model repository: its files by revision; "main" and the commits are found by their names."""

    files: dict[str, bytes]
    gated: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch or a commit."""
        known = {"main": self.files, **self.branches}
        by_commit = {_commit(files): files for files in known.values()}
        files = known.get(revision, by_commit.get(revision))
        return None if files is None else (_commit(files), files)


@dataclass
class StandInHub:
    """A running stand-in. `asked`: every request line so far; `cuts`: how often a large file still breaks off.

    `nameless`: files come without the headers that say what they are, as from a mirror that is none. `flows`: while it
    is cleared, large files do not come.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cuts: int = 0
    nameless: bool = False
    flows: threading.Event = field(default_factory=threading.Event)

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """What a process needs to take this for the Hub and `home` for its cache."""
        chosen = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return chosen if token is None else {**chosen, "HF_TOKEN": token}

    def fetched(self) -> set[str]:
        """Names of the files whose contents were asked for."""
        return {line.rsplit("/", 1)[1] for line in self.asked if line.startswith("GET") and "/api/" not in line}


def put_in_cache(home: Path, name: str, folder: Path) -> dict[str, str]:
    """Put the model in `folder` under `home` as if it had been downloaded as `name`; the environment that finds it."""
    kept = home / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(folder, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1("".join(name + _blob(data) for name, data in sorted(files.items())).encode()).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pth"))


def repo_of(folder: Path, **extra: bytes) -> Repo:
    """A repository with the files of `folder`."""
    return Repo({path.name: path.read_bytes() for path in sorted(folder.iterdir())} | extra)


@contextmanager
def stand_in_hub(**repos: Repo) -> Iterator[StandInHub]:
    """Serve `repos` (`owner__name` for owner/name) until the end of the block."""
    running = StandInHub(repos={name.replace("__", "/"): repo for name, repo in repos.items()})
    running.flows.set()

    class Handler(_Handler):
        hub = running

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.flows.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `asked` instead."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._describe(match[1], match[2] or "revision", match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/stored/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._stored(match[1], match[2], match[3])
        else:
            self._refuse(404, "EntryNotFound")

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The revision, or None after it was refused."""
        repo = self.hub.repos.get(name)
        if repo is None:
            # As the Hub does: who has no token is not told whether a private model is there.
            self._refuse(401, "RepoNotFound")
            return None
        found = repo.at(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
        return found

    def _describe(self, name: str, what: str, revision: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        if what == "tree":
            self._answer(200, json.dumps([_entry(path, data) for path, data in sorted(files.items())]).encode())
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        table = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings}
        self._answer(200, json.dumps(table).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        if self.hub.repos[name].gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "GatedRepo")
        elif path not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        elif _is_large(path):
            # Another host, as the Hub's large files are on one: redirects within a host are followed for the headers.
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            headers = {
                "Location": f"{elsewhere}/stored/{name}/{commit}/{path}", "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(files[path]).hexdigest()}"',
                "X-Linked-Size": str(len(files[path])),
            }  # fmt: skip
            self._answer(302, b"", headers)
        else:
            self._answer(200, files[path], {"ETag": f'"{_blob(files[path])}"', "X-Repo-Commit": commit})

    def _stored(self, name: str, commit: str, path: str) -> None:
        """A large file, or the rest of one; the first `cuts` answers break off half-way."""
        self.hub.flows.wait()
        found = self._find(name, commit)
        if found is None:
            return
        data, status, headers = found[1][path], 200, {"ETag": f'"{hashlib.sha256(found[1][path]).hexdigest()}"'}
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        if self.command == "GET" and self.hub.cuts:
            self.hub.cuts -= 1
            self._answer(status, data, headers, sent=len(data) // 2)
            self.close_connection = True
            return
        self._answer(status, data, headers)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({} if self.hub.nameless and status == 200 else headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])


def _blob(data: bytes) -> str:
    """Git's name of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if _is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
