"""A chat template is a program that comes with a model: it can do nothing but write the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from onsight.core.errors import InvalidRequest
from onsight.core.messages import Message, Text
from onsight.engines.torch_engine.chat_template import ChatTemplate

HOSTILE = (
    "{{ cycler.__init__.__globals__.os.system('touch TOUCHED') }}",
    "{{ lipsum.__globals__['os'].popen('touch TOUCHED').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('TOUCHED', 'w') }}",
    "{{ messages.append(1) }}",
)


@pytest.mark.parametrize("source", HOSTILE)
def test_a_template_that_reaches_for_more_than_messages_is_refused(source: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    template = ChatTemplate(tmp_path, "<image>", source.replace("TOUCHED", str(touched)))
    with pytest.raises(InvalidRequest):
        template.render([Message("user", (Text("hi"),))])
    assert not touched.exists()
