"""The documentation says what the code says."""

import re

from harness import REPOSITORY
from jobledger import JobStatus, Settings
from jobledger.status import MOVES

README = (REPOSITORY / "README.md").read_text()
ARCHITECTURE = (REPOSITORY / "ARCHITECTURE.md").read_text()


def test_the_readme_describes_every_setting_and_no_other() -> None:
    described = dict(re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \| ([^|]+) \|$", README, flags=re.MULTILINE))
    assert described == {name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_the_state_diagram_shows_the_legal_moves() -> None:
    arrows = set(re.findall(r"^    (\S+) --> (\w+): ", ARCHITECTURE, flags=re.MULTILINE))
    moves = {("[*]" if before is None else before.value, after.value) for before, after in MOVES}
    moves -= {("[*]", JobStatus.CANCELED.value)}  # at dispatch, when a parent has failed: said in the text
    assert arrows == moves


def test_the_readme_s_job_is_python_that_works() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    definitions = [block for block in blocks if "class " in block or "@scheduler" in block]
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in definitions:
        exec(block, namespace)
    assert namespace["ImportSales"].options.queue == "etl"  # type: ignore[attr-defined]
