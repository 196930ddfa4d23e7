"""The shared memory of a worker and the keeper of its leases."""

import os

import pytest

from jobledger.worker.board import SLOTS, Board


def test_a_note_is_read_as_it_was_written_and_replaced_by_the_next() -> None:
    slot = next(iter(Board()))
    assert slot.attempt.read() == b""

    slot.attempt.write(b"first, and longer")
    slot.attempt.write(b"second")

    assert slot.attempt.read() == b"second"
    assert not slot.attempt.is_empty
    slot.attempt.erase()
    assert slot.attempt.read() == b""


def test_a_note_that_is_half_written_is_not_read() -> None:
    board = Board()
    slot = next(iter(board))
    slot.attempt.write(b"whole")
    offset = board._memory.find(b"whole")

    board._memory[offset : offset + 2] = b"xx"

    assert slot.attempt.read() is None


def test_a_note_that_is_too_long_is_refused_and_the_one_before_stays() -> None:
    slot = next(iter(Board()))
    slot.attempt.write(b"before")

    with pytest.raises(ValueError, match="does not fit"):
        slot.attempt.write(b"x" * 100_000)

    assert slot.attempt.read() == b"before"


def test_notes_of_slots_do_not_touch_each_other() -> None:
    board = Board()
    for slot in board:
        for note in (slot.attempt, slot.answer, slot.tail):
            note.write(b"%d" % slot.number)

    assert all(note.read() == b"%d" % slot.number for slot in board for note in (slot.attempt, slot.answer, slot.tail))


def test_a_slot_whose_process_left_a_note_is_not_given_before_the_note_is_erased() -> None:
    board = Board()
    crashed = next(iter(board))
    crashed.attempt.write(b"left behind")

    taken = [board.take() for _ in range(SLOTS - 1)]

    assert crashed not in taken
    assert None not in taken
    assert board.take() is None
    crashed.attempt.erase()
    assert board.take() is crashed


def test_a_forked_process_writes_on_the_same_board_and_another_opens_it_by_its_path() -> None:
    board = Board()
    child = os.fork()
    if child == 0:
        next(iter(board)).attempt.write(b"by the child")
        os._exit(0)
    os.waitpid(child, 0)

    assert next(iter(board)).attempt.read() == b"by the child"
    assert next(iter(Board(board.path))).attempt.read() == b"by the child"


def test_the_keeper_says_when_it_lived_and_whether_it_is_ready() -> None:
    board = Board()
    assert (board.beaten_at, board.is_ready) == (0.0, False)

    board.beat(12.5, is_ready=True)

    assert (board.beaten_at, board.is_ready) == (12.5, True)
