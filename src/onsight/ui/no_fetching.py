"""Gradio fetches what a request names by URL before any code of the page runs; here that is taken from it, so that the
media door alone fetches."""

from __future__ import annotations

from typing import NoReturn

import gradio as gr
import safehttpx
from gradio import processing_utils


async def _refuse(*_given: object, **_options: object) -> NoReturn:
    raise gr.Error("the page takes files that are uploaded to it; it fetches none by URL", print_exception=False)


def forbid_fetching() -> None:
    """All that a request can make Gradio fetch, for the rest of the process; may be called twice.

    The two of safehttpx are its only way to a URL that a request names. The download is refused too, since it makes a
    folder first; those without `async` call it. `/proxy=` refuses by itself: no part of the page is another server's.
    """
    processing_utils.async_ssrf_protected_download = _refuse
    safehttpx.get = _refuse
    safehttpx.async_validate_url = _refuse
