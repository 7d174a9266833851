"""Gradio's books of uploads, which it lets grow, and what it takes for an upload; importing this loads Gradio."""

from __future__ import annotations

import asyncio
import os

from gradio import route_utils
from gradio.routes import App, file_upload_statuses
from starlette.formparsers import MultiPartException


class _FilesAlone(route_utils.GradioMultiPartParser):  # type: ignore[misc]  # Gradio is untyped here
    """Refuses a form with a field of text, at which Gradio would fail."""

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is None:
            raise MultiPartException("an upload is a form of files alone: each part has a filename")


def take_files_alone() -> None:
    """For all uploads to Gradio of this process; may be called twice."""
    route_utils.GradioMultiPartParser = _FilesAlone


def forget_progress(upload_id: str) -> None:
    """Of an upload that has ended, or that nobody watches any more."""
    file_upload_statuses.stop_tracking(upload_id)
    file_upload_statuses._signals.pop(upload_id, None)


async def forget_removed(app: App) -> None:
    """Strike files that are no longer there from the list of those that Gradio removes when they are old."""
    listed: set[str] = app.get_blocks().upload_file_set
    here = await asyncio.to_thread(lambda names: set(filter(os.path.lexists, names)), tuple(listed))
    listed.intersection_update(here)
