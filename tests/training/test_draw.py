"""Screens are the same for the same seed, and their truth agrees with what is drawn."""

from __future__ import annotations

import random

import numpy as np
import pytest

from training.draw import COLOURS, EVALUATION_STYLE, IMAGE_SIDE, KINDS, Style, draw_screen, to_square
from training.questions import TASKS, ask_questions, point_text
from training.words import HELD_OUT_WORDS, KNOWN_WORDS, made_up_word

SEEDS = range(40)


def test_same_seed_same_screen() -> None:
    first, second = draw_screen(7), draw_screen(7)
    assert first.widgets == second.widgets
    assert first.image.tobytes() == second.image.tobytes()
    assert draw_screen(8).widgets != first.widgets


@pytest.mark.parametrize("style", [Style(), EVALUATION_STYLE])
def test_widgets_lie_inside_and_apart(style: Style) -> None:
    for seed in SEEDS:
        screen = draw_screen(seed, style)
        taken = np.zeros((screen.image.height, screen.image.width), bool)
        assert style.widgets[0] <= len(screen.widgets) <= style.widgets[1]
        for widget in screen.widgets:
            left, top, right, bottom = widget.box
            assert 0 <= left < right <= screen.image.width
            assert 0 <= top < bottom <= screen.image.height
            assert not taken[top:bottom, left:right].any()
            taken[top:bottom, left:right] = True


def test_texts_differ_on_one_screen() -> None:
    for seed in SEEDS:
        texts = [widget.text.lower() for widget in draw_screen(seed).widgets]
        assert len(set(texts)) == len(texts)


def test_the_colour_is_in_the_box() -> None:
    for seed in SEEDS:
        screen = draw_screen(seed)
        pixels = np.asarray(screen.image).astype(int)
        for widget in screen.widgets:
            left, top, right, bottom = widget.box
            wanted = np.array(COLOURS[widget.colour])
            distance = np.abs(pixels[top:bottom, left:right] - wanted).max(-1)
            assert distance.min() <= 50, (seed, widget)


def test_every_kind_and_colour_is_drawn() -> None:
    widgets = [widget for seed in SEEDS for widget in draw_screen(seed).widgets]
    assert {widget.kind for widget in widgets} == set(KINDS)
    assert {widget.colour for widget in widgets} == set(COLOURS)


def test_text_stands_in_its_box() -> None:
    for seed in SEEDS:
        screen = draw_screen(seed)
        for widget, run in zip(screen.widgets, screen.runs, strict=True):
            assert run.text == widget.text
            assert widget.box[0] <= run.edges[0] <= run.edges[-1] <= widget.box[2] + 1


def test_held_out_words_stay_out_of_training() -> None:
    assert len(set(KNOWN_WORDS)) == 300
    assert not set(KNOWN_WORDS) & set(HELD_OUT_WORDS)
    rng = random.Random(0)
    assert not {made_up_word(rng) for _ in range(5000)} & {*KNOWN_WORDS, *HELD_OUT_WORDS}
    drawn = {widget.text for seed in range(200) for widget in draw_screen(seed).widgets}
    assert not drawn & set(HELD_OUT_WORDS)
    seen = {widget.text for seed in range(60) for widget in draw_screen(seed, EVALUATION_STYLE).widgets}
    assert seen & set(HELD_OUT_WORDS)


def test_questions_are_about_the_screen() -> None:
    rng = random.Random(3)
    tasks = set()
    for seed in SEEDS:
        screen = draw_screen(seed)
        for question in ask_questions(screen, rng, 8):
            tasks.add(question.task)
            if question.task == "where":
                assert question.answer == point_text(screen, screen.widgets[question.widget or 0])
            if question.task == "read":
                assert question.answer.split("\n") == [widget.text for widget in screen.widgets]
    assert tasks == set(TASKS)


def test_square_has_the_models_side() -> None:
    for seed in SEEDS:
        assert to_square(draw_screen(seed).image).size == (IMAGE_SIDE, IMAGE_SIDE)
