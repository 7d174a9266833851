"""One language's whole page, as a Gradio application; importing this module loads Gradio, which takes seconds."""

from __future__ import annotations

import json
from html import escape

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from starlette.routing import Mount

from onsight.ui.captions_tab import add_captions_tab
from onsight.ui.chat_tab import add_chat_tab
from onsight.ui.desk import Desk
from onsight.ui.locate_tab import add_locate_tab
from onsight.ui.no_fetching import forbid_fetching
from onsight.ui.ocr_tab import add_ocr_tab
from onsight.ui.packaged import packaged
from onsight.ui.region_tab import add_region_tab
from onsight.ui.search_tab import add_search_tab
from onsight.ui.upload_books import take_files_alone
from onsight.ui.words import LANGUAGES

_LOOK_AGAIN_S = 3
_SWEEP_EVERY_S = 600
_UPLOADS_LIVE_S = 2 * 3600
_SESSIONS = 512
"""Tabs of browsers whose conversations are kept; of each one Gradio keeps what it last posted too."""

_TABS = {
    "chat": add_chat_tab,
    "ocr": add_ocr_tab,
    "describe": add_region_tab,
    "locate": add_locate_tab,
    "embed": add_search_tab,
    "caption": add_captions_tab,
}
"""What a model's card may be capable of, and the tab for it."""


def mount(app: FastAPI, desk: Desk, max_file_bytes: int, most_events: int) -> App:
    """Mount the page in `desk`'s language at `/LANGUAGE` of `app`; its lifespan starts the page's work.

    `most_events`: so many may run at once, and more never come. What is returned is Gradio's own application.
    """
    forbid_fetching()
    take_files_alone()
    blocks = _blocks(desk, most_events)
    # Else Gradio copies any file of this machine that a request names among the uploads: it looks where one lies only
    # once it has been launched, and a mounted page never is.
    blocks.has_launched = True
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    gr.mount_gradio_app(
        app,
        blocks,
        f"/{desk.words.language}",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=max_file_bytes,
        theme=gr.themes.Default(font=fonts, font_mono=mono),
        css=packaged("static/page.css"),
        js=f"() => ({packaged('static/page.js')})({json.dumps(desk.words.section('labels'))})",
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    assert isinstance(mounted.app, App)
    return mounted.app


def _blocks(desk: Desk, most_events: int) -> gr.Blocks:
    words, capabilities = desk.words, desk.place.capabilities
    with gr.Blocks(
        title=words("page.title"), analytics_enabled=False, delete_cache=(_SWEEP_EVERY_S, _UPLOADS_LIVE_S)
    ) as blocks:
        header = gr.HTML(elem_id="header")
        for look in (blocks.load, gr.Timer(_LOOK_AGAIN_S).tick):
            look(lambda: header_of(desk), None, header, queue=False, show_progress="hidden", api_visibility="private")
        with gr.Tabs():
            for capability, add_tab in _TABS.items():
                if capability in capabilities:
                    add_tab(desk)
    blocks.max_threads = most_events
    blocks.state_session_capacity = _SESSIONS
    blocks.queue(default_concurrency_limit=None, api_open=False, max_size=most_events)
    return blocks


def header_of(desk: Desk) -> str:
    """Which models answer, on what, and how busy they are (HTML)."""
    words, admission = desk.words, desk.place.admission
    told, running, waiting = [], 0, 0
    for model in desk.place.models:
        status = model.engine.status()
        state = words(f"page.state_{'draining' if admission.draining else status.state}")
        named = {"model": model.name, "device": status.device, "engine": model.runner}
        told.append(escape(words("page.header_model", **named, state=state)))
        running, waiting = running + status.running, waiting + status.waiting
    queue = {"taken": admission.taken, "places": admission.places}
    told.append(escape(words("page.header", running=running, waiting=waiting, **queue)))
    other = next(language for language in LANGUAGES if language != words.language)
    link = f'<a href="../{other}/" lang="{other}">{escape(words("page.other_language"))}</a>'
    return f'<h1>{escape(words("page.title"))}</h1>{link}<p id="state">{"<br>".join(told)}</p>'
