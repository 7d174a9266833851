"""A real browser before a real server with Peek: what it asks of other hosts, and what it complains of, is noted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers import Served, served
from training.draw import EVALUATION_STYLE, Screen, draw_screen

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

# Patience for a machine that others share; nothing here asserts a time.
PATIENCE_MS = 60_000
playwright.expect.set_options(timeout=PATIENCE_MS)

SCREEN_SEED = 7_100_003
PHONE = {"width": 390, "height": 844}
WIDE = {"width": 1280, "height": 900}


@dataclass
class Visit:
    """An open page, with what it should not have done."""

    page: object
    url: str
    strangers: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        page = self.page
        page.on("request", lambda request: self._asked(request.url))
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", lambda answer: answer.status >= 400 and self._refused(answer))

    def _refused(self, answer: object) -> None:
        self.complaints.append(f"{answer.status} {answer.url}")

    def _asked(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:", "blob:")):
            self.strangers.append(url)

    def leave(self) -> None:
        """Close the page, which else complains when its server goes."""
        self.page.context.close()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with served("peek", "leaf", ONSIGHT_UI="on") as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("chromium is not installed: make test-browser installs it")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(server: Served, browser: object) -> Iterator[Callable[..., Visit]]:
    """Opens pages; at the end none may have asked another host for anything, or complained."""
    contexts, visits = [], []

    def open_page(language: str = "en-US", *, url: str = server.url, dark: bool = False, phone: bool = False) -> Visit:
        context = browser.new_context(
            locale=language,
            viewport=PHONE if phone else WIDE,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        visited = Visit(context.new_page(), url)
        visited.watch()
        visits.append(visited)
        visited.page.goto(f"{url}/")
        return visited

    yield open_page
    for context in contexts:
        context.close()
    assert [stranger for visited in visits for stranger in visited.strangers] == []
    assert [complaint for visited in visits for complaint in visited.complaints] == []


@pytest.fixture(scope="session")
def screen() -> Screen:
    return draw_screen(SCREEN_SEED, EVALUATION_STYLE)


@pytest.fixture(scope="session")
def screen_file(screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screens") / "screen.png"
    screen.image.save(path)
    return path
