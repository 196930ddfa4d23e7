"""The documentation says what the code says."""

import re

from scripts.settings_page import PAGE, page

from harness import REPOSITORY
from jobledger.domain.status import MOVES

ARCHITECTURE = (REPOSITORY / "ARCHITECTURE.md").read_text()


def test_the_page_of_settings_is_what_the_code_makes() -> None:
    assert PAGE.read_text() == page(), "run scripts/settings-page"


def test_the_state_diagram_shows_the_legal_moves() -> None:
    arrows = set(re.findall(r"^    (\S+) --> (\w+): ", ARCHITECTURE, flags=re.MULTILINE))
    moves = {("[*]" if before is None else before.value, after.value) for before, after in MOVES}
    assert arrows == moves
