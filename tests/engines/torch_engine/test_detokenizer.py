"""Text leaves in whole characters, and never shows the beginning of a stop text that comes true."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from onsight.engines.torch_engine.detokenizer import TextStream
from onsight.engines.torch_engine.vocabulary import Vocabulary
from tests.engines.torch_engine.asking import answer, asking, turn
from tests.engines.torch_engine.conftest import StartEngine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def vocabulary(smolvlm: Path) -> Vocabulary:
    return Vocabulary(smolvlm)


def read(vocabulary: Vocabulary, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces in which `text` leaves, token by token, and whether a stop text was met."""
    stream = TextStream(vocabulary, stop)
    pieces = []
    for token in vocabulary.encode([(text, False)]):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


def test_characters_of_several_tokens_leave_whole(vocabulary: Vocabulary) -> None:
    text = "naïve 中文 🙂 end"
    pieces, _ = read(vocabulary, text)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(vocabulary.encode([("🙂", False)])) > 1


def test_a_cut_character_becomes_a_mark(vocabulary: Vocabulary) -> None:
    stream = TextStream(vocabulary, ())
    first = vocabulary.encode([("🙂", False)])[0]
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("stop", ["STOP", "P", "TO", "ab", "\n\n", "🙂", "ST🙂"])
def test_a_stop_text_is_found_across_tokens(vocabulary: Vocabulary, stop: str) -> None:
    text = "some words S ST STO STOP and 🙂 ab\n\n ST🙂"
    pieces, stopped = read(vocabulary, text, (stop,))
    assert stopped
    assert "".join(pieces) == text[: text.index(stop)]
    for shown in itertools.accumulate(pieces):
        assert stop not in shown


def test_what_only_began_like_a_stop_text_is_sent_in_the_end(vocabulary: Vocabulary) -> None:
    pieces, stopped = read(vocabulary, "we ST", ("STOP",))
    assert not stopped
    assert "".join(pieces) == "we ST"


def test_the_first_of_several_stop_texts_counts(vocabulary: Vocabulary) -> None:
    pieces, _ = read(vocabulary, "one two three", ("three", "two"))
    assert "".join(pieces) == "one "


async def test_every_stop_text_of_an_answer_cuts_it_there(smolvlm: Path, start: StartEngine) -> None:
    engine = await start(smolvlm)
    request = asking(turn("say something"), max_tokens=20, logprobs=False)
    whole = (await answer(engine, request)).text
    for begin in range(len(whole) - 3):
        stop = whole[begin : begin + 3]
        made = await answer(engine, replace(request, sampling=replace(request.sampling, stop=(stop, "never said"))))
        assert made.text == whole[: whole.index(stop)]
        assert made.reason == "stop"
        assert made.usage.completion_tokens <= 20
