"""The package as it is published: it is built, installed where nothing else is, and serves its own model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from onsight import __version__
from tests.servers import wait_until

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ONSIGHT_"))}


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=CLEAN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, folder=out)
    (built,) = out.glob("*.whl")
    assert len(list(out.glob("*.tar.gz"))) == 1
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `onsight` command of a fresh virtual environment, and no source tree near."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home / "venv", with_pip=True)
    pip = home / "venv/bin/pip"
    run(pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, folder=home)
    return home / "venv/bin/onsight"


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"onsight", f"onsight-{__version__}.dist-info"}
    source = ROOT / "src/onsight"
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("onsight/")} == wanted


def test_the_installed_command_helps_and_serves_the_bundled_model(installed: Path) -> None:
    home = installed.parents[2]
    assert "serve" in run(installed, "--help", folder=home)
    assert __version__ in run(installed, "--version", folder=home)
    log = home / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(installed), "serve", "peek", "--port", "0"], cwd=home, env=CLEAN, stderr=file, text=True
        )
    try:
        wait_until(lambda: process.poll() is not None or " on http://" in log.read_text(), 120)
        assert process.poll() is None, log.read_text()
        address = "http://" + log.read_text().split(" on http://")[1].split()[0]
        body = {"messages": [{"role": "user", "content": "Describe the screen."}], "max_tokens": 8}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["model"] == "peek"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
