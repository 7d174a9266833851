"""Places are found by the card's notation, and nothing else in an answer is touched."""

from __future__ import annotations

import pytest

from onsight.core.errors import UnreadableAnswer
from onsight.core.generation import Candidate, FinishReason, TokenLogprob, Usage
from onsight.core.geometry import Box, Point, Size, View
from onsight.models.card import ModelCard, cards
from onsight.tasks.chat import Answer
from onsight.tasks.locate import Wanted, read
from onsight.tasks.places import in_original

CARDS = {card.name: card for card in cards()}
PEEK, HOLO, QWEN = CARDS["peek"], CARDS["holo1_5"], CARDS["qwen2_5_vl"]
VIEW = View(Size(2000, 500), Size(1000, 1000))


def answer(*pieces: tuple[str, float] | str, reason: FinishReason = "stop", view: View = VIEW) -> Answer:
    """An answer whose tokens are the pieces, each with its log-probability."""
    tokens = [(piece, 0.0) if isinstance(piece, str) else piece for piece in pieces]
    logprobs = tuple(TokenLogprob(Candidate(text, text.encode(), logprob)) for text, logprob in tokens)
    return Answer("".join(text for text, _ in tokens), logprobs, reason, Usage(5, len(tokens)), (view,))


@pytest.mark.parametrize(
    ("card", "said", "wanted"),
    [
        (PEEK, "Save (250, 1000) and (0,0).", "Save (500, 500) and (0,0)."),
        (PEEK, "in (1) of [250, 1000] and (a, 3)", "in (1) of [250, 1000] and (a, 3)"),
        (HOLO, '{"action": "click_absolute", "x": 250, "y": 1000}', '{"action": "click_absolute", "x": 500, "y": 500}'),
        (QWEN, '{"bbox_2d": [10, 20, 30, 40], "label": "(3, 4)"}', '{"bbox_2d": [20, 10, 60, 20], "label": "(3, 4)"}'),
        (QWEN, '{"point_2d":[ 1.5 , 9 ]} {"point_2d": [2, 2]}', '{"point_2d":[ 3 , 4 ]} {"point_2d": [4, 1]}'),
    ],
)  # fmt: skip
def test_only_places_in_the_cards_notation_are_mapped(card: ModelCard, said: str, wanted: str) -> None:
    assert in_original(answer(said), card).text == wanted


@pytest.mark.parametrize(
    ("card", "wanted", "said", "instances"),
    [
        (PEEK, Wanted("x"), " (250, 1000)\n", [(Point(500, 500), None)]),
        (HOLO, Wanted("x"), '{"action": "click_absolute", "x": 7, "y": 8}', [(Point(14, 4), None)]),
        (QWEN, Wanted("x"), '[{"point_2d": [7, 8]}]', [(Point(14, 4), None)]),
        (QWEN, Wanted("x", every=True), "[]", []),
        (QWEN, Wanted("x", True), '[{"point_2d": [7, 8]}, {"point_2d": [1, 2]}]',
         [(Point(14, 4), None), (Point(2, 1), None)]),
        (QWEN, Wanted("x", shape="box"), '[{"bbox_2d": [30, 10, 20, 40]}]', [(Point(50, 12.5), Box(40, 5, 60, 20))]),
    ],
)  # fmt: skip
def test_places_come_back_in_the_originals_pixels(
    card: ModelCard, wanted: Wanted, said: str, instances: list[tuple[Point, Box | None]]
) -> None:
    located = read(answer(said), card, wanted)
    assert [(one.point, one.box) for one in located.instances] == instances
    assert (located.raw, located.view) == (said, VIEW)


@pytest.mark.parametrize(
    ("card", "wanted", "said", "why"),
    [
        (PEEK, Wanted("x"), "a red button", "one place"),
        (PEEK, Wanted("x"), "", "one place"),
        (PEEK, Wanted("x"), "(1, 2) (3, 4)", "one place"),
        (PEEK, Wanted("x"), "at (1, 2)", "one place"),
        (PEEK, Wanted("x"), "(1, 2", "one place"),
        (PEEK, Wanted("x"), "(5000, 2)", "outside the picture"),
        (HOLO, Wanted("x"), '{"action": "click_absolute", "x": 7, "y": 8', "one place"),
        (HOLO, Wanted("x"), '{"x": 7, "y": 80000}', "outside the picture"),
        (QWEN, Wanted("x"), "[]", "one place"),
        (QWEN, Wanted("x", every=True), '[{"point_2d": [7, 8]}', "places and nothing else"),
    ],
)
def test_what_is_no_place_is_an_error_with_the_models_own_words(
    card: ModelCard, wanted: Wanted, said: str, why: str
) -> None:
    with pytest.raises(UnreadableAnswer, match=why) as caught:
        read(answer(said), card, wanted)
    assert caught.value.answer == said


def test_a_cut_answer_says_how_to_get_more() -> None:
    with pytest.raises(UnreadableAnswer, match=r"cut after 1 tokens; send a larger max_tokens"):
        read(answer("(1, 2)", reason="length"), PEEK, Wanted("x"))


def test_confidence_is_the_probability_of_the_numbers_alone() -> None:
    said = answer((" (", -9.0), ("12", -0.5), (", ", -9.0), ("3", -0.25), ("4", -0.25), (")", -9.0))
    (instance,) = read(said, PEEK, Wanted("x")).instances
    assert instance.confidence == pytest.approx(0.36787944)


def test_confidence_is_each_instances_own() -> None:
    said = answer('[{"point_2d": [', ("1", -1.0), ", 2]}, ", '{"point_2d": [3, ', ("4", -2.0), "]}]")
    found = read(said, QWEN, Wanted("x", every=True)).instances
    assert [one.confidence for one in found] == pytest.approx([0.36787944, 0.13533528])


def test_confidence_survives_special_tokens_and_a_dropped_first_blank() -> None:
    said = answer("(1, ", ("2", -1.0), ")")
    tokens = (
        TokenLogprob(Candidate("<s>", b"<s>", -3.0)),
        TokenLogprob(Candidate(" (1, ", b" (1, ", 0.0)),
        *said.logprobs[1:],
    )
    shifted = Answer(said.text, tokens, said.reason, said.usage, said.views)
    assert read(shifted, PEEK, Wanted("x")).instances[0].confidence == pytest.approx(0.36787944)
