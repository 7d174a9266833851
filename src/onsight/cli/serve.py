"""`onsight serve`: load a model and answer over HTTP."""

from __future__ import annotations

from onsight.config import Settings


def serve(settings: Settings) -> None:
    """Serve a model over HTTP: an OpenAI-compatible API on http://HOST:PORT/v1."""
    # Imported here, since it brings the web server along, which `onsight --help` does not need.
    from onsight.serve import run

    run(settings)
