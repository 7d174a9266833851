"""How soon the page stands in a browser, and how soon an answer's first words stand on it, beside the API.

python -m benchmarks.page [--starts N] [--questions N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.client import ask, connect, question
from benchmarks.report import Aim, Report, Table, median, publish, quantile
from benchmarks.screens import png, screens
from benchmarks.server import model_folder, onsight, running

WANTED_PAINT_S = 2.0
QUESTION = "Describe the screen."
TOKENS = 512
PATIENCE_MS = 60_000

# Times are the browser's own, in ms from the beginning of the navigation.
WATCH = """() => {
  const look = () => {
    const tab = document.querySelector('[role=tab]');
    if (tab && tab.getBoundingClientRect().width > 0) window.tabsAt = performance.now();
    else requestAnimationFrame(look);
  };
  look();
}"""
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
WAIT_FOR_WORDS = """() => {
  window.asked = window.said = undefined;
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') window.asked = performance.now();
  }, {once: true, capture: true});
  const seen = new MutationObserver(() => {
    const answer = document.querySelector('#talk .bot.message:not(.pending)');
    if (window.asked !== undefined && answer && answer.innerText.trim()) {
      window.said = performance.now();
      seen.disconnect();
    }
  });
  seen.observe(document.querySelector('#talk'), {subtree: true, childList: true, characterData: true});
}"""


@dataclass
class Times:
    """Seconds. The first visit after each start, later visits, and the same question on the page and on the API."""

    first_paint: list[float] = field(default_factory=list)
    first_tabs: list[float] = field(default_factory=list)
    later_paint: list[float] = field(default_factory=list)
    later_tabs: list[float] = field(default_factory=list)
    words_on_page: list[float] = field(default_factory=list)
    token_on_api: list[float] = field(default_factory=list)


def visit(browser: Browser, url: str) -> tuple[Page, float, float]:
    """Open the page in a browser that was never here: it, and seconds until it painted and until its tabs stood."""
    page = browser.new_context(locale="en-US").new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script(f"({WATCH})()")
    page.goto(f"{url}/ui/", wait_until="commit")
    page.wait_for_function("() => window.tabsAt !== undefined")
    return page, page.evaluate(PAINTED) / 1000, page.evaluate("() => window.tabsAt") / 1000


def words_after(page: Page, file: Path) -> float:
    """Seconds from the Enter key until the first words of the answer about a picture stand on the page."""
    page.set_input_files("#message input[type=file]", str(file))
    page.locator("#message .thumbnail-item").wait_for()
    field_ = page.locator("#message textarea")
    field_.fill(QUESTION)
    page.evaluate(WAIT_FOR_WORDS)
    field_.press("Enter")
    page.wait_for_function("() => window.said !== undefined")
    seconds = page.evaluate("() => window.said - window.asked") / 1000
    page.locator("#talk small").wait_for()
    page.get_by_role("button", name="Clear", exact=True).last.click()
    page.locator("#talk small").wait_for(state="detached")
    return float(seconds)


def token_after(url: str, file: bytes) -> float:
    """Seconds from sending the same question to the API until its first text."""

    async def once() -> float:
        async with connect(url, 1) as client:
            return (await ask(client, question(file, QUESTION, tokens=TOKENS))).first_s

    # On a thread of its own: playwright's event loop runs on this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(once())).result()


def measure(browser: Browser, starts: int, questions: int, folder: Path) -> Times:
    """Start the server so many times and visit it at once; on the last one visit again, and ask."""
    times = Times()
    for start in range(starts):
        with running(onsight(str(model_folder("peek")), "--ui"), folder) as server:
            page, painted, stood = visit(browser, server.url)
            times.first_paint.append(painted)
            times.first_tabs.append(stood)
            page.context.close()
            if start == starts - 1:
                again_and_ask(browser, server.url, questions, folder, times)
    return times


def again_and_ask(browser: Browser, url: str, questions: int, folder: Path, times: Times) -> None:
    """The visits and questions of a server that has been visited."""
    for _ in range(questions):
        page, painted, stood = visit(browser, url)
        times.later_paint.append(painted)
        times.later_tabs.append(stood)
        page.context.close()
    page, _, _ = visit(browser, url)
    pictures = itertools.islice(screens(), 2 * questions + 2)
    # Every picture is new to the server; the first pair warms it up.
    for number, (one, other) in enumerate(zip(pictures, pictures, strict=True)):
        file = folder / f"{number}.png"
        file.write_bytes(png(one))
        on_page, on_api = words_after(page, file), token_after(url, png(other))
        if number:
            times.words_on_page.append(on_page)
            times.token_on_api.append(on_api)
    page.context.close()


def report(times: Times) -> Report:
    """Medians and extremes."""
    named = (
        ("first visit after a start: first paint, s", times.first_paint),
        ("first visit after a start: the tabs stand, s", times.first_tabs),
        ("later visits: first paint, s", times.later_paint),
        ("later visits: the tabs stand, s", times.later_tabs),
        ("first words of an answer on the page, s", times.words_on_page),
        ("first text of an answer on the API, s", times.token_on_api),
    )
    rows = tuple((name, median(values), min(values), quantile(values, 0.9), max(values)) for name, values in named)
    aims = (Aim("first paint of /ui, first visit after a start (most)", WANTED_PAINT_S, max(times.first_paint), "s"),)
    later_s = median(times.words_on_page) - median(times.token_on_api)
    notes = (
        f"The first words stand on the page {later_s * 1000:.0f} ms after the API's first text (medians).",
        f"{len(times.first_paint)} starts of `onsight serve --ui` with Peek. The browser (headless Chromium) runs"
        " already, and opens /ui with an empty cache as soon as `/ready` answers 200. First paint is its own"
        " first-contentful-paint; the tabs stand when the first one has a width. Both count from the beginning of the"
        " navigation, redirects included.",
        f"{len(times.words_on_page)} questions ({QUESTION!r}), by turns on the page and on the API, each about another"
        " screen of 256x256 px. On the page the picture is uploaded before, and time runs from the Enter key until"
        " the answer has words in the document; on the API from sending a request that holds the picture until its"
        " first text. Browser, client and server share the cores.",
    )
    details: dict[str, object] = dict(vars(times))
    table = Table("Figures", ("figure", "median", "least", "p90", "most"), rows)
    return Report("page", "The page: how soon it stands, how soon it says something", aims, (table,), notes, details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--questions", type=int, default=20)
    arguments = parser.parse_args()
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        raise SystemExit("chromium is not installed: make test-browser installs it")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        times = measure(browser, arguments.starts, arguments.questions, Path(temporary))
        browser.close()
    publish(report(times))


if __name__ == "__main__":
    main()
