"""Questions about a drawn screen and their answers, in several phrasings each. Nothing here needs torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.draw import KINDS, Screen, Widget

KIND_NAMES: dict[str, str] = {kind: {"checkbox": "check box"}.get(kind, kind) for kind in KINDS}
"""How answers name each kind."""

WHERE = (
    "Where is {it}?",
    "where is {it}",
    "Click on {it}.",
    "Click {it}",
    "Point to {it}.",
    "Find {it}.",
    "Give the point of {it}.",
    "Locate {it}",
)
BOX = (
    "What is in the box {box}?",
    "what is in this box: {box}",
    "Describe the box {box}.",
    "What is at {box}?",
    "Which widget is in {box}?",
)
COLOUR = (
    "What colour is {it}?",
    "What color is {it}?",
    "what colour is {it}",
    "Which colour has {it}?",
    "Name the colour of {it}.",
)
READ = (
    "Read the screen.",
    "Read all the text.",
    "What does the screen say?",
    "read the screen",
    "What text is on the screen?",
    "List the texts on the screen.",
)
DESCRIBE = (
    "Describe the screen.",
    "Describe this image.",
    "Describe the picture.",
    "What is in this image?",
    "What do you see?",
    "describe the screen",
    "What is on the screen?",
)
LISTING = (
    "List all widgets with their points.",
    "List every widget and where it is.",
    "Which widgets are there, and where?",
)
COUNT = ("How many widgets are there?", "How many widgets does the screen show?", "Count the widgets.")

TASKS: tuple[str, ...] = ("where", "box", "colour", "read", "describe", "listing", "count")


@dataclass(frozen=True)
class Question:
    """One question: its task (one of TASKS), the words of both sides, and the widget asked about (its index)."""

    task: str
    text: str
    answer: str
    widget: int | None = None


def per_mille(screen: Screen, x: float, y: float) -> tuple[int, int]:
    """(x, y) in pixels of the picture -> whole thousandths of its width and of its height, 0..1000."""
    width, height = screen.image.size
    return min(max(round(1000 * x / width), 0), 1000), min(max(round(1000 * y / height), 0), 1000)


def point_text(screen: Screen, widget: Widget) -> str:
    """The middle of the widget as "(x, y)", in thousandths."""
    x, y = per_mille(screen, *widget.centre)
    return f"({x}, {y})"


def box_text(screen: Screen, widget: Widget) -> str:
    """The box of the widget as "(left, top, right, bottom)", in thousandths."""
    left, top = per_mille(screen, widget.box[0], widget.box[1])
    right, bottom = per_mille(screen, widget.box[2], widget.box[3])
    return f"({left}, {top}, {right}, {bottom})"


def name_widget(widget: Widget) -> str:
    """Such as ``blue button "Save"``."""
    return f'{widget.colour} {KIND_NAMES[widget.kind]} "{widget.text}"'


def with_article(phrase: str) -> str:
    """``phrase`` with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def ask_where(screen: Screen, index: int, rng: random.Random) -> Question:
    """Where is one widget? The answer is a point."""
    text = rng.choice(WHERE).format(it=_refer(screen, index, rng))
    return Question("where", text, point_text(screen, screen.widgets[index]), index)


def ask_box(screen: Screen, index: int, rng: random.Random) -> Question:
    """What is in this widget's box?"""
    widget = screen.widgets[index]
    text = rng.choice(BOX).format(box=box_text(screen, widget))
    return Question("box", text, with_article(name_widget(widget)), index)


def ask_colour(screen: Screen, index: int, rng: random.Random) -> Question:
    """What colour is one widget?"""
    widget = screen.widgets[index]
    it = _by_text(widget, rng)
    return Question("colour", rng.choice(COLOUR).format(it=it), widget.colour, index)


def ask_read(screen: Screen, rng: random.Random) -> Question:
    """Read every text, a line each, in reading order."""
    return Question("read", rng.choice(READ), "\n".join(widget.text for widget in screen.widgets))


def ask_describe(screen: Screen, rng: random.Random) -> Question:
    """Describe the screen in one sentence."""
    shade = "dark" if screen.dark else "light"
    items = ", ".join(with_article(name_widget(widget)) for widget in screen.widgets)
    return Question("describe", rng.choice(DESCRIBE), f"A {shade} screen with {len(screen.widgets)} widgets: {items}.")


def ask_listing(screen: Screen, rng: random.Random) -> Question:
    """List every widget with its point, a line each."""
    lines = [f"{name_widget(widget)} {point_text(screen, widget)}" for widget in screen.widgets]
    return Question("listing", rng.choice(LISTING), "\n".join(lines))


def ask_count(screen: Screen, rng: random.Random) -> Question:
    """How many widgets are there?"""
    return Question("count", rng.choice(COUNT), str(len(screen.widgets)))


def ask_questions(screen: Screen, rng: random.Random, count: int, long: int = 1) -> list[Question]:
    """``count`` short questions about different widgets where there are enough, and ``long`` long ones, shuffled."""
    order = [index for _ in range(4) for index in rng.sample(range(len(screen.widgets)), len(screen.widgets))]
    short = (ask_where, ask_where, ask_where, ask_box, ask_colour, ask_colour, ask_colour)
    questions = [rng.choice(short)(screen, index, rng) for index in order[:count]]
    questions += [rng.choice((ask_read, ask_read, ask_listing, ask_describe))(screen, rng) for _ in range(long)]
    if rng.random() < 0.15:
        questions.append(ask_count(screen, rng))
    rng.shuffle(questions)
    return questions


def _refer(screen: Screen, index: int, rng: random.Random) -> str:
    """A phrase that means this widget alone."""
    widget = screen.widgets[index]
    kind = KIND_NAMES[widget.kind]
    if rng.random() < 0.25:
        if sum((w.kind, w.colour) == (widget.kind, widget.colour) for w in screen.widgets) == 1:
            return f"the {widget.colour} {kind}"
        if sum(w.kind == widget.kind for w in screen.widgets) == 1:
            return f"the {kind}"
    return _by_text(widget, rng)


def _by_text(widget: Widget, rng: random.Random) -> str:
    """A phrase that names the widget by its text: quoted or not, with its kind or not, sometimes in lower case."""
    kind = KIND_NAMES[widget.kind]
    text = widget.text.lower() if rng.random() < 0.1 else widget.text
    forms = (
        text,
        f'"{text}"',
        f"the {kind} {text}",
        f'the {kind} "{text}"',
        f"the {text} {kind}",
        f'the "{text}" {kind}',
    )
    return rng.choice(forms)
