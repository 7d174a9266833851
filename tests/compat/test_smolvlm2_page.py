"""The SmolVLM2 page's document: the environment that its compose file sets."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch

from tests.compat.test_llama_vision import free_port
from tests.servers import served

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
    assert "device 'cuda' is taken from MODEL_DEVICE" in log
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


def test_a_browser_that_opens_the_address_is_led_to_a_page() -> None:
    with served("--engine", "fake") as server:
        page = httpx.get(server.url, headers={"accept": "text/html"}, follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
