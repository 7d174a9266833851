"""The clients' own environments under .clients/, as tests/clients/requirements.txt and package.json pin them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PLACE = HERE.parents[1] / ".clients"


def python() -> Path:
    """The Python that has openai, langchain-openai and langchain-tests; made if it is not there or other versions are
    pinned now."""
    pins, folder = HERE / "requirements.txt", PLACE / "python"
    interpreter = folder / "bin" / "python"
    if not _is_made(folder, pins):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "--quiet", "-r", str(pins)], check=True)
        _note(folder, pins)
    return interpreter


def node() -> Path | None:
    """The folder in which node finds openai's package; None on a machine without node and npm."""
    pins, folder = HERE / "package.json", PLACE / "node"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return None
    if not _is_made(folder, pins):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(pins, folder)
        subprocess.run([npm, "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        _note(folder, pins)
    return folder


def _is_made(folder: Path, pins: Path) -> bool:
    noted = folder / pins.name
    return (folder / "made").is_file() and noted.is_file() and noted.read_text() == pins.read_text()


def _note(folder: Path, pins: Path) -> None:
    shutil.copy(pins, folder / pins.name)
    (folder / "made").touch()
