"""The SmolVLM2 page's document: the environment that its compose file sets, and the page that it then has."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch

from tests.compat.test_llama_vision import free_port
from tests.servers import served
from tests.tiny_models import write_smolvlm

pytestmark = pytest.mark.model


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_its_environment_starts_the_server_and_cuda_without_a_gpu_is_a_warning(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "SMOLVLM2_MODEL_ID": "peek",
        "MODEL_DEVICE": "cuda",
        "APP_PORT": str(port),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    with served(**environment) as server:
        assert server.url == f"http://127.0.0.1:{port}"
        health = httpx.get(server.url + "/health").json()
        assert (health["model_name"], health["device"]) == ("peek", "cpu")
        log = server.log()
    assert "model 'peek' is taken from SMOLVLM2_MODEL_ID" in log
    assert "device 'cuda-or-cpu' is taken from MODEL_DEVICE" in log
    assert f"port '{port}' is taken from APP_PORT" in log
    (warning,) = [line for line in log.splitlines() if "WARNING" in line]
    assert "running on the CPU" in warning


def test_offline_a_model_that_is_not_in_the_cache_is_one_clear_sentence(tmp_path: Path) -> None:
    environment = {
        "SMOLVLM2_MODEL_ID": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    with pytest.raises(AssertionError, match=r"(?s)ended with 2.*not in the local cache.*HF_HUB_OFFLINE is set"):
        with served(**environment):
            pass


def test_a_browser_that_opens_the_address_sees_its_three_tabs_in_russian(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    folder, port = write_smolvlm(tmp_path / "SmolVLM2"), free_port()
    environment = {"SMOLVLM2_MODEL_ID": str(folder), "MODEL_DEVICE": "auto", "APP_PORT": str(port)}
    with served(ONSIGHT_UI="on", **environment) as server:
        browser = {"accept": "text/html", "accept-language": "ru-RU,ru;q=0.9"}
        page = httpx.get(f"http://localhost:{port}", headers=browser, follow_redirects=True)
        config = httpx.get(f"{server.url}/ui/ru/config").json()
    assert (page.status_code, str(page.url)) == (200, f"http://localhost:{port}/ui/ru/")
    assert 'lang="ru"' in page.text
    tabs = [one["props"]["label"] for one in config["components"] if one["type"] == "tabitem"]
    assert tabs[:3] == ["Чат", "Текст", "Область"]


def test_without_the_page_a_browser_is_led_to_the_docs() -> None:
    with served("--engine", "fake") as server:
        page = httpx.get(server.url, headers={"accept": "text/html"}, follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
