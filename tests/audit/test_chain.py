"""One line after the other, decided on bytes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from secure_dagu.audit import chain
from secure_dagu.audit.chain import START, Broken, Flaw, Origin, Place
from tests.audit.conftest import NOW, an_event

ORIGIN = Origin(host="ci", source="coordinator")


def lines(count: int) -> list[bytes]:
    place, made = Place(), []
    for number in range(count):
        line, place = chain.line_of(an_event(number), after=place, at=NOW, origin=ORIGIN)
        made.append(line)
    return made


LINES = lines(8)


def first_bad(of: list[bytes]) -> Broken | None:
    place = Place()
    for line in of:
        after = chain.follows(line, place)
        if isinstance(after, Broken):
            return after
        place = after
    return None


def test_a_chain_that_is_as_written_has_no_flaw() -> None:
    assert first_bad(LINES) is None
    assert chain.place_of(LINES[7]) == chain.follows(LINES[7], chain.place_of(LINES[6]) or Place())


def test_the_first_record_follows_nothing() -> None:
    assert chain.before(LINES[0]) == Place(0, START)


@given(st.integers(0, 7), st.integers(0, 10_000), st.integers(0, 7))
def test_any_flipped_bit_is_found_in_its_record(number: int, at: int, bit: int) -> None:
    line = bytearray(LINES[number])
    line[at % len(line)] ^= 1 << bit
    broken = first_bad([*LINES[:number], bytes(line), *LINES[number + 1 :]])
    assert broken is not None
    assert broken.seq == number + 1


@given(st.integers(0, 6))
def test_a_deleted_record_is_named(number: int) -> None:
    broken = first_bad(LINES[:number] + LINES[number + 1 :])
    assert broken is not None
    assert (broken.seq, broken.flaw) == (number + 1, Flaw.MISSING)


@given(st.integers(0, 7), st.integers(0, 7))
def test_swapped_records_are_found_at_the_first_of_them(one: int, other: int) -> None:
    swapped = list(LINES)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    broken = first_bad(swapped)
    assert (broken.seq if broken else None) == (min(one, other) + 1 if one != other else None)


@given(st.integers(0, 7), st.integers(0, 7))
def test_a_record_that_is_there_twice_is_found(copy: int, at: int) -> None:
    broken = first_bad([*LINES[: at + 1], LINES[copy], *LINES[at + 1 :]])
    assert broken is not None
    assert broken.seq <= at + 2


@given(st.integers(0, 6))
def test_a_forged_record_with_a_good_hash_is_named_by_the_next_one(number: int) -> None:
    before = chain.before(LINES[number])
    assert before is not None
    forged, _ = chain.line_of(an_event(666), after=before, at=NOW, origin=ORIGIN)
    replaced = first_bad([*LINES[:number], forged, *LINES[number + 1 :]])
    inserted = first_bad([*LINES[:number], forged, *LINES[number:]])
    assert replaced is not None
    assert (replaced.seq, replaced.flaw) == (number + 1, Flaw.UNLINKED)
    assert inserted is not None
    assert (inserted.seq, inserted.flaw) == (number + 1, Flaw.INSERTED)


@given(st.binary(max_size=400))
def test_what_is_no_record_is_told_and_never_raises(line: bytes) -> None:
    assert isinstance(chain.follows(line, Place()), Broken)
    assert chain.place_of(line) is None


def test_a_shuffled_chain_never_passes() -> None:
    for seed in range(50):
        shuffled = list(LINES)
        random.Random(seed).shuffle(shuffled)
        assert (first_bad(shuffled) is None) == (shuffled == LINES)
