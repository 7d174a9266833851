"""Slots are claimed so that as little as possible is computed twice and nothing useful is lost early."""

from __future__ import annotations

from onsight.core.geometry import Size
from onsight.core.messages import Image
from onsight.engines.torch_engine.prefix import Claim, SlotBook
from onsight.engines.torch_engine.prompt import ImagePlan, Span


def span(start: int, stop: int) -> Span:
    plan = ImagePlan(Image.of(b"\0\0\0", 1, 1), "0" * 64, (), (0, 0), (), Size(1, 1))
    return Span(plan, start, stop, [])


def finish(book: SlotBook, claim: Claim, computed: int) -> None:
    book.extend(claim.slot, computed)
    book.release(claim.slot)


def test_an_empty_book_gives_the_slots_in_turn() -> None:
    book = SlotBook(2, least=1)
    assert book.claim([1, 2, 3], []) == Claim(0, 0, 0)
    assert book.claim([1, 2, 3], []).slot == 1
    assert book.free == 0


def test_a_conversation_goes_on_in_its_own_slot() -> None:
    book = SlotBook(2, least=1)
    finish(book, book.claim([1, 2, 3], []), 3)
    assert book.claim([1, 2, 3, 4, 5], []) == Claim(0, 0, 3)


def test_the_last_token_is_always_computed_again() -> None:
    book = SlotBook(2, least=1)
    finish(book, book.claim([1, 2, 3], []), 3)
    claim = book.claim([1, 2, 3], [])
    assert claim.tokens == 2
    assert claim.slot == 1  # what the other slot holds is longer, so it stays


def test_a_running_request_lends_what_it_has_computed_so_far() -> None:
    book = SlotBook(2, least=1)
    first = book.claim([1, 2, 3, 4], [])
    book.extend(first.slot, 2)
    assert book.claim([1, 2, 3, 9], []) == Claim(1, 0, 2)


def test_a_prefix_never_ends_inside_a_picture() -> None:
    book = SlotBook(3, least=1)
    finish(book, book.claim([1, -7, -7, -7, 2, 3], [span(1, 4)]), 6)
    assert book.claim([1, -7, -7, -7, 5, 6], [span(1, 4)]).tokens == 4
    assert book.claim([1, -7, -7, -7], [span(1, 4)]).tokens == 1
    assert book.claim([1, -8, -8, -8, 2], [span(1, 4)]).tokens == 1


def test_the_least_recently_used_slot_goes_first_and_the_source_last() -> None:
    book = SlotBook(3, least=1)
    claims = [book.claim([n, n, n], []) for n in range(3)]
    for claim in (claims[1], claims[0], claims[2]):
        finish(book, claim, 3)
    assert book.claim([1, 1, 9], []) == Claim(0, 1, 2)


def test_what_was_not_computed_is_not_reused() -> None:
    book = SlotBook(1, least=1)
    claim = book.claim([1, 2, 3], [])
    book.extend(claim.slot, 1)
    book.release(claim.slot)
    assert book.claim([1, 2, 3, 4], []).tokens == 1


def test_the_answer_is_part_of_what_is_kept() -> None:
    book = SlotBook(1, least=1)
    identity = [1, 2]
    claim = book.claim(identity, [])
    identity += [8, 9]
    finish(book, claim, 3)
    assert book.claim([1, 2, 8, 4, 5], []).tokens == 3


def test_a_few_tokens_are_not_worth_a_copy() -> None:
    book = SlotBook(2, least=3)
    finish(book, book.claim([1, 2, 3, 4], []), 4)
    assert book.claim([1, 2, 9, 9], []).tokens == 0
    assert book.claim([1, 2, 3, 9], []).tokens == 3
