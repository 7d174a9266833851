"""Servers to talk to, and one run of each client's suite against them, read from the JUnit file that it writes."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from onsight.models.hub import BUNDLED
from tests.clients import environments
from tests.servers import served
from training.draw import EVALUATION_STYLE, draw_screen

SUITES = Path(__file__).parent / "suites"
FEATURES = ("chat", "streaming", "images", "json_schema", "tools", "responses", "errors", "retries")

_KEY = "clients"
_SLOW_S = 3.0
_TIMEOUT_S = 900

# LangChain's tests by words in their names, the first that fits; the others are about chat.
_LANGCHAIN = (
    ("tool", "tools"),
    ("agent", "tools"),
    ("few_shot", "tools"),
    ("runnables_as_tools", "tools"),
    ("structured", "json_schema"),
    ("json", "json_schema"),
    ("image", "images"),
    ("anthropic", "images"),
    ("stream", "streaming"),
)

State = Literal["passed", "failed", "beyond", "skipped"]
"""`beyond`: the suite says that it fails, since it asks for more than the model at hand can."""


@dataclass(frozen=True)
class Outcome:
    """One test of a client's suite. `told`: why it failed or was skipped."""

    feature: str
    name: str
    state: State
    told: str


class _Shelf(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; what lies under /slow/ comes after a while."""

    def translate_path(self, path: str) -> str:
        if path.startswith("/slow/"):
            time.sleep(_SLOW_S)
            path = path.removeprefix("/slow")
        return super().translate_path(path)

    def log_message(self, format: str, *arguments: object) -> None:
        """Standard error belongs to the tests."""


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Peek, the fake engine with a key, one more with a queue of one, a model that calls tools, and pictures; as the
    suites' environment."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        draw_screen(7_100_000, EVALUATION_STYLE).image.save(Path(folder, "screenshot.png"))
        shelf = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Shelf, directory=folder))
        threading.Thread(target=shelf.serve_forever, daemon=True).start()
        stack.callback(shelf.shutdown)
        port = shelf.server_address[1]
        fetching = ("--media-remote", "allow-list", "--media-allowed-hosts", "127.0.0.1")
        fetching += ("--media-allowed-ports", str(port))
        peek = stack.enter_context(served("peek", *fetching))
        fake = stack.enter_context(served("fake", "--engine", "fake", ONSIGHT_API_KEY=_KEY))
        # Under another name it has SmolVLM2's card, which calls tools.
        Path(folder, "caller").symlink_to(BUNDLED / "peek")
        caller = stack.enter_context(served(f"{folder}/caller", "--served-model-name", "caller"))
        narrow = stack.enter_context(served("fake", "--engine", "fake", "--max-queue", "1", *fetching))
        yield {
            "CLIENTS_PEEK": peek.url,
            "CLIENTS_FAKE": fake.url,
            "CLIENTS_CALLER": caller.url,
            "CLIENTS_NARROW": narrow.url,
            "CLIENTS_PICTURES": f"http://127.0.0.1:{port}",
            "CLIENTS_FOLDER": folder,
            "CLIENTS_KEY": _KEY,
        }


def _openai_python(environment: dict[str, str]) -> list[Outcome]:
    features = {f"Test{feature.title().replace('_', '')}": feature for feature in FEATURES}
    found = _pytest("openai_python.py", environment)
    return [Outcome(features[place.rpartition(".")[2]], name, state, told) for place, name, state, told in found]


def _langchain(environment: dict[str, str], served_model: str) -> list[Outcome]:
    found = _pytest("langchain_openai_suite.py", environment, f"Test{served_model}")
    return [Outcome(_langchain_feature(name), name, state, told) for _, name, state, told in found]


def _langchain_feature(name: str) -> str:
    return next((feature for word, feature in _LANGCHAIN if word in name), "chat")


def _openai_node(environment: dict[str, str]) -> list[Outcome] | None:
    folder = environments.node()
    if folder is None:
        return None
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        _run(
            ["node", "--test", "--test-reporter=junit", f"--test-reporter-destination={report}", "openai_node.mjs"],
            {**environment, "CLIENTS_NODE": str(folder)},
        )
        suites = ElementTree.parse(report).getroot().findall("testsuite")
    return [Outcome(suite.get("name", ""), *_read(case)) for suite in suites for case in suite.findall("testcase")]


def _pytest(suite: str, environment: dict[str, str], wanted: str = "") -> list[tuple[str, str, State, str]]:
    """(class, name, state, why) of each test in `suite`, of the class `wanted` alone if given."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [str(environments.python()), "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(SUITES)]
        # One event loop for all: langchain-openai keeps its connections from test to test.
        loops = [f"-oasyncio_default_{kind}_loop_scope=session" for kind in ("test", "fixture")]
        options = ["-oasyncio_mode=auto", *loops, "-p", "no:cacheprovider", f"--junitxml={report}"]
        _run([*command, *options, f"{suite}::{wanted}" if wanted else suite], environment)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return [(case.get("classname", ""), *_read(case)) for case in cases]


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run a suite among the suites; a failing test is its report's to tell."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHONPATH"))}
    done = subprocess.run(
        command, cwd=SUITES, env={**inherited, **environment}, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    print(done.stdout[-20_000:], done.stderr[-5_000:])
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]


def _read(case: ElementTree.Element) -> tuple[str, State, str]:
    """(name, state, why) of one test."""
    name = case.get("name", "")
    tags: tuple[tuple[str, State], ...] = (("failure", "failed"), ("error", "failed"), ("skipped", "skipped"))
    for tag, state in tags:
        found = case.find(tag)
        if found is not None:
            told = found.get("message", "")[:300]
            return name, "beyond" if found.get("type") == "pytest.xfail" else state, told
    return name, "passed", ""


CLIENTS: dict[str, Callable[[dict[str, str]], list[Outcome] | None]] = {
    "openai-python": _openai_python,
    "openai-node": _openai_node,
    "langchain-openai, Peek": functools.partial(_langchain, served_model="Peek"),
    "langchain-openai, fake engine": functools.partial(_langchain, served_model="Fake"),
}
"""Client -> its run; None where this machine lacks what it needs."""
