"""The last lines of an attempt are kept, and no more of them than there is room for."""

import threading

from jobledger.observe.log_run import LOG_TAIL_BYTES, LogTail


def test_nothing_logged_is_nothing_kept() -> None:
    assert LogTail().text() is None


def test_the_oldest_lines_are_forgotten_first() -> None:
    tail = LogTail()
    for number in range(20_000):
        tail.append(f"line {number}")

    lines = (tail.text() or "").splitlines()
    assert lines[-1] == "line 19999"
    assert lines == [f"line {number}" for number in range(20_000 - len(lines), 20_000)]
    assert LOG_TAIL_BYTES - 100 < len("\n".join(lines)) <= LOG_TAIL_BYTES


def test_the_last_line_is_kept_however_long_it_is() -> None:
    tail = LogTail()
    tail.append("short")
    tail.append("ä" * LOG_TAIL_BYTES)

    assert tail.text() == "ä" * LOG_TAIL_BYTES


def test_half_a_character_is_written_out() -> None:
    tail = LogTail()
    tail.append("half \ud800")

    assert tail.text() == "half \\ud800"


def test_threads_that_append_at_once_lose_no_line() -> None:
    tail = LogTail()
    threads = [threading.Thread(target=lambda: [tail.append("x") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tail.text() == "\n".join(["x"] * 8000)
