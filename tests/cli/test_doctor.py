"""`onsight doctor`: what would keep this machine from serving is a failed row with the command that mends it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from typer.testing import CliRunner

from onsight.api.keys import new_key, write_keys
from onsight.cli import commands
from onsight.cli.doctor import gpu_row
from onsight.config import load_settings
from onsight.core.errors import StartError
from onsight.serve import assemble
from tests.models.test_gguf import write
from tests.stand_in_hub import put_in_cache
from tests.tiny_models import write_smolvlm

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ONSIGHT_"))}


def doctor(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code and what was printed; in a process of its own where the environment decides what is loaded."""
    words = ["doctor", "--port", "0", *arguments]
    env = {**CLEAN, "COLUMNS": "160", **environment}
    if all(name.startswith("ONSIGHT_") for name in environment):
        with patch.dict(os.environ, env, clear=True):
            told = CliRunner().invoke(commands, words)
        code = 0 if told.exception is None or isinstance(told.exception, SystemExit) else 2
        return told.exit_code or code, told.stdout
    done = subprocess.run(
        [sys.executable, "-m", "onsight", *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def checks(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and each row by what it looks at."""
    code, printed = doctor("--json", *arguments, **environment)
    report = json.loads(printed)
    assert report["passed"] is (code == 0)
    assert all(row["mend"] for row in report["checks"] if row["state"] == "failed")
    return code, {row["check"]: row for row in report["checks"]}


def each_checks(*asked: tuple[str, dict[str, str]]) -> list[tuple[int, dict[str, dict[str, Any]]]]:
    """`checks` of each (arguments, environment), all at once: most of the time is that of a process's imports."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda one: checks(*one[0].split(), **one[1]), asked))


def test_a_machine_that_can_serve_passes_in_one_table() -> None:
    code, printed = doctor("peek", "--device", "cpu")
    assert code == 0, printed
    lines = [line.split() for line in printed.splitlines()]
    shown = {line[0]: line for line in lines if line}
    for check in ("Python", "packages", "PyTorch", "CPU", "model", "memory", "temporary", "disk", "cache", "port"):
        assert shown[check][1] == "ok", printed
    assert {line[1] for line in lines if line and line[0] == "extra"} == {
        *("llama", "ui", "search", "otel", "runpod", "ray")
    }
    assert shown["keys"][1] == "off"
    # Brackets are Rich's marks, and a command that lost them would install something else.
    assert "onsight[" in printed or all(line[2] == "ok" for line in lines if line and line[0] == "extra")


def test_without_a_name_it_looks_for_what_would_be_served() -> None:
    code, rows = checks("--device", "cpu")
    assert (code, rows["model"]["state"], rows["vectors"]["state"]) == (0, "ok", "ok")
    assert "vectors" not in checks("peek", "--device", "cpu")[1]


def test_a_taken_port_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, rows = checks("--port", port)
    assert code == 1
    assert port in rows["port"]["found"]
    assert rows["port"]["mend"] == "onsight serve --port 0"


def test_a_model_that_cannot_come_fails_and_one_that_can_does_not(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    (code, rows), can_come = each_checks(
        ("org/none", {"HF_HUB_OFFLINE": "1", **home}), ("org/none --revision v2", home)
    )
    assert code == 1
    assert rows["model"]["mend"] == "HF_HUB_OFFLINE=0 onsight pull org/none"
    code, rows = can_come
    assert (code, rows["model"]["state"]) == (0, "off")
    assert rows["model"]["mend"] == "onsight pull org/none --revision v2"
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_take_the_model_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = {"HF_HOME": str(tmp_path / "file" / "deep")}
    (code, rows), bundled = each_checks(("org/none", home), ("peek", home))
    assert (code, rows["cache"]["state"]) == (1, "failed")
    assert "HF_HOME=" in rows["cache"]["mend"]
    # Nothing is to come, so the folder does not matter.
    code, rows = bundled
    assert (code, rows["cache"]["state"]) == (0, "ok")


def test_a_machine_without_a_folder_for_temporary_files_fails() -> None:
    with patch("tempfile.tempdir", None), patch("tempfile._get_default_tempdir", side_effect=FileNotFoundError):
        code, rows = checks("peek", "--device", "cpu")
        assert (code, rows["temporary"]["state"]) == (1, "failed")
        assert rows["temporary"]["mend"].startswith("TMPDIR=")
        assert rows["memory"]["state"] == "ok"
        with pytest.raises(StartError, match="TMPDIR"):
            assemble(load_settings({"engine": "fake"}))
    assert checks("peek", "--device", "cpu")[1]["temporary"]["state"] == "ok"


@pytest.mark.model
def test_a_model_whose_files_are_no_model_fails(tmp_path: Path) -> None:
    folder = write_smolvlm(tmp_path / "tiny")
    code, rows = checks(str(folder), "--device", "cpu")
    assert code == 0
    assert "the weights take" in rows["memory"]["found"]
    (folder / "model.safetensors").write_bytes(b"cut")
    code, rows = checks(str(folder), "--device", "cpu")
    assert (code, rows["memory"]["state"]) == (1, "failed")
    assert "model.safetensors" in rows["memory"]["found"]


def test_the_model_that_makes_vectors_is_looked_for_too(tmp_path: Path) -> None:
    code, rows = checks("peek", "org/none", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert (code, rows["vectors"]["state"], rows["model"]["state"]) == (1, "failed", "ok")


def test_a_gguf_file_that_is_not_there_fails(tmp_path: Path) -> None:
    code, rows = checks(str(tmp_path / "none.gguf"))
    assert (code, rows["model"]["state"]) == (1, "failed")


def test_a_gguf_model_of_the_hub_is_looked_for_in_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    home = {"HF_HOME": str(tmp_path / "none")}
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "tiny-Q8_0.gguf", "llama")
    here = put_in_cache(tmp_path / "home", "org/gguf", tmp_path / "files")
    (code, rows), can_come, is_here, other = each_checks(
        ("org/gguf:Q8_0", {"HF_HUB_OFFLINE": "1", **home}),
        ("org/gguf:Q8_0", home),
        ("org/gguf:Q8_0", here),
        ("org/gguf:Q4_K_M", here),
    )
    assert (code, rows["model"]["state"]) == (1, "failed")
    assert rows["model"]["mend"] == "HF_HUB_OFFLINE=0 onsight pull org/gguf:Q8_0"
    code, rows = can_come
    assert (code, rows["model"]["state"], rows["model"]["mend"]) == (0, "off", "onsight pull org/gguf:Q8_0")
    assert is_here[1]["model"]["state"] == "ok"
    assert other[1]["model"]["state"] == "failed"


def package(folder: Path, name: str, version: str) -> None:
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("arguments", "row", "package", "mend"),
    [
        (["--qdrant", "pages"], "extra search", "qdrant-client", "pip install 'onsight[search]'"),
        (["--otlp-endpoint", "http://c:4318"], "extra otel", "opentelemetry-sdk", "pip install 'onsight[otel]'"),
        (["--ui"], "extra ui", "gradio", "pip install 'onsight[ui]'"),
    ],
)
def test_an_extra_that_the_settings_ask_for_and_is_not_there_fails(
    arguments: list[str], row: str, package: str, mend: str
) -> None:
    with patch("onsight.cli.doctor._version", side_effect=lambda name: None):
        _, rows = checks(*arguments)
        assert (rows[row]["state"], rows[row]["mend"]) == ("failed", mend)
        assert f"{package} is not installed" in rows[row]["found"]
        assert checks()[1][row]["state"] == "off"


def test_an_engine_that_is_not_installed_is_mended_by_installing_it(tmp_path: Path) -> None:
    with patch.dict(sys.modules, {"xllamacpp": None}):
        code, rows = checks(str(tmp_path / "none.gguf"))
    assert (code, rows["model"]["mend"]) == (1, "pip install 'onsight[llama]'")
    code, rows = checks("Qwen/Qwen2.5-VL-3B-Instruct", "--engine", "vllm", "--vllm", str(tmp_path / "vllm"))
    assert (code, rows["model"]["state"]) == (1, "failed")
    assert "ONSIGHT_VLLM" in rows["model"]["mend"]


def test_the_image_is_looked_at_as_it_serves() -> None:
    with patch("sys.prefix", "/opt/onsight"):
        code, rows = checks("peek", "--device", "cpu")
        assert (code, rows["keys"]["state"]) == (1, "failed")
        assert "ONSIGHT_API_KEY" in rows["keys"]["mend"]
        for environment in ({"ONSIGHT_NO_AUTH": "true"}, {"ONSIGHT_API_KEY": "k"}, {"ONSIGHT_HOST": "127.0.0.1"}):
            assert checks("peek", "--device", "cpu", **environment)[0] == 0


@pytest.mark.parametrize(("model", "code", "state"), [("org/none", 1, "failed"), ("peek", 0, "off")])
def test_a_folder_of_models_below_one_that_may_not_be_entered_is_a_row(
    tmp_path: Path, model: str, code: int, state: str
) -> None:
    (tmp_path / "closed" / "cache").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    lines = [sys.executable, "-c", WITHOUT_RIGHTS, "doctor", model, "--device", "cpu", "--port", "0", "--json"]
    env = {**CLEAN, "HF_HUB_CACHE": str(tmp_path / "closed" / "cache")}
    done = subprocess.run(lines, env=env, capture_output=True, text=True, timeout=120, check=False)
    (tmp_path / "closed").chmod(0o700)
    assert "Traceback" not in done.stderr, done.stderr
    rows = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert (done.returncode, rows["cache"]["state"]) == (code, state)


WITHOUT_RIGHTS = """
import ctypes, os, sys
for right in (1, 2):  # root's, to pass over permissions: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "onsight", *sys.argv[1:]])
"""


def test_a_package_in_a_version_that_does_not_fit_fails(tmp_path: Path) -> None:
    package(tmp_path, "gradio", "1.0")
    package(tmp_path, "rich", "9.9")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, rows = checks(PYTHONPATH=path)
    assert code == 1
    assert "gradio is 1.0" in rows["extra ui"]["found"]
    assert rows["extra ui"]["mend"] == "pip install 'onsight[ui]'"
    assert "rich is 9.9" in rows["packages"]["found"]
    assert rows["packages"]["mend"] == "pip install --upgrade onsight"


def test_a_torch_that_cannot_be_loaded_fails_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so is not there')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, rows = checks("peek", PYTHONPATH=path)
    assert code == 1
    assert "libcudart.so" in rows["PyTorch"]["found"]
    assert rows["model"]["state"] == rows["port"]["state"] == "ok"


def test_keys_that_open_nothing_fail(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    code, rows = checks(ONSIGHT_KEYS_FILE=str(file))
    assert (code, rows["keys"]["state"]) == (1, "failed")
    assert rows["keys"]["mend"] == f"onsight keys add NAME --keys-file {file}"
    past, future = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    write_keys(file, [new_key("old", ["chat"], past)[1]])
    assert checks(ONSIGHT_KEYS_FILE=str(file))[0] == 1
    write_keys(file, [new_key("old", ["chat"], past)[1], new_key("new", ["chat"], future)[1]])
    code, rows = checks(ONSIGHT_KEYS_FILE=str(file))
    assert code == 0
    assert "1 of 2" in rows["keys"]["found"]
    file.write_text("{")
    code, rows = checks(ONSIGHT_KEYS_FILE=str(file))
    assert (code, rows["keys"]["state"]) == (1, "failed")


def test_a_gpu_that_is_wanted_of_pytorch_is_not_wanted_of_another_server() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    code, rows = checks("peek", ONSIGHT_WANTS_GPU="true")
    assert (code, rows["GPU"]["state"], rows["GPU"]["mend"]) == (1, "failed", "onsight serve --device cpu")
    assert checks("peek", "--device", "cpu", ONSIGHT_WANTS_GPU="true")[0] == 0
    assert checks("--upstream", "http://127.0.0.1:1", ONSIGHT_WANTS_GPU="true")[1]["GPU"]["state"] == "off"


@pytest.mark.parametrize(
    ("device", "present", "cuda_build", "has_driver", "state", "mend"),
    [
        ("auto", [], None, False, "off", ""),
        ("cpu", [], None, True, "off", ""),
        ("auto", ["cuda:0 A"], "13.0", True, "ok", ""),
        ("cuda", ["cuda:0 A"], "13.0", True, "ok", ""),
        ("cuda", ["mps"], None, False, "failed", "onsight serve --device cpu"),
        ("cuda", [], "13.0", False, "failed", "onsight serve --device cpu"),
        ("cuda", [], "13.0", True, "failed", "nvidia-smi"),
        ("auto", [], None, True, "failed", "pip install --force-reinstall torch"),
        ("mps", [], None, False, "failed", "onsight serve --device cpu"),
        ("gpu", [], "13.0", False, "failed", "onsight serve --device cpu"),
        ("gpu", [], "13.0", True, "failed", "nvidia-smi"),
        ("gpu", ["mps"], None, False, "ok", ""),
        ("cuda-or-cpu", [], "13.0", False, "off", ""),
    ],
)
def test_a_gpu_that_is_asked_for_or_left_unused_fails(
    device: str, present: list[str], cuda_build: str | None, has_driver: bool, state: str, mend: str
) -> None:
    row = gpu_row(device, present, cuda_build, has_driver=has_driver)
    assert (row.state, row.mend) == (state, mend)
