"""LangChain's standard chat-model suite with langchain-openai; run by pytest in .clients/python.

Every test is LangChain's own. What it downloads, it gets from a server on this machine.
"""

from __future__ import annotations

import os
from typing import ClassVar

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

_NO_READER = "the fake engine does not read what arguments should be"


@pytest.fixture(autouse=True)
def pictures_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    get = httpx.get

    def near(url: str, **options: object) -> httpx.Response:
        assert url.endswith(".png"), f"the suite asks for {url}, which this machine does not serve"
        return get(os.environ["CLIENTS_PICTURES"] + "/screenshot.png", **options)

    monkeypatch.setattr(httpx, "get", near)


@pytest.fixture(autouse=True)
def what_is_beyond_the_model_is_said_to_fail(request: pytest.FixtureRequest) -> None:
    why = request.cls.beyond.get(request.node.originalname)
    if why is not None:
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))


class Common(ChatModelIntegrationTests):
    served = ""
    key = "none"
    sampling: ClassVar[dict[str, object]] = {"temperature": 0}
    beyond: ClassVar[dict[str, str]] = {}
    """Test -> why the model at hand cannot pass it."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        url = os.environ[f"CLIENTS_{self.served.upper()}"] + "/v1"
        return {"model": self.served, "base_url": url, "api_key": self.key, "stream_usage": True, **self.sampling}

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return self.has_tool_calling


class TestPeek(Common):
    """A real model and its grammar, which was not made to call tools."""

    served = "peek"
    # Without it, Peek repeats itself for ever in a text that has no end by its form.
    sampling: ClassVar[dict[str, object]] = {"temperature": 0, "frequency_penalty": 1}
    beyond: ClassVar[dict[str, str]] = {
        "test_structured_output_pydantic_2_v1": "Peek calls no tools",
        "test_json_mode": "Peek follows no instructions in words",
    }

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return True


class TestFake(Common):
    """The engine that calls the tools that a text names."""

    served = "fake"
    key = os.environ["CLIENTS_KEY"]
    beyond: ClassVar[dict[str, str]] = {
        "test_tool_calling": _NO_READER,
        "test_tool_calling_async": _NO_READER,
        "test_unicode_tool_call_integration": _NO_READER,
        "test_json_mode": _NO_READER,
        "test_agent_loop": "the fake engine calls only tools that the text names",
    }

    @property
    def has_structured_output(self) -> bool:
        return False
